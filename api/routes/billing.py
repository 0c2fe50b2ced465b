"""The account's money: wallet, transactions, invoices. Reads only; ``payments`` takes the orders."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import Query
from starlette.responses import Response

from api.dependencies.authentication import AuthenticatedCaller
from api.dependencies.context import Workflows
from api.dependencies.transactions import Reads, Session, Transactions
from api.errors import AUTHENTICATED_RESPONSES, not_found_error
from api.pagination import FullPage, created_cursor
from api.response_envelope import Envelope, JsonResponse, Page, list_response, success
from api.router_factory import PathId, api_router
from api.schemas.billing import (
    ExplanationOut,
    InvoiceOut,
    TransactionOut,
    WalletOut,
    explanation_out,
    invoice_out,
    transaction_out,
)
from api.schemas.subscriptions import to_amount
from db.queries import billing_reads, invoice_documents, invoice_reads
from workflows.rules.invoice import InvoiceStatus

router = api_router("billing", prefix="/billing", responses=AUTHENTICATED_RESPONSES)

MAX_PAYMENTS_SHOWN = 100


@router.get("/wallet", response_model=Envelope[WalletOut])
async def wallet(
    reads: Reads,
) -> JsonResponse:
    """What can be spent and what is held, in the account's currency and in every other that it has had."""
    balances = await billing_reads.list_balances(reads, reads.organization_id)
    return success(
        WalletOut(
            balances=[to_amount(balance.available) for balance in balances],
            held=[to_amount(balance.held) for balance in balances],
        )
    )


@router.get("/transactions", response_model=Page[TransactionOut])
async def transactions(
    reads: Reads,
    page: FullPage,
    kind: Literal["top_up", "charge", "refund", "credit", "adjustment"] | None = None,
) -> Response:
    """Newest first. All of them sum to ``balances`` plus ``held``."""
    place = page.cursor_as(int)
    rows = await billing_reads.list_transactions(
        reads, reads.organization_id, limit=page.limit + 1, after=place[0] if place else None, kind=kind
    )
    items, meta = page.split_page(rows, "sequence_number")
    return list_response([transaction_out(row) for row in items], meta, page.fields)


@router.get("/invoices", response_model=Page[InvoiceOut])
async def invoices(
    reads: Reads,
    page: FullPage,
    subscription_id: Annotated[str | None, Query(max_length=100)] = None,
    status: InvoiceStatus | None = None,
) -> Response:
    rows = await invoice_reads.list_invoices(
        reads,
        reads.organization_id,
        limit=page.limit + 1,
        after=created_cursor(page),
        subscription_id=subscription_id,
        status=status,
    )
    items, meta = page.split_page(rows, "created_at", "id")
    return list_response([invoice_out(row) for row in items], meta, page.fields)


@router.get("/invoices/{invoice_id}", response_model=Envelope[InvoiceOut])
async def invoice(reads: Reads, invoice_id: PathId) -> JsonResponse:
    row = await invoice_reads.get_invoice(reads, invoice_id, reads.organization_id)
    if row is None:
        raise not_found_error("invoice")
    return success(invoice_out(row))


@router.get("/invoices/{invoice_id}/explain", response_model=Envelope[ExplanationOut])
async def explain(session: Session, caller: AuthenticatedCaller, invoice_id: PathId) -> JsonResponse:
    """Line by line why it costs what it costs, and what was tried to collect it."""
    result = await invoice_reads.get_invoice_with_payments(
        session, invoice_id, caller.organization_id, limit=MAX_PAYMENTS_SHOWN
    )
    if result is None:
        raise not_found_error("invoice")
    return success(explanation_out(result))


@router.get(
    "/invoices/{invoice_id}/pdf",
    response_class=Response,
    responses={200: {"content": {"application/pdf": {}}, "description": "The invoice as PDF"}},
)
async def pdf(
    invoice_id: PathId, caller: AuthenticatedCaller, transactions: Transactions, workflows: Workflows
) -> Response:
    """Return the stored PDF; render it first if there is none. A draft has no PDF (404)."""
    async with transactions.open() as session:
        stored = await invoice_documents.get_invoice_pdf(session, invoice_id, caller.organization_id)
    if stored is None:
        raise not_found_error("document")
    if stored.document is None:
        await workflows.render_invoice(invoice_id, caller.organization_id)
        async with transactions.open() as session:
            stored = await invoice_documents.get_invoice_pdf(session, invoice_id, caller.organization_id)
    if stored is None or stored.document is None:
        raise not_found_error("document")
    return Response(
        stored.document.content,
        media_type="application/pdf",
        headers={
            "Content-Disposition": f'attachment; filename="{stored.number}.pdf"',
            "ETag": f'"{stored.document.content_sha256}"',
        },
    )
