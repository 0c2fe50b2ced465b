"""Rendered documents, and what an invoice's page shows."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from workflows.rules.ids import derived
from workflows.rules.money import Money

INVOICE_PDF = "invoice_pdf"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredDocument:
    id: str
    content_sha256: str
    content: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class InvoiceLineFacts:
    description: str
    quantity: int
    unit_price: Money
    discount: Money
    tax: Money
    amount: Money
    period_start: datetime
    period_end: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class InvoiceFacts:
    """A finalised invoice as its page shows it."""

    id: str
    number: str
    status: str
    issued_at: datetime | None
    paid_at: datetime | None
    period_start: datetime
    period_end: datetime
    subtotal: Money
    tax: Money
    total: Money
    due: Money
    organization_id: str
    organization_name: str
    country: str | None
    timezone: str
    subscription_id: str
    subscription_name: str | None
    paid_by: str | None
    lines: tuple[InvoiceLineFacts, ...]


_INVOICE = text(
    """
SELECT i.id, i.number, i.status, i.currency, i.issued_at, i.paid_at, i.period_start, i.period_end, i.subtotal_minor,
       i.tax_minor, i.total_minor, i.amount_due_minor, i.subscription_id, o.id AS organization_id,
       o.name AS organization_name, o.country, o.timezone, s.name AS subscription_name, p.cards, p.captured
FROM invoices i
JOIN organizations o ON o.id = i.organization_id
LEFT JOIN subscriptions s ON s.id = i.subscription_id
LEFT JOIN LATERAL (
    SELECT string_agg(DISTINCT COALESCE(initcap(m.brand) || ' ending in ' || m.last4, 'card'), ', ') AS cards,
           COALESCE(sum(p.captured_minor), 0)::bigint AS captured
    FROM payments p LEFT JOIN payment_methods m ON m.id = p.payment_method_id
    WHERE p.invoice_id = i.id AND p.captured_minor > 0
) p ON true
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
SELECT d.id, d.content_sha256, d.content FROM documents d JOIN invoices i ON i.id = d.ref AND i.status = d.version
WHERE d.id = :id
"""
)

_KEEP = text(
    """
INSERT INTO documents (id, organization_id, kind, ref, version, content_sha256, content)
VALUES (:id, :organization_id, :kind, :ref, :version, :content_sha256, :content)
ON CONFLICT (id) DO UPDATE
    SET version = EXCLUDED.version, content_sha256 = EXCLUDED.content_sha256, content = EXCLUDED.content,
        created_at = now()
    WHERE documents.content_sha256 <> EXCLUDED.content_sha256 OR documents.version <> EXCLUDED.version
"""
)


async def find_invoice_pdf(session: AsyncSession, invoice_id: str) -> StoredDocument | None:
    """Return the PDF if one is kept that shows the invoice as it stands (a paid one says so)."""
    row = (await session.execute(_FIND, {"id": derived("doc", INVOICE_PDF, invoice_id)})).mappings().one_or_none()
    if row is None:
        return None
    return StoredDocument(id=row["id"], content_sha256=row["content_sha256"], content=bytes(row["content"]))


async def keep(
    session: AsyncSession, *, organization_id: str, kind: str, ref: str, version: str, content: bytes
) -> StoredDocument:
    """Keep a document in place of an older version of it."""
    stored = StoredDocument(
        id=derived("doc", kind, ref), content_sha256=hashlib.sha256(content).hexdigest(), content=content
    )
    await session.execute(
        _KEEP,
        {
            "id": stored.id,
            "organization_id": organization_id,
            "kind": kind,
            "ref": ref,
            "version": version,
            "content_sha256": stored.content_sha256,
            "content": content,
        },
    )
    return stored


async def load_invoice(
    session: AsyncSession, invoice_id: str, organization_id: str | None = None
) -> InvoiceFacts | None:
    """Return what an invoice's page shows; None for an unknown one, another account's, or a draft."""
    parameters = {"id": invoice_id, "organization_id": organization_id}
    row = (await session.execute(_INVOICE, parameters)).mappings().one_or_none()
    if row is None:
        return None

    def money(minor: int) -> Money:
        return Money(amount_minor=minor, currency=row["currency"])

    lines = tuple(
        InvoiceLineFacts(
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
    return InvoiceFacts(
        id=row["id"],
        number=row["number"],
        status=row["status"],
        issued_at=row["issued_at"],
        paid_at=row["paid_at"],
        period_start=row["period_start"],
        period_end=row["period_end"],
        subtotal=money(row["subtotal_minor"]),
        tax=money(row["tax_minor"]),
        total=money(row["total_minor"]),
        due=money(row["amount_due_minor"]),
        organization_id=row["organization_id"],
        organization_name=row["organization_name"],
        country=row["country"],
        timezone=row["timezone"],
        subscription_id=row["subscription_id"],
        subscription_name=row["subscription_name"],
        paid_by=_paid_by(row["status"], row["total_minor"], row["captured"], row["cards"]),
        lines=lines,
    )


def _paid_by(status: str, total: int, captured: int, cards: str | None) -> str | None:
    if status != "paid" or total == 0:
        return None
    if cards is None:
        return "Account credit"
    return cards if captured >= total else f"Account credit, {cards}"
