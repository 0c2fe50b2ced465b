"""What only administrators do: look across accounts, correct money, write the catalogue."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Query
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.responses import Response

from api.dependencies.authentication import get_administrator
from api.dependencies.context import Address, Workflows
from api.dependencies.transactions import AdminReads, AdminSession
from api.errors import AUTHENTICATED_RESPONSES, PAYMENT_RESPONSES, not_found_error
from api.idempotency import RequiredIdempotency
from api.pagination import FullPage, created_cursor
from api.response_envelope import Envelope, JsonResponse, Page, list_response, now, success
from api.router_factory import PathId, api_router
from api.schemas.admin import (
    AdjustmentIn,
    AdminOrganizationOut,
    AdminSubscriptionOut,
    AdminUserOut,
    AuditEntryOut,
    RefundIn,
    RefundOut,
    refund_out,
)
from api.schemas.billing import PaymentOut, TransactionOut, payment_out, transaction_out
from api.schemas.subscriptions import subscription_out, to_amount
from db.models.payments import Payment, Refund
from db.queries import admin_reads, billing_reads, identity, payment_reads, subscriptions
from db.queries.subscriptions import SubscriptionDetails
from db.reads import SessionReader
from workflows.ports.billing import AdjustWallet
from workflows.ports.refunds import RefundInput
from workflows.rules.money import Money
from workflows.rules.payment import PaymentStatus, RefundStatus
from workflows.rules.subscription import SubscriptionStatus

router = api_router(
    "admin", prefix="/admin", dependencies=[Depends(get_administrator)], responses=AUTHENTICATED_RESPONSES
)

FilterText = Annotated[str | None, Query(max_length=100)]


@router.post(
    "/billing/adjustments", response_model=Envelope[TransactionOut], status_code=201, responses=PAYMENT_RESPONSES
)
async def adjust(body: AdjustmentIn, once: RequiredIdempotency, workflows: Workflows, host: Address) -> Response:
    """Correct a wallet. Its balance cannot become negative (402)."""
    caller = once.caller

    async def prepare(session: AsyncSession) -> None:
        if await identity.get_organization(session, body.organization_id) is None:
            raise not_found_error("organization")

    async def send(_: None) -> str:
        return await workflows.adjust_wallet(
            AdjustWallet(
                adjustment_id=once.derive_id("adj"),
                organization_id=body.organization_id,
                amount=Money(amount_minor=body.amount_minor, currency=body.currency),
                reason=body.reason,
                actor=caller.user_id,
                request_id=once.request_id,
                address=host,
                now=now(),
            )
        )

    async def present(session: AsyncSession, _: None, transaction_id: str) -> JsonResponse:
        rows = await billing_reads.list_transactions(
            SessionReader(session), body.organization_id, limit=1, transaction_id=transaction_id
        )
        if not rows:
            raise not_found_error("transaction")
        return success(transaction_out(rows[0]), status=201, message="Adjusted.")

    return await once.run_and_present(prepare, send, present, as_administrator=True)


@router.post(
    "/billing/refunds",
    response_model=Envelope[RefundOut],
    status_code=201,
    responses=PAYMENT_RESPONSES
    | {202: {"model": Envelope[RefundOut], "description": "Accepted; the gateway has not decided yet."}},
)
async def refund(body: RefundIn, once: RequiredIdempotency, workflows: Workflows, host: Address) -> Response:
    """Refund a payment in whole or in part, through its gateway or to the wallet. 202 while the gateway decides."""
    caller, refund_id = once.caller, once.derive_id("ref")

    async def prepare(session: AsyncSession) -> tuple[Payment, Refund | None]:
        rows = await payment_reads.get_payment_with_refund(session, body.payment_id, refund_id)
        if rows is None:
            raise not_found_error("payment")
        return rows

    async def work(rows: tuple[Payment, Refund | None]) -> JsonResponse:
        payment, earlier = rows
        if earlier is not None and earlier.status != RefundStatus.PENDING:
            return _refund_response(refund_out(earlier))
        amount = None
        if body.amount_minor is not None:
            amount = Money(amount_minor=body.amount_minor, currency=payment.currency)
        accepted = await workflows.refund_payment(
            RefundInput(
                refund_id=refund_id,
                payment_id=payment.id,
                organization_id=payment.organization_id,
                amount=amount,
                destination=body.to,
                reason=body.reason,
                actor=caller.user_id,
                request_id=once.request_id,
                address=host,
            )
        )
        if accepted.result is not None:
            amount = accepted.result.amount
        elif amount is None:
            remaining = payment.captured_minor - payment.refunded_minor
            amount = Money(amount_minor=remaining, currency=payment.currency)
        return _refund_response(
            RefundOut(
                id=refund_id,
                payment_id=payment.id,
                status=accepted.result.status if accepted.result is not None else RefundStatus.PENDING,
                amount=to_amount(amount),
                to=body.to,
                reason=body.reason,
                failure_code=accepted.result.failure_code if accepted.result is not None else None,
                workflow_id=accepted.workflow_id,
            )
        )

    return await once.run(prepare, work, as_administrator=True)


@router.get("/billing/refunds/{refund_id}", response_model=Envelope[RefundOut])
async def get_refund(session: AdminSession, refund_id: PathId) -> JsonResponse:
    row = await payment_reads.get_refund(session, refund_id)
    if row is None:
        raise not_found_error("refund")
    return success(refund_out(row))


@router.get("/billing/transactions", response_model=Page[TransactionOut])
async def transactions(
    reads: AdminReads, page: FullPage, organization_id: Annotated[str, Query(max_length=100)]
) -> Response:
    """One account's, newest first."""
    place = page.cursor_as(int)
    rows = await billing_reads.list_transactions(
        reads, organization_id, limit=page.limit + 1, after=place[0] if place else None
    )
    items, meta = page.split_page(rows, "sequence_number")
    return list_response([transaction_out(row) for row in items], meta, page.fields)


@router.get("/payments", response_model=Page[PaymentOut])
async def payments(
    reads: AdminReads, page: FullPage, organization_id: FilterText = None, status: PaymentStatus | None = None
) -> Response:
    rows = await payment_reads.list_payments(
        reads, organization_id, limit=page.limit + 1, after=created_cursor(page), status=status
    )
    items, meta = page.split_page(rows, "created_at", "id")
    return list_response([payment_out(row) for row in items], meta, page.fields)


@router.get("/users", response_model=Page[AdminUserOut])
async def users(session: AdminSession, page: FullPage, email: FilterText = None) -> Response:
    rows = await admin_reads.list_users(session, limit=page.limit + 1, after=created_cursor(page), email=email)
    items, meta = page.split_page(rows, "created_at", "id")
    return list_response([AdminUserOut.model_validate(row) for row in items], meta, page.fields)


@router.get("/organizations", response_model=Page[AdminOrganizationOut])
async def organizations(session: AdminSession, page: FullPage) -> Response:
    rows = await admin_reads.list_organizations(session, limit=page.limit + 1, after=created_cursor(page))
    items, meta = page.split_page(rows, "created_at", "id")
    return list_response([AdminOrganizationOut.model_validate(row) for row in items], meta, page.fields)


@router.get("/subscriptions", response_model=Page[AdminSubscriptionOut])
async def list_subscriptions(
    reads: AdminReads, page: FullPage, organization_id: FilterText = None, status: SubscriptionStatus | None = None
) -> Response:
    rows = await subscriptions.list_subscriptions(
        reads, organization_id, limit=page.limit + 1, after=created_cursor(page), status=status
    )
    items, meta = page.split_page(rows, "created_at", "id")
    return list_response([_subscription(row) for row in items], meta, page.fields)


@router.get("/audit-log", response_model=Page[AuditEntryOut])
async def list_audit_entries(
    session: AdminSession,
    page: FullPage,
    organization_id: FilterText = None,
    actor: FilterText = None,
    action: FilterText = None,
    object_id: Annotated[str | None, Query(max_length=100, alias="object")] = None,
) -> Response:
    """Return what was done, newest first: `actor` is a user's id, `object` the id of what was changed."""
    place = page.cursor_as(int)
    rows = await admin_reads.list_audit_entries(
        session,
        limit=page.limit + 1,
        after=place[0] if place else None,
        organization_id=organization_id,
        actor=actor,
        action=action,
        object=object_id,
    )
    items, meta = page.split_page(rows, "id")
    return list_response([AuditEntryOut.model_validate(row) for row in items], meta, page.fields)


def _refund_response(refund: RefundOut) -> JsonResponse:
    """Return 202 for a refund that the gateway has not decided: a retry under the same key asks again."""
    if refund.status == RefundStatus.PENDING:
        return success(refund, status=202, message="Accepted; poll the refund for its status.", is_final=False)
    message = "The refund failed." if refund.status == RefundStatus.FAILED else "Refunded."
    return success(refund, status=201, message=message)


def _subscription(row: SubscriptionDetails) -> AdminSubscriptionOut:
    return {**subscription_out(row), "organization_id": row.organization_id}
