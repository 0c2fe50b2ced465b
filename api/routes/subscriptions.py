"""Subscriptions: commands go to the workflow, responses are read from the database."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession
from starlette.responses import Response

from api import ratelimit
from api.accepted_orders import get_accepted_order, with_present_status
from api.dependencies.authentication import AuthenticatedCaller
from api.dependencies.context import Workflows
from api.dependencies.transactions import Reads, Transactions, VerifiedCaller, transaction
from api.errors import AUTHENTICATED_RESPONSES, PAYMENT_RESPONSES, error_responses, not_found_error
from api.idempotency import IdempotentRequest, OptionalIdempotency, RequiredIdempotency
from api.locks import SUBSCRIPTION_LOCKS
from api.order_parameters import check_host_label, check_parameters
from api.pagination import FullPage, TimelinePage, created_cursor, parse_cursor_instant
from api.response_envelope import Envelope, JsonResponse, Page, list_response, success, to_utc
from api.router_factory import PathId, api_router
from api.schemas.subscriptions import (
    CancelIn,
    ChangePlanIn,
    CreateSubscriptionIn,
    PlanChangePreviewOut,
    PlanRef,
    SubscriptionInstanceOut,
    SubscriptionOut,
    TimelineOut,
    quote_out,
    subscription_out,
    timeline_out,
    to_amount,
)
from api.tokens import Caller
from db.queries import catalogue, ledger, subscriptions
from db.queries.catalogue import PlanToOrder
from db.queries.plan_changes import load_plan_change_facts
from db.queries.timeline_reads import list_timeline_events
from db.reads import SessionReader
from workflows.client import UpdateResult
from workflows.ports.subscription import (
    CancelSubscription,
    ChangePlan,
    CreateSubscription,
    LifecycleCommand,
    SubscriptionResult,
)
from workflows.rules.funding import CollectionMethod
from workflows.rules.instance import InstanceStatus
from workflows.rules.plan_change import decide_plan_change, plan_change_violation
from workflows.rules.subscription import SubscriptionStatus
from workflows.subscription.test_clock import SubscriptionClock

router = api_router("subscriptions", prefix="/subscriptions", responses=AUTHENTICATED_RESPONSES)

ACCEPTED_RESPONSE: dict[int | str, dict[str, Any]] = {
    202: {"model": Envelope[SubscriptionOut], "description": "Accepted; the outcome is not known yet."}
}
CHARGING_RESPONSES = ACCEPTED_RESPONSE | error_responses(402)


@dataclass(frozen=True, slots=True, kw_only=True)
class _PlannedOrder:
    command: CreateSubscription
    plan: PlanToOrder


@router.post(
    "", response_model=Envelope[SubscriptionOut], status_code=201, responses=PAYMENT_RESPONSES | ACCEPTED_RESPONSE
)
async def create_subscription(
    body: CreateSubscriptionIn, once: RequiredIdempotency, caller: VerifiedCaller
) -> Response:
    """Order a plan. 201 with the subscription; 202 if the order was accepted but not created within 3 s."""

    async def prepare(_: AsyncSession) -> _PlannedOrder:
        plan = _require_orderable(once.rows, body, is_retry=once.is_retry)
        # A retry under the key is the same order. A refusal here leaves the key unclaimed: its repetition is no retry.
        if plan.trial_days and not once.is_retry:
            await once.ctx.rate_limits.consume(ratelimit.TRIAL_ORDERS, caller.organization_id)
        return _PlannedOrder(command=_create_command(once, caller, plan, body), plan=plan)

    async def send(order: _PlannedOrder) -> JsonResponse | UpdateResult[SubscriptionResult]:
        accepted = await once.ctx.workflows.create_subscription(order.command)
        if accepted.result is None or accepted.result.order is None:
            return accepted
        return _created_response(_accepted_subscription(order, accepted))

    return await once.run_and_present(prepare, send, _present_order, read=catalogue.read_plan_to_order(body.plan_id))


@router.get("", response_model=Page[SubscriptionOut])
async def list_subscriptions(reads: Reads, page: FullPage, status: SubscriptionStatus | None = None) -> Response:
    rows = await subscriptions.list_subscriptions(
        reads, reads.organization_id, limit=page.limit + 1, after=created_cursor(page), status=status
    )
    items, meta = page.split_page(rows, "created_at", "id")
    return list_response([subscription_out(row) for row in items], meta, page.fields)


@router.get("/{subscription_id}", response_model=Envelope[SubscriptionOut])
async def get_subscription(subscription_id: PathId, reads: Reads) -> JsonResponse:
    row = await subscriptions.get_subscription(reads, subscription_id, reads.organization_id)
    if row is not None:
        return success(subscription_out(row))
    async with transaction(reads.ctx, reads.caller) as session:
        order = await get_accepted_order(session, subscription_id, reads.organization_id)
    return success(await with_present_status(order, reads.ctx.workflows))


@router.post("/{subscription_id}/cancel", response_model=Envelope[SubscriptionOut], responses=ACCEPTED_RESPONSE)
async def cancel(subscription_id: PathId, body: CancelIn, once: OptionalIdempotency, workflows: Workflows) -> Response:
    """Cancel now, or at the end of the paid period."""

    async def send() -> UpdateResult[SubscriptionResult]:
        command = CancelSubscription(
            update_id=once.derive_update_id(), actor=once.caller.user_id, at=body.at, reason=body.reason
        )
        return await workflows.cancel(subscription_id, command)

    return await _run_update(once, subscription_id, send)


@router.post("/{subscription_id}/resume", response_model=Envelope[SubscriptionOut], responses=CHARGING_RESPONSES)
async def resume(subscription_id: PathId, once: OptionalIdempotency, workflows: Workflows) -> Response:
    """Withdraw a cancellation at the period's end, or resume a paused subscription: a new period is charged now."""
    return await _run_update(once, subscription_id, lambda: workflows.resume(subscription_id, _lifecycle_command(once)))


@router.post("/{subscription_id}/pause", response_model=Envelope[SubscriptionOut], responses=ACCEPTED_RESPONSE)
async def pause(subscription_id: PathId, once: OptionalIdempotency, workflows: Workflows) -> Response:
    """Stop the instance and the billing until the subscription is resumed. The data is kept."""
    return await _run_update(once, subscription_id, lambda: workflows.pause(subscription_id, _lifecycle_command(once)))


@router.post("/{subscription_id}/retry-payment", response_model=Envelope[SubscriptionOut], responses=CHARGING_RESPONSES)
async def retry_payment(subscription_id: PathId, once: OptionalIdempotency, workflows: Workflows) -> Response:
    """Collect the open invoice now. The scheduled retries stay."""
    return await _run_update(
        once, subscription_id, lambda: workflows.retry_payment(subscription_id, _lifecycle_command(once))
    )


@router.post("/{subscription_id}/change-plan/preview", response_model=Envelope[PlanChangePreviewOut])
async def preview_plan_change(
    subscription_id: PathId,
    body: ChangePlanIn,
    caller: AuthenticatedCaller,
    transactions: Transactions,
    workflows: Workflows,
) -> JsonResponse:
    """Return the lines that the change would invoice now. Nothing is changed."""
    async with transactions.open() as session:
        if not await subscriptions.subscription_exists(session, subscription_id, caller.organization_id):
            await get_accepted_order(session, subscription_id, caller.organization_id)
            raise plan_change_violation(SubscriptionStatus.PENDING)
    # No transaction is open while Temporal is asked.
    at = await SubscriptionClock(workflows).now(subscription_id)
    async with transactions.open() as session:
        subscription = await subscriptions.get_subscription_row(session, subscription_id, caller.organization_id)
        plan = await catalogue.get_plan(session, body.plan_id)
        if subscription is None or plan is None:
            raise not_found_error("plan")
        facts = await load_plan_change_facts(session, subscription, plan, at=at)
        quote = decide_plan_change(facts, at=at, mode=body.mode)
        carried_debt = await ledger.get_carried_debt(session, caller.organization_id, subscription.currency)
        return success(quote_out(quote, carried_debt))


@router.post("/{subscription_id}/change-plan", response_model=Envelope[SubscriptionOut], responses=CHARGING_RESPONSES)
async def change_plan(
    subscription_id: PathId, body: ChangePlanIn, once: OptionalIdempotency, workflows: Workflows
) -> Response:
    """Change the plan now or at the end of the period. Choosing the current plan withdraws a scheduled change.

    A change to another plan withdraws a cancellation at the end of the period.
    """

    async def prepare(session: AsyncSession) -> ChangePlan:
        await _require_own_subscription(session, subscription_id, once.caller)
        plan_id = await catalogue.find_plan_id(session, body.plan_id)
        if plan_id is None:
            raise not_found_error("plan")
        return ChangePlan(update_id=once.derive_update_id(), actor=once.caller.user_id, plan_id=plan_id, mode=body.mode)

    async def send(command: ChangePlan) -> UpdateResult[SubscriptionResult]:
        async with SUBSCRIPTION_LOCKS.hold(subscription_id):
            return await workflows.change_plan(subscription_id, command)

    async def present(session: AsyncSession, _: ChangePlan, accepted: UpdateResult[SubscriptionResult]) -> JsonResponse:
        return await _subscription_response(session, subscription_id, once.caller, accepted)

    return await once.run_and_present(prepare, send, present)


@router.get("/{subscription_id}/timeline", response_model=Page[TimelineOut])
async def timeline(reads: Reads, subscription_id: PathId, page: TimelinePage) -> Response:
    """Return the timeline events, oldest first: all of them, or a page if ``limit`` is given."""
    place = page.cursor_as(str, int)
    after = (parse_cursor_instant(place[0]), place[1]) if place else None
    rows = await list_timeline_events(reads, subscription_id, reads.organization_id, limit=page.limit + 1, after=after)
    if rows is None:
        async with transaction(reads.ctx, reads.caller) as session:
            await get_accepted_order(session, subscription_id, reads.organization_id)
        rows = ()
    items, meta = page.split_page(rows, "occurred_at", "id")
    return list_response([timeline_out(event) for event in items], meta, page.fields)


async def _run_update(
    once: IdempotentRequest,
    subscription_id: str,
    send: Callable[[], Awaitable[UpdateResult[SubscriptionResult]]],
) -> Response:
    """Send an update to the caller's subscription and return the subscription as it is then.

    The status is 202 if the outcome was not known in time: the subscription is then still shown as before.
    """

    async def prepare(session: AsyncSession) -> None:
        await _require_own_subscription(session, subscription_id, once.caller)

    async def work(_: None) -> UpdateResult[SubscriptionResult]:
        async with SUBSCRIPTION_LOCKS.hold(subscription_id):
            return await send()

    async def present(session: AsyncSession, _: None, accepted: UpdateResult[SubscriptionResult]) -> JsonResponse:
        return await _subscription_response(session, subscription_id, once.caller, accepted)

    return await once.run_and_present(prepare, work, present)


def _lifecycle_command(once: IdempotentRequest) -> LifecycleCommand:
    return LifecycleCommand(update_id=once.derive_update_id(), actor=once.caller.user_id)


async def _subscription_response(
    session: AsyncSession, subscription_id: str, caller: Caller, accepted: UpdateResult[SubscriptionResult]
) -> JsonResponse:
    row = await subscriptions.get_subscription(SessionReader(session), subscription_id, caller.organization_id)
    resource = (
        subscription_out(row)
        if row is not None
        else await get_accepted_order(session, subscription_id, caller.organization_id)
    )
    # Without a row the outcome, if it is known, cannot be shown yet.
    if row is None or accepted.result is None:
        return success(
            resource,
            status=202,
            message="Accepted and in progress; poll the subscription for the outcome.",
            is_final=False,
        )
    return success(resource)


async def _require_own_subscription(session: AsyncSession, subscription_id: str, caller: Caller) -> None:
    """Raise 404 unless the organization has the subscription, or an accepted order that is not recorded yet."""
    if not await subscriptions.subscription_exists(session, subscription_id, caller.organization_id):
        await get_accepted_order(session, subscription_id, caller.organization_id)


def _require_orderable(plans: Sequence[PlanToOrder], body: CreateSubscriptionIn, *, is_retry: bool) -> PlanToOrder:
    """Return the plan that was found. A retry is not refused by the present catalogue: the order may be recorded.

    Raises:
        ApiError: 404 for the plan; 422 for a parameter or the host name.
    """
    plan = plans[0] if plans else None
    if plan is None or not (plan.is_published or is_retry):
        raise not_found_error("plan")
    if not is_retry:
        check_parameters(plan.parameters_schema, body.parameters)
        check_host_label(body.parameters)
    return plan


def _create_command(
    once: IdempotentRequest, caller: Caller, plan: PlanToOrder, body: CreateSubscriptionIn
) -> CreateSubscription:
    return CreateSubscription(
        subscription_id=once.derive_id("sub"),
        instance_id=once.derive_id("ins"),
        organization_id=caller.organization_id,
        user_id=caller.user_id,
        plan_id=plan.id,
        name=body.name,
        parameters=body.parameters,
        coupon=body.coupon.upper() if body.coupon else None,
        collection_method=body.collection or CollectionMethod.WALLET_THEN_CARD,
        request_id=once.request_id,
    )


async def _present_order(
    session: AsyncSession, order: _PlannedOrder, accepted: UpdateResult[SubscriptionResult]
) -> JsonResponse:
    """Return the recorded subscription, or the accepted order if it has no row yet."""
    command = order.command
    row = await subscriptions.get_subscription(SessionReader(session), command.subscription_id, command.organization_id)
    if row is not None:
        return _created_response(subscription_out(row))
    return success(
        _accepted_subscription(order, accepted),
        status=202,
        message="Order accepted; poll the subscription for its status, or repeat the request with its Idempotency-Key.",
        is_final=False,
    )


def _created_response(subscription: SubscriptionOut) -> JsonResponse:
    return success(subscription, status=201, message="Order accepted.")


def _accepted_subscription(order: _PlannedOrder, accepted: UpdateResult[SubscriptionResult]) -> SubscriptionOut:
    """Return an order whose instance was not ready yet; without a result its rows may not exist yet."""
    command, result = order.command, accepted.result
    recorded = result.order if result is not None else None
    return SubscriptionOut(
        id=command.subscription_id,
        status=result.state if result is not None else SubscriptionStatus.PENDING,
        name=command.name,
        service=order.plan.service,
        plan=PlanRef(id=order.plan.id, code=order.plan.code),
        pending_plan_id=None,
        price=to_amount(recorded.price) if recorded is not None else None,
        instance=SubscriptionInstanceOut(
            id=command.instance_id,
            status=InstanceStatus.REQUESTED,
            url=None,
            hostname=recorded.hostname if recorded is not None else None,
        ),
        current_period=None,
        trial_end=None,
        cancel_at_period_end=False,
        cancelled_at=None,
        delete_at=None,
        coupon=command.coupon,
        created_at=to_utc(recorded.created_at) if recorded is not None else None,
        workflow_id=accepted.workflow_id,
    )
