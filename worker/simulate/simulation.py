"""Simulates one subscription: order, wait until it is ready, advance its clock to each event and to the end."""

from __future__ import annotations

import asyncio
import base64
import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from pydantic import SecretStr
from temporalio.client import Client
from temporalio.testing import TimeSkipper, TimeSkippingConfig
from temporalio.worker import Worker

from activities.attempt_time import AttemptTimeInterceptor
from db.queries import identity
from db.queries.catalogue import plan_id
from db.queries.identity import NewAccount
from db.session import create_database_engine, session_factory, set_rls_context
from worker import seed_catalogue
from worker.registry import WORKFLOWS, Dependencies, activities_by_queue, open_dependencies
from worker.settings import WorkerSettings
from worker.simulate import result
from worker.simulate.customer import CURRENCY, INSTANCE_ID, ORGANIZATION, SUBSCRIPTION_ID, USER, SimulatedCustomer
from worker.simulate.events import Event, EventAction, Events
from worker.simulate.result import EventOutcome, SimulationResult
from worker.simulate.servers import STRIPE_KEY, SimulationServers
from worker.simulate.shifted_clock import ShiftedTimeRunner, SimulatedClock
from workflows import names
from workflows.client import WorkflowClient
from workflows.connection import connect
from workflows.ports.subscription import (
    CancelAt,
    CancelSubscription,
    ChangePlan,
    ClockStatus,
    CreateSubscription,
    LifecycleCommand,
)
from workflows.rpc_errors import WorkflowNotRunning, WorkflowTaskPending
from workflows.rules.errors import RuleViolation
from workflows.rules.money import Money
from workflows.rules.periods import MONTHS_PER_INTERVAL, Interval, period_boundary
from workflows.rules.proration import PlanChangeMode
from workflows.rules.subscription import PRE_READY_STATUSES, TERMINAL_STATUSES, SubscriptionStatus
from workflows.subscription.test_clock import SKIP_MARGIN

POLL_INTERVAL_SECONDS = 0.02
TIMEOUT_SECONDS = 300.0

END_MARGIN = timedelta(seconds=1)
"""The simulation ends this long before the period after its last month starts."""

MAX_SKIP = timedelta(days=300, hours=7, minutes=13)
"""Longest single skip: far below the history limit, and not a multiple of a billing period."""


class UnknownPlan(Exception):
    """The catalog has no such plan; the message lists the existing ones."""


class ProvisioningFailed(RuntimeError):
    """The instance did not become ready."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    price: Money
    months: int


async def simulate_subscription(
    servers: SimulationServers, plan: str | None, start: datetime, months: int, events: Events
) -> SimulationResult:
    """Simulate ``months`` from readiness at ``start`` and return the recorded rows.

    Args:
        plan: Plan code; None selects the example plan of the catalog.

    Raises:
        UnknownPlan: The catalog lacks ``plan`` or the plan of an event.
    """
    offers = seed_catalogue.load_catalogue()
    plans = _plans(offers)
    plan = plan or _example_plan_code(offers)
    for code in (plan, *(event.fields["plan"] for event in events.with_action(EventAction.CHANGE_PLAN))):
        if code not in plans:
            raise UnknownPlan(f"there is no plan {code!r}; there are {', '.join(plans)}")
    settings = await asyncio.to_thread(_settings, servers)
    await _seed_database(servers.owner_url(), offers, start)
    calendar = SimulatedClock(start)
    async with open_dependencies(settings) as dependencies:
        client = await connect(settings.temporal_settings())
        async with _run_workers(dependencies, client, calendar):
            account = SimulatedCustomer(WorkflowClient(client), dependencies.sessions, servers.stripe_url())
            state = SimulatedSubscription(client, calendar, account)
            await account.fund_wallet(
                _required_funds(plans, plan, months, events), start, by_card=events.needs_card_gateway
            )
            if events.with_action(EventAction.CARD_DECLINES, EventAction.CARD_WORKS):
                await account.add_card()
            await state.order_and_wait_until_ready(plan)
            for event in events.events:
                await state.advance(event.at)
                await state.apply_event(event)
            end = period_boundary(start, months, Interval.MONTH, "UTC")
            await state.advance(end - END_MARGIN)
            async with dependencies.sessions() as session:
                return await result.load_result(
                    session, SUBSCRIPTION_ID, ORGANIZATION, CURRENCY, months, state.event_outcomes, end
                )


class SimulatedSubscription:
    def __init__(self, client: Client, calendar: SimulatedClock, account: SimulatedCustomer) -> None:
        self.event_outcomes: list[EventOutcome] = []
        self._workflows = account.workflows
        self._account = account
        self._calendar = calendar
        self._handle = client.get_workflow_handle(names.subscription_workflow_id(SUBSCRIPTION_ID))
        # Payments and operations run in real time; only the subscription's clock is skipped.
        self._skipper = TimeSkipper(client, config=TimeSkippingConfig(enabled=False, disable_propagation=True))

    async def order_and_wait_until_ready(self, plan: str) -> None:
        """Order, and wait until the instance is ready.

        Raises:
            ProvisioningFailed: The order failed or expired.
        """
        order = CreateSubscription(
            subscription_id=SUBSCRIPTION_ID,
            instance_id=INSTANCE_ID,
            organization_id=ORGANIZATION,
            user_id=USER,
            plan_id=plan_id(plan),
            name="simulated",
        )
        await self._workflows.create_subscription(order)
        async with asyncio.timeout(TIMEOUT_SECONDS):
            while True:
                view = await self._workflows.get_clock_status(SUBSCRIPTION_ID)
                if view.state not in PRE_READY_STATUSES:
                    break
                await asyncio.sleep(POLL_INTERVAL_SECONDS)
        if view.state in (SubscriptionStatus.FAILED, SubscriptionStatus.EXPIRED):
            raise ProvisioningFailed(f"the instance did not become ready: the subscription is {view.state}")

    async def advance(self, target: datetime) -> None:
        """Advance the clock to ``target`` and process everything that is due until then, ``target`` included.

        At the end of a skip nothing may be in progress: the server would continue to the next timer. Skips therefore
        end just before the next action, which then runs in real time.
        """
        while True:
            view, now = await self._wait_until_idle()
            if view.state in TERMINAL_STATUSES or now >= target:
                return
            # Each renewal may continue as new: a skip beyond the next action would miss the timers of the new run.
            bound = target if view.next_action_at is None else min(target, view.next_action_at)
            if bound - now > SKIP_MARGIN:
                stop = min(bound - SKIP_MARGIN, now + MAX_SKIP)
            elif view.next_action_at is not None and view.next_action_at <= bound:
                await asyncio.sleep(POLL_INTERVAL_SECONDS)
                continue
            else:
                stop = bound
            async with asyncio.timeout(TIMEOUT_SECONDS):
                if not await self._skipper.fast_forward(self._handle, stop - now):
                    return

    async def apply_event(self, event: Event) -> None:
        """Apply an event and record its outcome: ``done`` or the error code of a rejection."""
        outcome = "done"
        try:
            await self._perform(event)
        except RuleViolation as refused:
            outcome = refused.code.value
        except WorkflowNotRunning:
            outcome = "SUBSCRIPTION_ENDED"
        await self._wait_until_idle()
        self.event_outcomes.append(EventOutcome(at=event.at, do=event.action.value, outcome=outcome))

    async def _perform(self, event: Event) -> None:
        update_id, account = f"event-{event.entry}", self._account
        command = LifecycleCommand(update_id=update_id, actor=USER)
        match event.action:
            case EventAction.TOP_UP:
                amount = Money(amount_minor=event.fields["amount_minor"], currency=CURRENCY)
                await account.top_up(update_id, amount, event.at)
            case EventAction.CARD_DECLINES:
                await account.set_decline_code(event.fields.get("decline_code", "insufficient_funds"))
            case EventAction.CARD_WORKS:
                await account.set_decline_code(None)
                await account.add_card(update_id)
            case EventAction.REFUND:
                await account.refund(update_id, event.fields.get("amount_minor"), event.fields.get("to", "source"))
            case EventAction.CHANGE_PLAN:
                mode = PlanChangeMode(event.fields["mode"]) if "mode" in event.fields else None
                change = ChangePlan(update_id=update_id, actor=USER, plan_id=plan_id(event.fields["plan"]), mode=mode)
                await self._workflows.change_plan(SUBSCRIPTION_ID, change)
            case EventAction.CANCEL:
                at = CancelAt(event.fields.get("when", CancelAt.PERIOD_END))
                await self._workflows.cancel(
                    SUBSCRIPTION_ID, CancelSubscription(update_id=update_id, actor=USER, at=at)
                )
            case EventAction.PAUSE:
                await self._workflows.pause(SUBSCRIPTION_ID, command)
            case EventAction.RESUME:
                await self._workflows.resume(SUBSCRIPTION_ID, command)

    async def _wait_until_idle(self) -> tuple[ClockStatus, datetime]:
        """Wait until all due actions are done; return the clock status and the simulated time."""
        async with asyncio.timeout(TIMEOUT_SECONDS):
            while True:
                try:
                    view = await self._workflows.get_clock_status(SUBSCRIPTION_ID)
                except WorkflowTaskPending:
                    # The workflow has just continued as new.
                    await asyncio.sleep(POLL_INTERVAL_SECONDS)
                    continue
                virtual = await self._skipper.get_current_time(self._handle)
                self._calendar.offset = virtual - datetime.now(UTC)
                now = self._calendar.to_simulated(virtual)
                if view.state in TERMINAL_STATUSES or (
                    view.is_idle and (view.next_action_at is None or view.next_action_at > now)
                ):
                    return view, now
                await asyncio.sleep(POLL_INTERVAL_SECONDS)


def _plans(offers: list[seed_catalogue.CatalogueEntry]) -> Mapping[str, Plan]:
    return {
        plan.definition.code: Plan(
            price=next(price for price in plan.prices if price.currency == CURRENCY),
            months=MONTHS_PER_INTERVAL[Interval(plan.definition.interval)],
        )
        for offer in offers
        for plan in offer.plans
    }


def _example_plan_code(offers: list[seed_catalogue.CatalogueEntry]) -> str:
    for offer in offers:
        for plan in offer.plans:
            if plan.is_example:
                return plan.definition.code
    raise UnknownPlan("name a plan with --plan: the catalog has no example plan")


def _required_funds(plans: Mapping[str, Plan], plan: str, months: int, events: Events) -> Money:
    """Return the opening balance: the price of all periods, or of the first period if events control the funding.

    With plan changes it is the sum of the prices of all periods in each of the plans, which is always sufficient.
    """
    if events.controls_funding:
        return plans[plan].price
    codes = [plan, *(event.fields["plan"] for event in events.with_action(EventAction.CHANGE_PLAN))]
    amount = sum(plans[code].price.amount_minor * -(-months // plans[code].months) for code in codes)
    return Money(amount_minor=amount, currency=CURRENCY)


def _settings(servers: SimulationServers) -> WorkerSettings:
    """Wait for the servers and return the settings. Sets every address, so that the environment has no effect."""
    address, namespace = servers.temporal()
    return WorkerSettings(
        environment="sandbox",
        worker_database_url=servers.database_url(),
        temporal_address=address,
        temporal_namespace=namespace,
        encryption_key=SecretStr(base64.b64encode(secrets.token_bytes(32)).decode()),
        stripe_url=servers.stripe_url() or "http://127.0.0.1:9",
        stripe_api_key=SecretStr(STRIPE_KEY),
        kubeconfig=servers.kubeconfig(),
        base_domain="apps.berth.localhost",
        provisioning_failure_threshold_seconds=60,
    )


async def _seed_database(owner_url: str, offers: list[seed_catalogue.CatalogueEntry], now: datetime) -> None:
    """Write the catalog and one customer."""
    engine = create_database_engine(owner_url, pool_size=1)
    account = NewAccount(
        user_id=USER,
        organization_id=ORGANIZATION,
        email="customer@example.com",
        name="Simulated Customer",
        password_hash="!",  # noqa: S106 - no sign-in is possible
        organization_name="Simulated Customer",
        currency=CURRENCY,
        country=None,
        timezone="UTC",
        verified=True,
    )
    try:
        async with session_factory(engine).begin() as session:
            await seed_catalogue.upsert_catalogue(session, offers, now)
            await set_rls_context(session, organization_id=ORGANIZATION, user_id=USER, role=None)
            await identity.create_user_with_organization(session, account, now)
    finally:
        await engine.dispose()


@asynccontextmanager
async def _run_workers(dependencies: Dependencies, client: Client, calendar: SimulatedClock) -> AsyncIterator[None]:
    """Run the product's workflows and activities on the simulated clock. Mails stay in the outbox."""
    by_queue = activities_by_queue(dependencies)
    async with AsyncExitStack() as stack:
        for queue in (names.PLATFORM_QUEUE, names.INFRASTRUCTURE_QUEUE):
            worker = Worker(
                client,
                task_queue=queue,
                workflows=WORKFLOWS if queue == names.PLATFORM_QUEUE else (),
                activities=by_queue[queue],
                interceptors=[AttemptTimeInterceptor()],
                workflow_runner=ShiftedTimeRunner(calendar),
                # Otherwise the SDK reads and hashes every module that is loaded.
                build_id="simulation",
            )
            await stack.enter_async_context(worker)
        yield
