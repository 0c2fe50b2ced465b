"""Top-ups and payment methods. Changes are workflows; reads come from the database."""

from __future__ import annotations

import re
from typing import Annotated

from fastapi import Query
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.responses import Response

from api.card_tries import CardTries
from api.dependencies.authentication import AuthenticatedCaller
from api.dependencies.context import Address, Workflows
from api.dependencies.transactions import Reads, Session
from api.errors import (
    AUTHENTICATED_RESPONSES,
    PAYMENT_RESPONSES,
    ApiError,
    error_responses,
    not_found_error,
    validation_error,
)
from api.idempotency import IdempotentRequest, OptionalIdempotency, RequiredIdempotency
from api.pagination import FullPage, created_cursor
from api.response_envelope import Amount, Envelope, JsonResponse, Page, list_response, success
from api.router_factory import PathId, api_router
from api.schemas.billing import (
    PaymentMethodIn,
    PaymentMethodOut,
    PaymentOut,
    TopUpIn,
    payment_method_out,
    payment_out,
)
from db.models.payments import PaymentMethod
from db.queries import payment_reads
from db.queries import payments as payment_queries
from db.reads import SessionReader
from workflows.client import UpdateResult
from workflows.ports.payments import (
    AddPaymentMethod,
    MakePaymentMethodDefault,
    PaymentInput,
    PaymentOutcome,
    Purpose,
    RemovePaymentMethod,
    payment_input_from_record,
)
from workflows.rules.currencies import require_chargeable
from workflows.rules.errors import ErrorCode, RuleViolation
from workflows.rules.money import Money
from workflows.rules.payment import PaymentStatus

router = api_router("billing", responses=AUTHENTICATED_RESPONSES)

GATEWAYS = frozenset({"stripe"})
UNPAID_STATUSES = frozenset({PaymentStatus.FAILED, PaymentStatus.EXPIRED, PaymentStatus.CANCELLED})
PAYMENT_METHOD_ID = re.compile(r"pm_[a-z2-7]{24}")
"""The form of our ids of payment methods; a gateway's tokens have another."""


@router.post("/billing/topups", response_model=Envelope[PaymentOut], status_code=201, responses=PAYMENT_RESPONSES)
@router.post(
    "/payments/create-intent", response_model=Envelope[PaymentOut], status_code=201, responses=PAYMENT_RESPONSES,
    name="create_intent",
)  # fmt: skip
async def top_up(body: TopUpIn, once: RequiredIdempotency, workflows: Workflows, address: Address) -> Response:
    """Charge a payment method and credit the wallet. 201 once it succeeded or needs the customer; 402 if declined."""
    tries = CardTries(once.ctx, once.caller, address)

    async def prepare(session: AsyncSession) -> PaymentInput:
        await tries.read_declined(session)
        return await _payment_input(body, once, session)

    async def send(command: PaymentInput) -> UpdateResult[PaymentOutcome]:
        await tries.require_left()
        accepted = await workflows.start_top_up(command)
        if accepted.result is not None and accepted.result.status in UNPAID_STATUSES:
            await tries.count_declined_payment(command.payment_id)
        return accepted

    async def present(
        session: AsyncSession, command: PaymentInput, accepted: UpdateResult[PaymentOutcome]
    ) -> JsonResponse:
        row = await payment_reads.get_payment(SessionReader(session), command.payment_id, command.organization_id)
        payment = payment_out(row) if row is not None else _provisional_payment(command, accepted)
        status = PaymentStatus(accepted.result.status if accepted.result else payment.status)
        if status in UNPAID_STATUSES:
            raise _declined_error(command, accepted.result.decline_code if accepted.result else payment.decline_code)
        if accepted.result is not None:
            redirect = accepted.result.redirect_url
            payment = payment.model_copy(update={"status": status, "redirect_url": redirect or payment.redirect_url})
        is_known = accepted.result is not None or row is not None
        message = "Top-up succeeded." if status is PaymentStatus.SUCCEEDED else "Top-up is being processed."
        return success(payment, status=201 if is_known else 202, message=message, is_final=accepted.result is not None)

    return await once.run_and_present(prepare, send, present)


@router.get("/billing/payments", response_model=Page[PaymentOut])
async def payments(
    reads: Reads,
    page: FullPage,
    subscription_id: Annotated[str | None, Query(max_length=100)] = None,
    status: PaymentStatus | None = None,
) -> Response:
    rows = await payment_reads.list_payments(
        reads,
        reads.organization_id,
        limit=page.limit + 1,
        after=created_cursor(page),
        subscription_id=subscription_id,
        status=status,
    )
    items, meta = page.split_page(rows, "created_at", "id")
    return list_response([payment_out(row) for row in items], meta, page.fields)


@router.get("/billing/payments/{payment_id}", response_model=Envelope[PaymentOut])
async def payment(reads: Reads, payment_id: PathId) -> JsonResponse:
    row = await payment_reads.get_payment(reads, payment_id, reads.organization_id)
    if row is None:
        raise not_found_error("payment")
    return success(payment_out(row))


@router.get("/billing/payment-methods", response_model=Page[PaymentMethodOut])
async def payment_methods(session: Session, caller: AuthenticatedCaller, page: FullPage) -> Response:
    """Return the default first, then the backups in the order in which they are charged."""
    rows = await payment_queries.list_payment_methods(session, caller.organization_id)
    place = page.cursor_as(str)
    skip = next((index for index, row in enumerate(rows, 1) if place and row.id == place[0]), 0)
    items, meta = page.split_page(rows[skip:], "id")
    return list_response([payment_method_out(row) for row in items], meta, page.fields)


@router.post(
    "/billing/payment-methods",
    response_model=Envelope[PaymentMethodOut],
    status_code=201,
    responses=error_responses(402),
)
async def add_payment_method(
    body: PaymentMethodIn, once: OptionalIdempotency, workflows: Workflows, address: Address
) -> Response:
    """Save a card at its gateway. Open invoices are collected with it at once."""
    tries = CardTries(once.ctx, once.caller, address)

    async def work(_: None) -> JsonResponse:
        _check_gateway(body.gateway)
        await tries.require_left()
        account = once.caller.organization_id
        command = AddPaymentMethod(
            payment_method_id=once.derive_id("pm"),
            organization_id=account,
            gateway=body.gateway,
            token=body.token,
            default=body.default,
            actor=once.caller.user_id,
            request_id=once.request_id,
        )
        try:
            added = await workflows.add_payment_method(command)
        except RuleViolation as violation:
            if violation.code is ErrorCode.PAYMENT_DECLINED:
                await tries.count_declined()
            raise
        method = PaymentMethodOut(
            id=added.payment_method_id,
            gateway=body.gateway,
            brand=added.brand,
            last4=added.last4,
            expires=added.expires,
            default=added.default,
        )
        return success(method, status=201, message="Card added.")

    return await once.run(tries.read_declined, work)


@router.post("/billing/payment-methods/{payment_method_id}/default", response_model=Envelope[PaymentMethodOut])
async def set_default_payment_method(
    payment_method_id: PathId, once: OptionalIdempotency, workflows: Workflows
) -> Response:
    """Charge this payment method first. Open invoices are collected with it at once."""
    organization_id = once.caller.organization_id

    async def prepare(session: AsyncSession) -> None:
        await _require_own_payment_method(session, payment_method_id, organization_id)

    async def send(_: None) -> None:
        await workflows.make_payment_method_default(
            MakePaymentMethodDefault(
                default_change_id=once.derive_id("default"),
                payment_method_id=payment_method_id,
                organization_id=organization_id,
                actor=once.caller.user_id,
                request_id=once.request_id,
            )
        )

    async def present(session: AsyncSession, _: None, __: None) -> JsonResponse:
        return success(
            payment_method_out(await _require_own_payment_method(session, payment_method_id, organization_id))
        )

    return await once.run_and_present(prepare, send, present)


@router.delete("/billing/payment-methods/{payment_method_id}", response_model=Envelope[None])
async def remove_payment_method(payment_method_id: PathId, once: OptionalIdempotency, workflows: Workflows) -> Response:
    """Remove a payment method. The last one cannot be removed while an invoice is open (409)."""
    organization_id = once.caller.organization_id

    async def prepare(session: AsyncSession) -> None:
        if not once.is_retry:
            await _require_own_payment_method(session, payment_method_id, organization_id)

    async def work(_: None) -> JsonResponse:
        await workflows.remove_payment_method(
            RemovePaymentMethod(
                payment_method_id=payment_method_id,
                organization_id=organization_id,
                actor=once.caller.user_id,
                request_id=once.request_id,
            )
        )
        return success(None, message="Card removed.")

    return await once.run(prepare, work)


async def _require_own_payment_method(
    session: AsyncSession, payment_method_id: str, organization_id: str
) -> PaymentMethod:
    method = await payment_queries.get_payment_method(session, payment_method_id, organization_id)
    if method is None:
        raise not_found_error("payment method")
    return method


def _check_gateway(gateway: str) -> None:
    if gateway not in GATEWAYS:
        raise validation_error("gateway", f"Unknown gateway. Supported: {', '.join(sorted(GATEWAYS))}.")


async def _payment_input(body: TopUpIn, once: IdempotentRequest, session: AsyncSession) -> PaymentInput:
    """Return the payment's input. Raises 422 for an amount that no gateway charges, 404 for an unknown card."""
    _check_gateway(body.gateway)
    amount = Money(amount_minor=body.amount_minor, currency=body.currency)
    require_chargeable(amount)
    account, requested_method = once.caller.organization_id, body.payment_method
    if once.is_retry:
        recorded = await payment_reads.get_payment(SessionReader(session), once.derive_id("pay"), account)
        if recorded is not None:
            # Its workflow runs or has ended: the cards that are on file today no longer matter.
            return payment_input_from_record(payment_queries.to_payment_record(recorded))
    if requested_method is None:
        on_file = next(iter(await payment_queries.list_payment_methods(session, account)), None)
        if on_file is None:
            raise validation_error("payment_method", "No saved card. Send `payment_method`.")
    else:
        on_file = await payment_queries.get_payment_method(session, requested_method, account)
        if on_file is None and PAYMENT_METHOD_ID.fullmatch(requested_method):
            raise not_found_error("payment method")
    return PaymentInput(
        payment_id=once.derive_id("pay"),
        organization_id=account,
        amount=amount,
        gateway=body.gateway,
        purpose=Purpose.TOP_UP,
        payment_method_id=on_file.id if on_file is not None else None,
        gateway_token=requested_method if on_file is None else None,
        actor=once.caller.user_id,
        request_id=once.request_id,
    )


def _provisional_payment(command: PaymentInput, accepted: UpdateResult[PaymentOutcome]) -> PaymentOut:
    """Return an accepted payment whose row does not exist yet."""
    zero = Amount(amount_minor=0, currency=command.amount.currency)
    return PaymentOut(
        id=command.payment_id,
        status=accepted.result.status if accepted.result else PaymentStatus.PENDING,
        amount=Amount(amount_minor=command.amount.amount_minor, currency=command.amount.currency),
        gateway=command.gateway,
        purpose=command.purpose,
        refunded=zero,
        redirect_url=accepted.result.redirect_url if accepted.result else None,
        decline_code=None,
        payment_method_id=command.payment_method_id,
        subscription_id=None,
        invoice_id=None,
        created_at=None,
        workflow_id=accepted.workflow_id,
    )


def _declined_error(command: PaymentInput, code: str | None) -> ApiError:
    details = {"payment_id": command.payment_id, "decline_code": code or "declined"}
    return ApiError(402, ErrorCode.PAYMENT_DECLINED.value, "The card was declined.", details)
