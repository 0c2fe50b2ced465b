"""Rendered documents, and what an invoice's page shows."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from db.queries.invoice_sources import get_debt_paid_with, list_invoice_sources
from workflows.rules.ids import derive_id
from workflows.rules.invoice import InvoiceStatus, payment_summary
from workflows.rules.money import Money

INVOICE_PDF = "invoice_pdf"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredDocument:
    id: str
    content_sha256: str
    content: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class InvoicePdf:
    """Number and PDF of a finalized invoice. ``document`` is None until the PDF of its present status is rendered."""

    number: str
    document: StoredDocument | None


@dataclass(frozen=True, slots=True, kw_only=True)
class InvoiceLineData:
    description: str
    quantity: int
    unit_price: Money
    discount: Money
    tax: Money
    amount: Money
    period_start: datetime
    period_end: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class InvoiceDocumentData:
    """A finalized invoice as its page shows it.

    Attributes:
        debt_paid: Carried debt of earlier invoices that its payment has paid as well.
    """

    id: str
    number: str
    status: str
    finalized_at: datetime | None
    paid_at: datetime | None
    period_start: datetime
    period_end: datetime
    subtotal: Money
    tax: Money
    total: Money
    due: Money
    debt_paid: Money
    organization_id: str
    organization_name: str
    country: str | None
    timezone: str
    subscription_id: str
    subscription_name: str | None
    payment_summary: str | None
    lines: tuple[InvoiceLineData, ...]


_INVOICE = text(
    """
SELECT i.id, i.number, i.status, i.currency, i.finalized_at, i.paid_at, i.period_start, i.period_end, i.subtotal_minor,
       i.tax_minor, i.total_minor, i.amount_due_minor, i.subscription_id, o.id AS organization_id,
       o.name AS organization_name, o.country, o.timezone, s.name AS subscription_name
FROM invoices i
JOIN organizations o ON o.id = i.organization_id
LEFT JOIN subscriptions s ON s.id = i.subscription_id
WHERE i.id = :id AND i.number IS NOT NULL AND (CAST(:organization_id AS text) IS NULL
    OR i.organization_id = :organization_id)
"""
)

_LINES = text(
    "SELECT description, quantity, unit_price_minor, discount_minor, tax_minor, amount_minor, period_start, period_end"
    " FROM invoice_lines WHERE invoice_id = :id ORDER BY position"
)

_FIND = text(
    """
SELECT d.id, d.content_sha256, d.content FROM documents d JOIN invoices i ON i.id = d.subject_id
    AND i.status = d.subject_status
WHERE d.id = :id
"""
)

_INVOICE_PDF = text(
    """
SELECT i.number, d.id, d.content_sha256, d.content
FROM invoices i LEFT JOIN documents d ON d.id = :document_id AND d.subject_id = i.id AND d.subject_status = i.status
WHERE i.id = :invoice_id AND i.organization_id = :organization_id AND i.number IS NOT NULL
"""
)

_UPSERT = text(
    """
INSERT INTO documents (id, organization_id, kind, subject_id, subject_status, content_sha256, content)
VALUES (:id, :organization_id, :kind, :subject_id, :subject_status, :content_sha256, :content)
ON CONFLICT (id) DO UPDATE
    SET subject_status = EXCLUDED.subject_status, content_sha256 = EXCLUDED.content_sha256, content = EXCLUDED.content,
        created_at = now()
    WHERE documents.content_sha256 <> EXCLUDED.content_sha256 OR documents.subject_status <> EXCLUDED.subject_status
"""
)


async def find_invoice_pdf(session: AsyncSession, invoice_id: str) -> StoredDocument | None:
    """Return the PDF if one is kept that shows the invoice as it stands (a paid one says so)."""
    row = (await session.execute(_FIND, {"id": derive_id("doc", INVOICE_PDF, invoice_id)})).mappings().one_or_none()
    if row is None:
        return None
    return StoredDocument(id=row["id"], content_sha256=row["content_sha256"], content=bytes(row["content"]))


async def get_invoice_pdf(session: AsyncSession, invoice_id: str, organization_id: str) -> InvoicePdf | None:
    """Return the number and the PDF of one of the organization's finalized invoices."""
    parameters = {
        "invoice_id": invoice_id,
        "organization_id": organization_id,
        "document_id": derive_id("doc", INVOICE_PDF, invoice_id),
    }
    row = (await session.execute(_INVOICE_PDF, parameters)).mappings().one_or_none()
    if row is None:
        return None
    document = None
    if row["id"] is not None:
        document = StoredDocument(id=row["id"], content_sha256=row["content_sha256"], content=bytes(row["content"]))
    return InvoicePdf(number=row["number"], document=document)


async def upsert_document(
    session: AsyncSession, *, organization_id: str, kind: str, subject_id: str, subject_status: str, content: bytes
) -> StoredDocument:
    """Store a document in place of the one that shows an earlier status of its subject."""
    stored = StoredDocument(
        id=derive_id("doc", kind, subject_id), content_sha256=hashlib.sha256(content).hexdigest(), content=content
    )
    await session.execute(
        _UPSERT,
        {
            "id": stored.id,
            "organization_id": organization_id,
            "kind": kind,
            "subject_id": subject_id,
            "subject_status": subject_status,
            "content_sha256": stored.content_sha256,
            "content": content,
        },
    )
    return stored


async def load_invoice_document_data(
    session: AsyncSession, invoice_id: str, organization_id: str | None = None
) -> InvoiceDocumentData | None:
    """Return what an invoice's page shows; None for an unknown one, another account's, or a draft."""
    parameters = {"id": invoice_id, "organization_id": organization_id}
    row = (await session.execute(_INVOICE, parameters)).mappings().one_or_none()
    if row is None:
        return None

    def money(minor: int) -> Money:
        return Money(amount_minor=minor, currency=row["currency"])

    lines = tuple(
        InvoiceLineData(
            description=line["description"],
            quantity=line["quantity"],
            unit_price=money(line["unit_price_minor"]),
            discount=money(line["discount_minor"]),
            tax=money(line["tax_minor"]),
            amount=money(line["amount_minor"]),
            period_start=line["period_start"],
            period_end=line["period_end"],
        )
        for line in (await session.execute(_LINES, {"id": invoice_id})).mappings()
    )
    is_paid = row["status"] == InvoiceStatus.PAID
    summary = payment_summary(await list_invoice_sources(session, invoice_id)) if is_paid else None
    return InvoiceDocumentData(
        id=row["id"],
        number=row["number"],
        status=row["status"],
        finalized_at=row["finalized_at"],
        paid_at=row["paid_at"],
        period_start=row["period_start"],
        period_end=row["period_end"],
        subtotal=money(row["subtotal_minor"]),
        tax=money(row["tax_minor"]),
        total=money(row["total_minor"]),
        due=money(row["amount_due_minor"]),
        debt_paid=await get_debt_paid_with(session, invoice_id, row["currency"]),
        organization_id=row["organization_id"],
        organization_name=row["organization_name"],
        country=row["country"],
        timezone=row["timezone"],
        subscription_id=row["subscription_id"],
        subscription_name=row["subscription_name"],
        payment_summary=summary,
        lines=lines,
    )
