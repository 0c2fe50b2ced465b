"""Subscriptions: orders go to their workflow, everything shown is read from the database."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

from fastapi import Path
from jsonschema import Draft202012Validator
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.responses import Response

from api.deps import Orders, SignedIn, Units, UnitsOfWork, Verified, Work
from api.envelope import Envelope, Json, Page, answer, listed, ok
from api.errors import ORDERS, SIGNED_IN, documented, invalid, not_found
from api.families import family
from api.idempotency import MaybeOnce, Once, OnlyOnce
from api.ids import new_id
from api.listing import LongPageOf, StoryPageOf, after_created, instant_of
from api.schemas.subscriptions import (
    CancelIn,
    ChangePlanIn,
    InstanceRef,
    OrderIn,
    PlanRef,
    QuoteOut,
    SubscriptionOut,
    TimelineOut,
    quote_out,
    subscription_out,
    timeline_out,
)
from api.serial import ORDERS as TURNS
from api.tokens import Caller
from db.models.catalogue import Plan
from db.queries import catalogue, idempotency, subscriptions
from db.queries.plan_changes import quote_change
from db.queries.subscriptions import SubscriptionRow
from db.queries.timeline_reads import timeline
from workflows import names
from workflows.client import Accepted, Orchestrator, Unavailable
from workflows.clock import SubscriptionClock
from workflows.ports.subscription import Cancel, ChangePlanOrder, Order, Subscribe, View
from workflows.rules.ids import derived
from workflows.rules.subscription import State

router = family("subscriptions", prefix="/subscriptions", responses=SIGNED_IN)

Id = Annotated[str, Path(max_length=100)]
ORDER_ROUTE = "POST /api/v1/subscriptions"


@router.post("", response_model=Envelope[SubscriptionOut], status_code=201, responses=ORDERS)
async def order(body: OrderIn, once: OnlyOnce, caller: Verified, units: UnitsOfWork, orders: Orders) -> Response:
    """Order a plan. 201 with the subscription; 202 where it is on its way but was not opened within three seconds."""

    async def orderable(session: AsyncSession) -> Plan:
        plan = await catalogue.plan(session, body.plan_id)
        if plan is None or not plan.service.published:
            raise not_found("plan")
        _check_parameters(plan.service.parameters_schema, body.parameters)
        return plan

    async def work(plan: Plan) -> Json:
        command = _subscribe(once, caller, plan, body)
        accepted = await orders.subscribe(command)
        row = await _read(units, command.subscription_id, caller)
        if row is None:
            return answer(
                _expected(command, plan, accepted), status=202, message="The order was accepted and is being opened."
            )
        return answer(subscription_out(row), status=201, message="Ordered.")

    return await once.after(orderable, work)


@router.get("", response_model=Page[SubscriptionOut])
async def subscriptions_of_the_account(
    session: Work, caller: SignedIn, page: LongPageOf, status: State | None = None
) -> Response:
    rows = await subscriptions.subscriptions(
        session, caller.organization_id, limit=page.limit + 1, after=after_created(page), status=status
    )
    shown, meta = page.cut([_Placed(row) for row in rows], "created_at", "id")
    return listed([subscription_out(placed.row) for placed in shown], meta, page.fields)


@router.get("/{subscription_id}", response_model=Envelope[SubscriptionOut])
async def subscription(
    subscription_id: Id, caller: SignedIn, units: UnitsOfWork, orders: Orders
) -> Envelope[SubscriptionOut]:
    row = await _read(units, subscription_id, caller)
    return ok(subscription_out(row) if row is not None else await _on_its_way(units, orders, subscription_id))


@router.post("/{subscription_id}/cancel", response_model=Envelope[SubscriptionOut])
async def cancel(
    subscription_id: Id, body: CancelIn, once: MaybeOnce, caller: SignedIn, units: UnitsOfWork, orders: Orders
) -> Response:
    """Now, or when the period that is paid for ends."""
    command = Cancel(order_id=order_id(once), actor=caller.user_id, at=body.at, reason=body.reason)
    return await _order(once, units, subscription_id, lambda: orders.cancel(subscription_id, command))


@router.post("/{subscription_id}/resume", response_model=Envelope[SubscriptionOut], responses=documented(402))
async def resume(
    subscription_id: Id, once: MaybeOnce, caller: SignedIn, units: UnitsOfWork, orders: Orders
) -> Response:
    """Take back a cancellation at the period's end, or go on after a pause: a new period begins and is charged now."""
    command = Order(order_id=order_id(once), actor=caller.user_id)
    return await _order(once, units, subscription_id, lambda: orders.resume(subscription_id, command))


@router.post("/{subscription_id}/pause", response_model=Envelope[SubscriptionOut])
async def pause(subscription_id: Id, once: MaybeOnce, caller: SignedIn, units: UnitsOfWork, orders: Orders) -> Response:
    """Nothing runs and nothing is billed until it is resumed; the data stays."""
    command = Order(order_id=order_id(once), actor=caller.user_id)
    return await _order(once, units, subscription_id, lambda: orders.pause(subscription_id, command))


@router.post("/{subscription_id}/retry-payment", response_model=Envelope[SubscriptionOut], responses=documented(402))
async def retry_payment(
    subscription_id: Id, once: MaybeOnce, caller: SignedIn, units: UnitsOfWork, orders: Orders
) -> Response:
    """Try to collect the open invoice now. It consumes none of the scheduled attempts."""
    command = Order(order_id=order_id(once), actor=caller.user_id)
    return await _order(once, units, subscription_id, lambda: orders.retry_payment(subscription_id, command))


@router.post("/{subscription_id}/change-plan/preview", response_model=Envelope[QuoteOut])
async def preview_plan_change(
    subscription_id: Id, body: ChangePlanIn, caller: SignedIn, units: UnitsOfWork, orders: Orders
) -> Envelope[QuoteOut]:
    """The exact lines that the change would invoice now; nothing is changed."""
    await _owned(units, subscription_id)
    # Read between two transactions: none is open while Temporal is asked.
    at = await SubscriptionClock(orders).now(subscription_id)
    async with units.begin() as session:
        row = await subscriptions.subscription(session, subscription_id, caller.organization_id)
        plan = await catalogue.plan(session, body.plan_id)
        if row is None or plan is None:
            raise not_found("plan")
        return ok(quote_out(await quote_change(session, row.subscription, plan, at=at, mode=body.mode)))


@router.post("/{subscription_id}/change-plan", response_model=Envelope[SubscriptionOut], responses=documented(402))
async def change_plan(
    subscription_id: Id, body: ChangePlanIn, once: MaybeOnce, caller: SignedIn, units: UnitsOfWork, orders: Orders
) -> Response:
    async with units.begin() as session:
        plan = await catalogue.plan(session, body.plan_id)
    if plan is None:
        raise not_found("plan")
    command = ChangePlanOrder(order_id=order_id(once), actor=caller.user_id, plan_id=plan.id, mode=body.mode)
    return await _order(once, units, subscription_id, lambda: orders.change_plan(subscription_id, command))


@router.get("/{subscription_id}/timeline", response_model=Page[TimelineOut])
async def story(session: Work, caller: SignedIn, subscription_id: Id, page: StoryPageOf) -> Response:
    """What happened, oldest first: the whole story, or a page of it where a ``limit`` is given."""
    if await subscriptions.subscription(session, subscription_id, caller.organization_id) is None:
        raise not_found("subscription")
    place = page.place(str, int)
    after = (instant_of(place[0]), place[1]) if place else None
    rows = await timeline(session, subscription_id, limit=page.limit + 1, after=after)
    shown, meta = page.cut(rows, "at", "id")
    return listed([timeline_out(event) for event in shown], meta, page.fields)


class _Placed:
    """A row with the attributes that its cursor is made of."""

    def __init__(self, row: SubscriptionRow) -> None:
        self.row = row
        self.id = row.subscription.id
        self.created_at = row.subscription.created_at


def order_id(once: Once) -> str:
    """The same for every try under one key, so that Temporal and the workflow recognise the order."""
    if once.key is None:
        return new_id("ord")
    return derived("ord", once.caller.organization_id, once.route, once.key)


async def _order(
    once: Once, units: Units, subscription_id: str, send: Callable[[], Awaitable[Accepted[View]]]
) -> Response:
    """Give an order to one's own subscription and answer with the subscription as it is then."""

    async def work() -> Json:
        await _owned(units, subscription_id)
        async with TURNS.of(subscription_id):
            await send()
        return answer(subscription_out(await _owned(units, subscription_id)))

    return await once(work)


async def _owned(units: Units, subscription_id: str) -> SubscriptionRow:
    row = await _read(units, subscription_id, units.caller)
    if row is None:
        raise not_found("subscription")
    return row


async def _read(units: Units, subscription_id: str, caller: Caller) -> SubscriptionRow | None:
    async with units.begin() as session:
        return await subscriptions.subscription(session, subscription_id, caller.organization_id)


async def _on_its_way(units: Units, orders: Orchestrator, subscription_id: str) -> SubscriptionOut:
    """An order that was answered 202 and has no row yet: what it was answered, as long as it may still come true."""
    async with units.begin() as session:
        kept = await idempotency.accepted_order(session, units.caller.organization_id, ORDER_ROUTE, subscription_id)
    if kept is None:
        raise not_found("subscription")
    try:
        under_way = await orders.is_running(names.subscription_workflow(subscription_id))
    except Unavailable:
        under_way = True
    if not under_way:
        raise not_found("subscription")
    return SubscriptionOut.model_validate(kept)


def _subscribe(once: Once, caller: Caller, plan: Plan, body: OrderIn) -> Subscribe:
    account, key = caller.organization_id, once.key or ""
    return Subscribe(
        subscription_id=derived("sub", account, key),
        instance_id=derived("ins", account, key),
        organization_id=account,
        user_id=caller.user_id,
        plan_id=plan.id,
        name=body.name,
        parameters_json=json.dumps(body.parameters, sort_keys=True),
        coupon=body.coupon.upper() if body.coupon else None,
        collection=body.collection,
        request_id=once.request_id,
    )


def _expected(command: Subscribe, plan: Plan, accepted: Accepted[View]) -> SubscriptionOut:
    """What is known of an order before its row is there."""
    return SubscriptionOut(
        id=command.subscription_id,
        status=State.PENDING,
        name=command.name,
        service=plan.service.slug,
        plan=PlanRef(id=plan.id, code=plan.code),
        pending_plan_id=None,
        price=None,
        instance=InstanceRef(id=command.instance_id, status="requested", url=None, hostname=None),
        current_period=None,
        trial_end=None,
        cancel_at_period_end=False,
        cancelled_at=None,
        delete_at=None,
        coupon=command.coupon,
        created_at=None,
        workflow_id=accepted.workflow_id,
    )


def _check_parameters(schema: dict[str, Any], parameters: dict[str, Any]) -> None:
    """Raises 422 with the first thing that is wrong; what was sent is not repeated."""
    error = next(iter(sorted(Draft202012Validator(schema).iter_errors(parameters), key=_place)), None)
    if error is None:
        return
    field = ".".join(["parameters", *(str(part) for part in error.absolute_path)])
    reason = {
        "additionalProperties": "There is no such parameter.",
        "required": "A required parameter is missing.",
        "pattern": "Not of the form that is wanted.",
        "type": f"Not of type {error.validator_value}.",
        "enum": "Not one of the values that are offered.",
    }.get(str(error.validator), f"Breaks the rule {error.validator}: {error.validator_value}.")
    raise invalid(field, reason)


def _place(error: Any) -> list[str]:
    return [str(part) for part in error.absolute_path]
