"""Orders of money: top-ups and cards on file. Each is a workflow's work; the rest is read from the database."""

from __future__ import annotations

import re
from typing import Annotated

from fastapi import Path, Query
from starlette.responses import Response

from api.deps import Orders, SignedIn, Units, UnitsOfWork, Work
from api.envelope import Amount, Envelope, Json, Page, answer, listed, ok
from api.errors import ORDERS, SIGNED_IN, ApiError, documented, invalid, not_found
from api.families import family
from api.idempotency import MaybeOnce, Once, OnlyOnce
from api.ids import new_id
from api.listing import LongPageOf, after_created
from api.schemas.billing import (
    PaymentMethodIn,
    PaymentMethodOut,
    PaymentOut,
    TopUpIn,
    payment_method_out,
    payment_out,
)
from db.models.payments import Payment
from db.queries import payment_reads
from db.queries import payments as payment_queries
from workflows.client import Accepted
from workflows.ports.payments import AddPaymentMethod, Pay, PaymentOutcome, Purpose, RemovePaymentMethod
from workflows.rules.currencies import require_chargeable
from workflows.rules.errors import Refusal
from workflows.rules.ids import derived
from workflows.rules.money import Money
from workflows.rules.payment import PaymentStatus

router = family("billing", responses=SIGNED_IN)

Id = Annotated[str, Path(max_length=100)]
GATEWAYS = frozenset({"stripe"})
NOT_PAID = frozenset({PaymentStatus.FAILED, PaymentStatus.EXPIRED, PaymentStatus.CANCELLED})
OUR_METHOD = re.compile(r"pm_[a-z2-7]{24}")
"""The form of our own ids of cards; the gateways' tokens look otherwise."""


@router.post("/billing/topups", response_model=Envelope[PaymentOut], status_code=201, responses=ORDERS)
@router.post(
    "/payments/create-intent", response_model=Envelope[PaymentOut], status_code=201, responses=ORDERS,
    name="create_intent",
)  # fmt: skip
async def top_up(body: TopUpIn, once: OnlyOnce, units: UnitsOfWork, orders: Orders) -> Response:
    """Add to the wallet by card. 201 once it is paid or waits for the customer; 402 when the card is declined."""

    async def work() -> Json:
        command = await _pay(body, once, units)
        accepted = await orders.top_up(command)
        row = await _row(units, command)
        shown = payment_out(row) if row is not None else _expected(command, accepted)
        status = PaymentStatus(accepted.outcome.status if accepted.outcome else shown.status)
        if status in NOT_PAID:
            raise _declined(command, accepted.outcome.decline_code if accepted.outcome else shown.decline_code)
        if accepted.outcome is not None:
            redirect = accepted.outcome.redirect_url
            shown = shown.model_copy(update={"status": status, "redirect_url": redirect or shown.redirect_url})
        known = accepted.outcome is not None or row is not None
        message = "Topped up." if status is PaymentStatus.SUCCEEDED else "It is on its way."
        return answer(shown, status=201 if known else 202, message=message)

    return await once(work)


@router.get("/billing/payments", response_model=Page[PaymentOut])
async def payments(
    session: Work,
    caller: SignedIn,
    page: LongPageOf,
    subscription_id: Annotated[str | None, Query(max_length=100)] = None,
    status: PaymentStatus | None = None,
) -> Response:
    rows = await payment_reads.payments_of(
        session,
        caller.organization_id,
        limit=page.limit + 1,
        after=after_created(page),
        subscription_id=subscription_id,
        status=status,
    )
    shown, meta = page.cut(rows, "created_at", "id")
    return listed([payment_out(row) for row in shown], meta, page.fields)


@router.get("/billing/payments/{payment_id}", response_model=Envelope[PaymentOut])
async def payment(session: Work, caller: SignedIn, payment_id: Id) -> Envelope[PaymentOut]:
    found = await payment_reads.payment(session, payment_id, caller.organization_id)
    if found is None:
        raise not_found("payment")
    return ok(payment_out(found))


@router.get("/billing/payment-methods", response_model=Page[PaymentMethodOut])
async def payment_methods(session: Work, caller: SignedIn, page: LongPageOf) -> Response:
    """The default first, then the backups in the order in which they are tried."""
    rows = await payment_queries.methods(session, caller.organization_id)
    place = page.place(str)
    skip = next((index for index, row in enumerate(rows, 1) if place and row.id == place[0]), 0)
    shown, meta = page.cut(rows[skip:], "id")
    return listed([payment_method_out(row) for row in shown], meta, page.fields)


@router.post(
    "/billing/payment-methods", response_model=Envelope[PaymentMethodOut], status_code=201, responses=documented(402)
)
async def add_payment_method(body: PaymentMethodIn, once: MaybeOnce, orders: Orders) -> Response:
    """Save a card at its gateway and put it on file. Open debts try it at once."""

    async def work() -> Json:
        _check_gateway(body.gateway)
        account = once.caller.organization_id
        added = await orders.add_payment_method(
            AddPaymentMethod(
                payment_method_id=derived("pm", account, once.key) if once.key is not None else new_id("pm"),
                organization_id=account,
                gateway=body.gateway,
                token=body.token,
                default=body.default,
                actor=once.caller.user_id,
                request_id=once.request_id,
            )
        )
        shown = PaymentMethodOut(
            id=added.payment_method_id,
            gateway=body.gateway,
            brand=added.brand,
            last4=added.last4,
            expires=added.expires,
            default=added.default,
        )
        return answer(shown, status=201, message="The card is on file.")

    return await once(work)


@router.post("/billing/payment-methods/{payment_method_id}/default", response_model=Envelope[PaymentMethodOut])
async def make_default(session: Work, caller: SignedIn, payment_method_id: Id) -> Envelope[PaymentMethodOut]:
    """Charge this card first from now on."""
    found = await payment_reads.make_default(session, payment_method_id, caller.organization_id)
    if found is None:
        raise not_found("payment method")
    return ok(payment_method_out(found))


@router.delete("/billing/payment-methods/{payment_method_id}", response_model=Envelope[None])
async def remove_payment_method(
    payment_method_id: Id, once: MaybeOnce, units: UnitsOfWork, orders: Orders
) -> Envelope[None]:
    """Take a card off file. The last one stays as long as a debt is open (409)."""
    account = once.caller.organization_id
    async with units.begin() as session:
        if await payment_queries.method(session, payment_method_id, account) is None:
            raise not_found("payment method")
    await orders.remove_payment_method(
        RemovePaymentMethod(
            payment_method_id=payment_method_id,
            organization_id=account,
            actor=once.caller.user_id,
            request_id=once.request_id,
        )
    )
    return ok(None, "The card is no longer on file.")


def _check_gateway(gateway: str) -> None:
    if gateway not in GATEWAYS:
        raise invalid("gateway", f"Not one of {', '.join(sorted(GATEWAYS))}.")


async def _pay(body: TopUpIn, once: Once, units: Units) -> Pay:
    """Build the order. Raises 422 for what cannot be charged, 404 for a card that is not the account's."""
    _check_gateway(body.gateway)
    amount = Money(amount_minor=body.amount_minor, currency=body.currency)
    require_chargeable(amount)
    account, given = once.caller.organization_id, body.payment_method
    async with units.begin() as session:
        if given is None:
            on_file = next(iter(await payment_queries.methods(session, account)), None)
            if on_file is None:
                raise invalid("payment_method", "There is no card on file; name one.")
        else:
            on_file = await payment_queries.method(session, given, account)
            if on_file is None and OUR_METHOD.fullmatch(given):
                raise not_found("payment method")
    return Pay(
        payment_id=derived("pay", account, once.key or ""),
        organization_id=account,
        amount=amount,
        gateway=body.gateway,
        purpose=Purpose.TOP_UP,
        payment_method_id=on_file.id if on_file is not None else None,
        token=given if on_file is None else None,
        actor=once.caller.user_id,
        request_id=once.request_id,
    )


async def _row(units: Units, command: Pay) -> Payment | None:
    async with units.begin() as session:
        return await payment_reads.payment(session, command.payment_id, command.organization_id)


def _expected(command: Pay, accepted: Accepted[PaymentOutcome]) -> PaymentOut:
    """What is known of a payment before its row is there."""
    nothing = Amount(amount_minor=0, currency=command.amount.currency)
    return PaymentOut(
        id=command.payment_id,
        status=accepted.outcome.status if accepted.outcome else PaymentStatus.PENDING,
        amount=Amount(amount_minor=command.amount.amount_minor, currency=command.amount.currency),
        gateway=command.gateway,
        purpose=command.purpose,
        refunded=nothing,
        redirect_url=accepted.outcome.redirect_url if accepted.outcome else None,
        decline_code=None,
        payment_method_id=command.payment_method_id,
        subscription_id=None,
        invoice_id=None,
        created_at=None,
        workflow_id=accepted.workflow_id,
    )


def _declined(command: Pay, code: str | None) -> ApiError:
    details = {"payment_id": command.payment_id, "decline_code": code or "declined"}
    return ApiError(402, Refusal.PAYMENT_DECLINED.value, "The card was declined.", details)
