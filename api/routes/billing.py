"""The account's money: wallet, transactions, invoices. Reads only; ``payments`` takes the orders."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import Path, Query
from starlette.responses import Response

from api.deps import Orders, SignedIn, UnitsOfWork, Work
from api.envelope import Amount, Envelope, Page, listed, ok
from api.errors import SIGNED_IN, not_found
from api.families import family
from api.listing import LongPageOf, after_created
from api.schemas.billing import (
    ExplanationOut,
    InvoiceOut,
    TransactionOut,
    WalletOut,
    explanation_out,
    invoice_out,
    payment_out,
    transaction_out,
)
from db.queries import billing_reads, documents, identity, payment_reads
from db.queries.billing_reads import TransactionRow
from workflows.rules.invoice import InvoiceStatus

router = family("billing", prefix="/billing", responses=SIGNED_IN)

Id = Annotated[str, Path(max_length=100)]
MOST_ATTEMPTS = 100


@router.get("/wallet", response_model=Envelope[WalletOut])
async def wallet(session: Work, caller: SignedIn) -> Envelope[WalletOut]:
    """What can be spent and what is held, in the account's currency and in every other that it has had."""
    found = {b.spendable.currency: b for b in await billing_reads.balances(session, caller.organization_id)}
    account = await identity.organization(session, caller.organization_id)
    currencies = sorted(found.keys() | ({account.currency} if account else set()))
    spendable = {name: found[name].spendable.amount_minor if name in found else 0 for name in currencies}
    held = {name: found[name].held.amount_minor if name in found else 0 for name in currencies}
    return ok(
        WalletOut(
            balances=[Amount(amount_minor=minor, currency=name) for name, minor in spendable.items()],
            held=[Amount(amount_minor=minor, currency=name) for name, minor in held.items()],
        )
    )


@router.get("/transactions", response_model=Page[TransactionOut])
async def transactions(
    session: Work,
    caller: SignedIn,
    page: LongPageOf,
    kind: Literal["top_up", "charge", "refund", "credit", "adjustment"] | None = None,
) -> Response:
    """Newest first. All of them sum to ``balances`` plus ``held``."""
    place = page.place(int)
    rows = await billing_reads.transactions(
        session, caller.organization_id, limit=page.limit + 1, after=place[0] if place else None, kind=kind
    )
    shown, meta = page.cut([_Placed(row) for row in rows], "sequence")
    return listed([transaction_out(placed.row) for placed in shown], meta, page.fields)


@router.get("/invoices", response_model=Page[InvoiceOut])
async def invoices(
    session: Work,
    caller: SignedIn,
    page: LongPageOf,
    subscription_id: Annotated[str | None, Query(max_length=100)] = None,
    status: InvoiceStatus | None = None,
) -> Response:
    rows = await billing_reads.invoices(
        session,
        caller.organization_id,
        limit=page.limit + 1,
        after=after_created(page),
        subscription_id=subscription_id,
        status=status,
    )
    shown, meta = page.cut(rows, "created_at", "id")
    return listed([invoice_out(row) for row in shown], meta, page.fields)


@router.get("/invoices/{invoice_id}", response_model=Envelope[InvoiceOut])
async def invoice(session: Work, caller: SignedIn, invoice_id: Id) -> Envelope[InvoiceOut]:
    found = await billing_reads.invoice(session, invoice_id, caller.organization_id)
    if found is None:
        raise not_found("invoice")
    return ok(invoice_out(found))


@router.get("/invoices/{invoice_id}/explain", response_model=Envelope[ExplanationOut])
async def explain(session: Work, caller: SignedIn, invoice_id: Id) -> Envelope[ExplanationOut]:
    """Line by line why it costs what it costs, and what was tried to collect it."""
    found = await billing_reads.invoice(session, invoice_id, caller.organization_id)
    if found is None:
        raise not_found("invoice")
    tried = await payment_reads.payments_of(session, caller.organization_id, limit=MOST_ATTEMPTS, invoice_id=invoice_id)
    return ok(explanation_out(found, [payment_out(payment) for payment in tried]))


@router.get(
    "/invoices/{invoice_id}/pdf",
    response_class=Response,
    responses={200: {"content": {"application/pdf": {}}, "description": "The invoice as a document"}},
)
async def pdf(invoice_id: Id, caller: SignedIn, units: UnitsOfWork, orders: Orders) -> Response:
    """The document that is kept; one that is not there yet is rendered now. A draft has none (404)."""
    async with units.begin() as session:
        found = await billing_reads.invoice(session, invoice_id, caller.organization_id)
        if found is None or found.number is None:
            raise not_found("document")
        number = found.number
        kept = await documents.find_invoice_pdf(session, invoice_id)
    if kept is None:
        await orders.render_invoice(invoice_id, caller.organization_id)
        async with units.begin() as session:
            kept = await documents.find_invoice_pdf(session, invoice_id)
    if kept is None:
        raise not_found("document")
    return Response(
        kept.content,
        media_type="application/pdf",
        headers={
            "Content-Disposition": f'attachment; filename="{number}.pdf"',
            "ETag": f'"{kept.content_sha256}"',
        },
    )


class _Placed:
    """A row with the attribute that its cursor is made of."""

    def __init__(self, row: TransactionRow) -> None:
        self.row = row
        self.sequence = row.transaction.sequence
