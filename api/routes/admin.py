"""What only administrators do: look across accounts, correct money, write the catalogue."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Query
from starlette.responses import Response

from api.deps import Administrator, AdminWork, Orders, UnitsOfWork, administrator
from api.envelope import Amount, Envelope, Json, Page, answer, listed, now
from api.errors import ORDERS, SIGNED_IN, not_found
from api.families import family
from api.idempotency import OnlyOnce
from api.listing import LongPageOf, after_created
from api.schemas.admin import (
    AdjustmentIn,
    AuditRow,
    OrganizationRow,
    RefundIn,
    RefundOut,
    SubscriptionRowOut,
    UserRow,
)
from api.schemas.billing import PaymentOut, TransactionOut, payment_out, transaction_out
from api.schemas.subscriptions import subscription_out
from db.queries import admin_reads, billing_reads, identity, payment_reads, subscriptions
from db.queries.subscriptions import SubscriptionRow
from workflows import names
from workflows.ports.billing import AccountAdjustment
from workflows.ports.payments import RefundOrder
from workflows.rules.ids import derived
from workflows.rules.money import Money
from workflows.rules.payment import PaymentStatus
from workflows.rules.subscription import State

router = family("admin", prefix="/admin", dependencies=[Depends(administrator)], responses=SIGNED_IN)

Text = Annotated[str | None, Query(max_length=100)]


@router.post("/billing/adjustments", response_model=Envelope[TransactionOut], status_code=201, responses=ORDERS)
async def adjust(body: AdjustmentIn, once: OnlyOnce, units: UnitsOfWork, orders: Orders) -> Response:
    """Correct a wallet; it never falls below zero (402)."""
    caller = once.caller

    async def work() -> Json:
        async with units.begin(as_administrator=True) as session:
            if await identity.organization(session, body.organization_id) is None:
                raise not_found("organization")
        transaction = await orders.adjust(
            AccountAdjustment(
                adjustment_id=derived("adj", caller.organization_id, once.key or ""),
                organization_id=body.organization_id,
                amount=Money(amount_minor=body.amount_minor, currency=body.currency),
                reason=body.reason,
                actor=caller.user_id,
                request_id=once.request_id,
                now=now(),
            )
        )
        async with units.begin(as_administrator=True) as session:
            rows = await billing_reads.transactions(session, body.organization_id, limit=1, identifier=transaction)
        if not rows:
            raise not_found("transaction")
        return answer(transaction_out(rows[0]), status=201, message="Adjusted.")

    return await once(work)


@router.post("/billing/refunds", response_model=Envelope[RefundOut], status_code=201, responses=ORDERS)
async def refund(body: RefundIn, once: OnlyOnce, units: UnitsOfWork, orders: Orders) -> Response:
    """Give back what a payment brought, in whole or in part, through its gateway or to the wallet."""
    caller = once.caller

    async def work() -> Json:
        async with units.begin(as_administrator=True) as session:
            payment = await payment_reads.payment(session, body.payment_id, None)
        if payment is None:
            raise not_found("payment")
        amount = None
        if body.amount_minor is not None:
            amount = Money(amount_minor=body.amount_minor, currency=payment.currency)
        refund_id = derived("ref", caller.organization_id, once.key or "")
        made = await orders.refund(
            RefundOrder(
                refund_id=refund_id,
                payment_id=payment.id,
                organization_id=payment.organization_id,
                amount=amount,
                to=body.to,
                reason=body.reason,
                actor=caller.user_id,
                request_id=once.request_id,
            )
        )
        shown = RefundOut(
            id=refund_id,
            payment_id=payment.id,
            status=made.status,
            amount=Amount(amount_minor=made.amount.amount_minor, currency=made.amount.currency),
            to=body.to,
            reason=body.reason,
            workflow_id=names.refund_workflow(refund_id),
        )
        return answer(shown, status=201, message="Refunded.")

    return await once(work)


@router.get("/billing/transactions", response_model=Page[TransactionOut])
async def transactions(
    session: AdminWork, page: LongPageOf, organization_id: Annotated[str, Query(max_length=100)]
) -> Response:
    """One account's, newest first."""
    place = page.place(int)
    rows = await billing_reads.transactions(
        session, organization_id, limit=page.limit + 1, after=place[0] if place else None
    )
    shown, meta = page.cut([_Sequenced(row) for row in rows], "sequence")
    return listed([transaction_out(placed.row) for placed in shown], meta, page.fields)


@router.get("/payments", response_model=Page[PaymentOut])
async def payments(
    session: AdminWork, page: LongPageOf, organization_id: Text = None, status: PaymentStatus | None = None
) -> Response:
    rows = await payment_reads.payments_of(
        session, organization_id, limit=page.limit + 1, after=after_created(page), status=status
    )
    shown, meta = page.cut(rows, "created_at", "id")
    return listed([payment_out(row) for row in shown], meta, page.fields)


@router.get("/users", response_model=Page[UserRow])
async def users(session: AdminWork, page: LongPageOf, email: Text = None) -> Response:
    rows = await admin_reads.users(session, limit=page.limit + 1, after=after_created(page), email=email)
    shown, meta = page.cut(rows, "created_at", "id")
    return listed([UserRow.model_validate(row) for row in shown], meta, page.fields)


@router.get("/organizations", response_model=Page[OrganizationRow])
async def organizations(session: AdminWork, page: LongPageOf) -> Response:
    rows = await admin_reads.organizations(session, limit=page.limit + 1, after=after_created(page))
    shown, meta = page.cut(rows, "created_at", "id")
    return listed([OrganizationRow.model_validate(row) for row in shown], meta, page.fields)


@router.get("/subscriptions", response_model=Page[SubscriptionRowOut])
async def every_subscription(
    session: AdminWork, page: LongPageOf, organization_id: Text = None, status: State | None = None
) -> Response:
    rows = await subscriptions.subscriptions(
        session, organization_id, limit=page.limit + 1, after=after_created(page), status=status
    )
    shown, meta = page.cut([_Created(row) for row in rows], "created_at", "id")
    return listed([_subscription(placed.row) for placed in shown], meta, page.fields)


@router.get("/audit-log", response_model=Page[AuditRow])
async def audit_log(
    session: AdminWork, caller: Administrator, page: LongPageOf, organization_id: Text = None, actor: Text = None
) -> Response:
    """Newest first."""
    place = page.place(int)
    rows = await admin_reads.audit_log(
        session,
        limit=page.limit + 1,
        after=place[0] if place else None,
        organization_id=organization_id,
        actor=actor,
    )
    shown, meta = page.cut(rows, "id")
    return listed([AuditRow.model_validate(row) for row in shown], meta, page.fields)


class _Sequenced:
    """A transaction with the attribute that its cursor is made of."""

    def __init__(self, row: billing_reads.TransactionRow) -> None:
        self.row = row
        self.sequence = row.transaction.sequence


class _Created:
    """A subscription with the attributes that its cursor is made of."""

    def __init__(self, row: SubscriptionRow) -> None:
        self.row = row
        self.id = row.subscription.id
        self.created_at = row.subscription.created_at


def _subscription(row: SubscriptionRow) -> SubscriptionRowOut:
    shown = subscription_out(row).model_dump()
    return SubscriptionRowOut(**shown, organization_id=row.subscription.organization_id)
