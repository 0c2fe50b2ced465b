"""One life, lived: order, wait until it is ready, move its clock to each event and to the end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from pydantic import SecretStr
from temporalio.client import Client
from temporalio.testing import TimeSkipper, TimeSkippingConfig
from temporalio.worker import Worker

from db.queries import identity
from db.queries.catalogue import plan_id
from db.queries.identity import NewAccount
from db.session import create_engine, session_factory
from worker import catalogue
from worker.registry import WORKFLOWS, Dependencies, activities, dependencies
from worker.settings import WorkerSettings
from worker.simulate import records
from worker.simulate.account import CURRENCY, INSTANCE, ORGANIZATION, SUBSCRIPTION, USER, Account
from worker.simulate.calendar import Calendar, CalendarRunner
from worker.simulate.events import Deed, Event, Events
from worker.simulate.records import Happened, Story
from worker.simulate.servers import STRIPE_KEY, Servers
from workflows import names
from workflows.client import NotRunning, Orchestrator, connect
from workflows.ports.subscription import Cancel, CancelAt, ChangePlanOrder, ClockView, Order, Subscribe
from workflows.rules.errors import RuleBroken
from workflows.rules.money import Money
from workflows.rules.periods import MONTHS, Interval, boundary
from workflows.rules.proration import Mode
from workflows.rules.subscription import BEFORE_READY, ENDED, State

LOOK_AGAIN_SECONDS = 0.02
PATIENCE_SECONDS = 300.0

JUST_BEFORE = timedelta(seconds=1)
"""The story ends this long before the period after its last month begins."""

RUN_UP = timedelta(seconds=1)
"""How long before a target a leap ends; more than a busy machine needs to start one."""

LEAP = timedelta(days=300, hours=7, minutes=13)
"""What is skipped at once at most: far less than fills a history, and never from one due moment to another."""

LONG_HISTORY = 2_500
"""Events. From here on a leap could meet a continue-as-new, and the rest of it would miss what falls due."""


class NoSuchPlan(Exception):
    """The catalogue has no such plan; the message names those that it has."""


class NeverReady(RuntimeError):
    """The instance did not come up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    price: Money
    months: int


async def live(servers: Servers, plan: str | None, start: datetime, months: int, events: Events) -> Story:
    """Live ``months`` from readiness at ``start`` and tell what was recorded.

    Without ``plan``, the catalogue's example is lived.

    Raises:
        NoSuchPlan: ``plan``, or that of an event.
    """
    offers = catalogue.offers()
    plans = _plans(offers)
    plan = plan or _example(offers)
    for code in (plan, *(event.fields["plan"] for event in events.of(Deed.CHANGE_PLAN))):
        if code not in plans:
            raise NoSuchPlan(f"there is no plan {code!r}; there are {', '.join(plans)}")
    settings = await asyncio.to_thread(_settings, servers)
    await _furnish(servers.owner_url(), offers, start)
    calendar = Calendar(start)
    async with dependencies(settings) as given:
        client = await connect(settings.temporal())
        async with _workers(given, client, calendar):
            account = Account(Orchestrator(client), given.sessions, servers.stripe_url())
            life = Life(client, calendar, account)
            await account.fund(_funds(plans, plan, months, events), start, by_card=events.need_cards)
            if events.of(Deed.CARD_DECLINES, Deed.CARD_WORKS):
                await account.add_card()
            await life.begin(plan)
            for event in events.all:
                await life.advance(event.at)
                await life.meet(event)
            await life.advance(boundary(start, months, Interval.MONTH, "UTC") - JUST_BEFORE)
            async with given.sessions() as session:
                return await records.read(session, SUBSCRIPTION, ORGANIZATION, CURRENCY, months, life.happened)


class Life:
    def __init__(self, client: Client, calendar: Calendar, account: Account) -> None:
        self.happened: list[Happened] = []
        self._orchestrator = account.orchestrator
        self._account = account
        self._calendar = calendar
        self._handle = client.get_workflow_handle(names.subscription_workflow(SUBSCRIPTION))
        # Payments and operations live in real time; only the subscription's own clock is moved.
        self._skipper = TimeSkipper(client, config=TimeSkippingConfig(enabled=False, disable_propagation=True))

    async def begin(self, plan: str) -> None:
        """Order, and wait until the instance is ready.

        Raises:
            NeverReady: the order has ended.
        """
        order = Subscribe(
            subscription_id=SUBSCRIPTION,
            instance_id=INSTANCE,
            organization_id=ORGANIZATION,
            user_id=USER,
            plan_id=plan_id(plan),
            name="simulated",
        )
        await self._orchestrator.subscribe(order)
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                view = await self._orchestrator.clock(SUBSCRIPTION)
                if view.state not in BEFORE_READY:
                    break
                await asyncio.sleep(LOOK_AGAIN_SECONDS)
        if view.state in (State.FAILED, State.EXPIRED):
            raise NeverReady(f"the subscription is {view.state}")

    async def advance(self, target: datetime) -> None:
        """Let everything happen that falls due until ``target``, itself included.

        Time stands still while an activity or a child of the subscription runs, so that one leap over many due moments
        does each of them at its own instant. Only where a leap ends, nothing may be under way: the server would run on
        to the next timer. So leaps end just before the target, and what falls due there comes by itself.
        """
        while True:
            view, now = await self._settled()
            if view.state in ENDED or now >= target:
                return
            bound = target
            if view.next_due is not None and (await self._handle.describe()).history_length > LONG_HISTORY:
                bound = min(target, view.next_due)
            if bound - now > RUN_UP:
                stop = min(bound - RUN_UP, now + LEAP)
            elif view.next_due is not None and view.next_due <= bound:
                await asyncio.sleep(LOOK_AGAIN_SECONDS)
                continue
            else:
                stop = bound
            async with asyncio.timeout(PATIENCE_SECONDS):
                if not await self._skipper.fast_forward(self._handle, stop - now):
                    return

    async def meet(self, event: Event) -> None:
        """Do what an event says; a refusal is part of the story."""
        outcome = "done"
        try:
            await self._do(event)
        except RuleBroken as refused:
            outcome = refused.code.value
        except NotRunning:
            outcome = "SUBSCRIPTION_ENDED"
        await self._settled()
        self.happened.append(Happened(at=event.at, do=event.do.value, outcome=outcome))

    async def _do(self, event: Event) -> None:
        order_id, account = f"event-{event.entry}", self._account
        order = Order(order_id=order_id, actor=USER)
        match event.do:
            case Deed.TOP_UP:
                amount = Money(amount_minor=event.fields["amount_minor"], currency=CURRENCY)
                await account.top_up(order_id, amount, event.at)
            case Deed.CARD_DECLINES:
                await account.card_declines(event.fields.get("decline_code", "insufficient_funds"))
            case Deed.CARD_WORKS:
                await account.card_declines(None)
                await account.add_card(order_id)
            case Deed.REFUND:
                await account.refund(order_id, event.fields.get("amount_minor"), event.fields.get("to", "source"))
            case Deed.CHANGE_PLAN:
                mode = Mode(event.fields["mode"]) if "mode" in event.fields else None
                change = ChangePlanOrder(
                    order_id=order_id, actor=USER, plan_id=plan_id(event.fields["plan"]), mode=mode
                )
                await self._orchestrator.change_plan(SUBSCRIPTION, change)
            case Deed.CANCEL:
                at = CancelAt(event.fields.get("when", CancelAt.PERIOD_END))
                await self._orchestrator.cancel(SUBSCRIPTION, Cancel(order_id=order_id, actor=USER, at=at))
            case Deed.PAUSE:
                await self._orchestrator.pause(SUBSCRIPTION, order)
            case Deed.RESUME:
                await self._orchestrator.resume(SUBSCRIPTION, order)

    async def _settled(self) -> tuple[ClockView, datetime]:
        """Wait until everything that is due is done; return where the subscription stands and what its clock shows."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                view = await self._orchestrator.clock(SUBSCRIPTION)
                virtual = await self._skipper.get_current_time(self._handle)
                self._calendar.ahead = virtual - datetime.now(UTC)
                now = self._calendar.shown(virtual)
                if view.state in ENDED or (view.idle and (view.next_due is None or view.next_due > now)):
                    return view, now
                await asyncio.sleep(LOOK_AGAIN_SECONDS)


def _plans(offers: list[catalogue.Offer]) -> Mapping[str, Plan]:
    return {
        plan.facts.code: Plan(
            price=next(price for price in plan.prices if price.currency == CURRENCY),
            months=MONTHS[Interval(plan.facts.interval)],
        )
        for offer in offers
        for plan in offer.plans
    }


def _example(offers: list[catalogue.Offer]) -> str:
    for offer in offers:
        for plan in offer.plans:
            if plan.example:
                return plan.facts.code
    raise NoSuchPlan("no plan is named, and the catalogue has no example")


def _funds(plans: Mapping[str, Plan], plan: str, months: int, events: Events) -> Money:
    """Exactly what all periods cost; where the events are about money, the first period and no more.

    Where plans change it is what all periods would cost in each of them, which is always enough.
    """
    if events.about_money:
        return plans[plan].price
    codes = [plan, *(event.fields["plan"] for event in events.of(Deed.CHANGE_PLAN))]
    amount = sum(plans[code].price.amount_minor * -(-months // plans[code].months) for code in codes)
    return Money(amount_minor=amount, currency=CURRENCY)


def _settings(servers: Servers) -> WorkerSettings:
    """Wait for the servers. Everything that could lead elsewhere is said here, whatever the environment says."""
    address, namespace = servers.temporal()
    return WorkerSettings(
        environment="sandbox",
        worker_database_url=servers.database_url(),
        temporal_address=address,
        temporal_namespace=namespace,
        encryption_key=SecretStr(""),
        stripe_url=servers.stripe_url() or "http://127.0.0.1:9",
        stripe_api_key=SecretStr(STRIPE_KEY),
        kubeconfig=servers.kubeconfig(),
        base_domain="apps.berth.localhost",
        provisioning_patience_seconds=60,
    )


async def _furnish(owner_url: str, offers: list[catalogue.Offer], now: datetime) -> None:
    """Write the catalogue and one account."""
    engine = create_engine(owner_url, pool_size=1)
    account = NewAccount(
        user_id=USER,
        organization_id=ORGANIZATION,
        email="customer@example.com",
        name="Simulated Customer",
        password_hash="!",  # noqa: S106 - nobody signs in
        organization_name="Simulated Customer",
        currency=CURRENCY,
        country=None,
        timezone="UTC",
        verified=True,
    )
    try:
        async with session_factory(engine).begin() as session:
            await catalogue.write(session, offers, now)
            await identity.create_account(session, account, now)
    finally:
        await engine.dispose()


@asynccontextmanager
async def _workers(given: Dependencies, client: Client, calendar: Calendar) -> AsyncIterator[None]:
    """The product's workflows and activities, by the calendar. Mails are written, nobody drains them."""
    by_queue = activities(given)
    async with AsyncExitStack() as stack:
        for queue in (names.PLATFORM, names.INFRASTRUCTURE):
            worker = Worker(
                client,
                task_queue=queue,
                workflows=WORKFLOWS if queue == names.PLATFORM else (),
                activities=by_queue[queue],
                workflow_runner=CalendarRunner(calendar),
                # Otherwise the SDK reads and hashes every module that is loaded.
                build_id="simulation",
            )
            await stack.enter_async_context(worker)
        yield
