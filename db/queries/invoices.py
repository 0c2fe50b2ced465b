"""Invoices as their owning workflow writes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from psycopg.types.json import Jsonb
from sqlalchemy import text
from sqlalchemy.engine import RowMapping
from sqlalchemy.ext.asyncio import AsyncSession

from db.driver import DriverStatement, driver_sql, fetch_one
from workflows.rules.funding import CollectionMethod, PaymentMethodReference
from workflows.rules.hold_keys import HoldKey, invoice_key_prefix, parse_hold_key
from workflows.rules.invoice import BillingReason, InvoiceStatus
from workflows.rules.money import Money
from workflows.rules.periods import BillingPeriod

ISSUER = "BERTH"

_INSERT_HOLD = driver_sql(
    "INSERT INTO holds (organization_id, subscription_id, dedup_key, currency, wallet_minor, promotional_minor,"
    " card_minor, payment_methods, status) VALUES (:organization_id, :subscription_id, :dedup_key,"
    " :currency, :wallet, :promotional, :card, :payment_methods, 'held')"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class InvoiceSummary:
    id: str
    billing_reason: BillingReason
    status: InvoiceStatus
    total: Money
    tax: Money
    due: Money
    period_start: datetime
    period_end: datetime
    plan_change_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """What was agreed to pay an order or an invoice.

    Attributes:
        card: What a card pays beside the held credit; zero when credit alone pays.
        payment_methods: The methods that may be charged for it, in this order.
    """

    key: HoldKey
    wallet: Money
    promotional: Money
    card: Money
    payment_methods: tuple[PaymentMethodReference, ...]

    @property
    def credit(self) -> Money:
        return self.wallet + self.promotional


_COLUMNS = (
    "id, billing_reason, status, currency, total_minor, tax_minor, amount_due_minor, period_start, period_end,"
    " plan_change_id"
)

NEXT_INVOICE_NUMBER = """
INSERT INTO invoice_number_sequences AS s (issuer, year, last_number)
    SELECT CAST(:issuer AS text), :year, 1 WHERE :drawn
    ON CONFLICT (issuer, year) DO UPDATE SET last_number = s.last_number + 1
    RETURNING issuer || '-' || year || '-' || lpad(last_number::text,
        greatest(6, length(last_number::text)), '0') AS number
"""
"""Draws the year's next number and prints it: issuer, year, and a sequence without gaps."""


def number_parameters(at: datetime, *, is_needed: bool = True) -> dict[str, Any]:
    """Return the parameters of ``NEXT_INVOICE_NUMBER``; without ``is_needed`` the statement draws no number."""
    return {"issuer": ISSUER, "year": at.year, "drawn": is_needed}


async def assign_invoice_number(session: AsyncSession, at: datetime) -> str:
    """Draw the next number of the year. The series stays locked until the commit, so call it as late as possible."""
    return str((await session.execute(text(NEXT_INVOICE_NUMBER), number_parameters(at))).scalar_one())


async def lock_invoice(session: AsyncSession, invoice_id: str) -> InvoiceSummary | None:
    row = (
        (
            await session.execute(
                text(f"SELECT {_COLUMNS} FROM invoices WHERE id = :id FOR NO KEY UPDATE"), {"id": invoice_id}
            )
        )
        .mappings()
        .one_or_none()
    )
    return None if row is None else _to_summary(row)


async def find_period_invoice(
    session: AsyncSession, subscription_id: str, period_start: datetime
) -> InvoiceSummary | None:
    """Return the one invoice of a period that is not void, if it was written already."""
    statement = text(
        f"SELECT {_COLUMNS} FROM invoices WHERE subscription_id = :id AND period_start = :start"
        " AND billing_reason <> 'plan_change' AND status <> 'void'"
    )
    row = (await session.execute(statement, {"id": subscription_id, "start": period_start})).mappings().one_or_none()
    return None if row is None else _to_summary(row)


async def lock_open_invoices(session: AsyncSession, subscription_id: str) -> list[InvoiceSummary]:
    statement = text(
        f"SELECT {_COLUMNS} FROM invoices WHERE subscription_id = :id AND status = 'open'"
        " ORDER BY finalized_at FOR NO KEY UPDATE"
    )
    return [_to_summary(row) for row in (await session.execute(statement, {"id": subscription_id})).mappings()]


async def find_open_invoice_id(session: AsyncSession, subscription_id: str) -> str | None:
    """Return the id of the subscription's open invoice, the oldest if there are several."""
    statement = text(
        "SELECT id FROM invoices WHERE subscription_id = :id AND status = 'open' ORDER BY period_start, id LIMIT 1"
    )
    return (await session.execute(statement, {"id": subscription_id})).scalar_one_or_none()


async def find_plan_change_invoice(session: AsyncSession, plan_change_id: str) -> InvoiceSummary | None:
    """Return the invoice that a plan change's order wrote, if it did."""
    row = (
        (
            await session.execute(
                text(f"SELECT {_COLUMNS} FROM invoices WHERE plan_change_id = :id"), {"id": plan_change_id}
            )
        )
        .mappings()
        .one_or_none()
    )
    return None if row is None else _to_summary(row)


async def mark_paid(session: AsyncSession, invoice_id: str, at: datetime, number: str | None) -> None:
    await session.execute(
        text(
            "UPDATE invoices SET status = 'paid', paid_at = :at, amount_due_minor = 0,"
            " number = COALESCE(number, :number), finalized_at = COALESCE(finalized_at, :at) WHERE id = :id"
        ),
        {"id": invoice_id, "at": at, "number": number},
    )


async def mark_void(session: AsyncSession, invoice_id: str, at: datetime) -> None:
    await session.execute(
        text("UPDATE invoices SET status = 'void', voided_at = :at, amount_due_minor = 0 WHERE id = :id"),
        {"id": invoice_id, "at": at},
    )


async def move_draft(session: AsyncSession, invoice_id: str, period: BillingPeriod) -> None:
    """Give a draft of one period, and its one line, another period."""
    parameters = {"id": invoice_id, "start": period.start, "end": period.end}
    await session.execute(
        text("UPDATE invoice_lines SET period_start = :start, period_end = :end WHERE invoice_id = :id"), parameters
    )
    explained = Jsonb({"start": period.start.isoformat(), "end": period.end.isoformat()})
    await session.execute(
        text(
            "UPDATE invoices SET period_start = :start, period_end = :end,"
            " explanation = jsonb_set(explanation, '{lines,0,period}', :explained) WHERE id = :id"
        ),
        parameters | {"explained": explained},
    )


async def find_draft(session: AsyncSession, subscription_id: str) -> InvoiceSummary | None:
    """Return the subscription's draft, the oldest if there are several."""
    statement = text(
        f"SELECT {_COLUMNS} FROM invoices WHERE subscription_id = :id AND status = 'draft'"
        " ORDER BY created_at, id LIMIT 1"
    )
    row = (await session.execute(statement, {"id": subscription_id})).mappings().one_or_none()
    return None if row is None else _to_summary(row)


async def void_drafts(
    session: AsyncSession, subscription_id: str, at: datetime, *, plan_changes_only: bool = False
) -> None:
    """Void the subscription's drafts; a payment that succeeds later finds its invoice void."""
    await session.execute(
        text(
            "UPDATE invoices SET status = 'void', voided_at = :at, amount_due_minor = 0"
            " WHERE subscription_id = :id AND status = 'draft' AND (plan_change_id IS NOT NULL OR NOT :only_changes)"
        ),
        {"id": subscription_id, "at": at, "only_changes": plan_changes_only},
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenDebt:
    """An open invoice of a past-due or suspended subscription, and how that subscription pays."""

    amount_due: Money
    collection_method: CollectionMethod


async def list_older_debts(session: AsyncSession, subscription_id: str) -> list[OpenDebt]:
    """Return the debts of the organization in the subscription's currency that are older than its own, oldest first.

    A subscription that is not past due has no debt yet: every debt is older. Left out is a debt that a card is being
    charged for beside a hold, because the hold has already taken its credit.
    """
    statement = text(
        "SELECT i.amount_due_minor, i.currency, o.collection_method FROM subscriptions s"
        " JOIN subscriptions o ON o.organization_id = s.organization_id AND o.currency = s.currency AND o.id <> s.id"
        " AND o.status IN ('past_due', 'suspended')"
        " JOIN invoices i ON i.subscription_id = o.id AND i.status = 'open'"
        " WHERE s.id = :id"
        " AND (s.past_due_since IS NULL OR (o.past_due_since, o.id) < (s.past_due_since, s.id))"
        " AND NOT EXISTS (SELECT FROM holds h WHERE h.subscription_id = o.id AND h.status = 'held'"
        " AND h.wallet_minor + h.promotional_minor > 0)"
        " ORDER BY o.past_due_since, o.id, i.created_at"
    )
    return [
        OpenDebt(
            amount_due=Money(amount_minor=row["amount_due_minor"], currency=row["currency"]),
            collection_method=CollectionMethod(row["collection_method"]),
        )
        for row in (await session.execute(statement, {"id": subscription_id})).mappings()
    ]


_HOLD_COLUMNS = "dedup_key, currency, wallet_minor, promotional_minor, card_minor, payment_methods"
_CLOSE_HOLD = driver_sql(
    f"UPDATE holds SET status = :status WHERE subscription_id = :id AND status = 'held' RETURNING {_HOLD_COLUMNS}"
)


async def lock_open_hold(session: AsyncSession, subscription_id: str) -> Hold | None:
    """Lock and return the hold that is neither captured nor released; a subscription has at most one."""
    statement = text(f"SELECT {_HOLD_COLUMNS} FROM holds WHERE subscription_id = :id AND status = 'held' FOR UPDATE")
    row = (await session.execute(statement, {"id": subscription_id})).mappings().one_or_none()
    return None if row is None else _to_hold(row)


async def find_hold(session: AsyncSession, subscription_id: str, key: HoldKey) -> Hold | None:
    """Return a hold by its key, whether it is open or not."""
    statement = text(f"SELECT {_HOLD_COLUMNS} FROM holds WHERE subscription_id = :id AND dedup_key = :dedup_key")
    parameters = {"id": subscription_id, "dedup_key": str(key)}
    row = (await session.execute(statement, parameters)).mappings().one_or_none()
    return None if row is None else _to_hold(row)


async def find_last_hold(session: AsyncSession, subscription_id: str, invoice_id: str) -> Hold | None:
    """Return the newest hold of an invoice, whether it is open or not."""
    statement = text(
        f"SELECT {_HOLD_COLUMNS} FROM holds WHERE subscription_id = :id AND starts_with(dedup_key, :prefix)"
        " ORDER BY id DESC LIMIT 1"
    )
    parameters = {"id": subscription_id, "prefix": invoice_key_prefix(invoice_id)}
    row = (await session.execute(statement, parameters)).mappings().one_or_none()
    return None if row is None else _to_hold(row)


def hold_insert(
    *,
    organization_id: str,
    subscription_id: str,
    key: HoldKey,
    wallet: Money,
    promotional: Money,
    card: Money,
    payment_methods: Sequence[PaymentMethodReference],
) -> DriverStatement:
    """Return the statement that inserts an open hold."""
    return DriverStatement(
        _INSERT_HOLD,
        {
            "organization_id": organization_id,
            "subscription_id": subscription_id,
            "dedup_key": str(key),
            "currency": wallet.currency,
            "wallet": wallet.amount_minor,
            "promotional": promotional.amount_minor,
            "card": card.amount_minor,
            "payment_methods": Jsonb([asdict(method) for method in payment_methods]),
        },
    )


async def has_released_hold(session: AsyncSession, subscription_id: str, invoice_id: str | None = None) -> bool:
    """Return whether credit that was held, for one invoice or at all, has been released."""
    statement = text(
        "SELECT EXISTS (SELECT FROM holds WHERE subscription_id = :subscription_id AND status = 'released'"
        " AND wallet_minor + promotional_minor > 0 AND starts_with(dedup_key, :prefix))"
    )
    parameters = {"subscription_id": subscription_id, "prefix": invoice_key_prefix(invoice_id) if invoice_id else ""}
    return bool((await session.execute(statement, parameters)).scalar_one())


async def close_open_hold(session: AsyncSession, subscription_id: str, status: str) -> Hold | None:
    """Close the subscription's open hold and return it; None if there is none.

    Args:
        status: ``captured`` or ``released``.
    """
    row = await fetch_one(session, DriverStatement(_CLOSE_HOLD, {"id": subscription_id, "status": status}))
    return None if row is None else _to_hold(row)


def _to_hold(row: RowMapping | Mapping[str, Any]) -> Hold:
    def money(column: str) -> Money:
        return Money(amount_minor=row[column], currency=row["currency"])

    return Hold(
        key=parse_hold_key(row["dedup_key"]),
        wallet=money("wallet_minor"),
        promotional=money("promotional_minor"),
        card=money("card_minor"),
        payment_methods=tuple(PaymentMethodReference(**method) for method in row["payment_methods"]),
    )


def _to_summary(row: RowMapping) -> InvoiceSummary:
    def money(column: str) -> Money:
        return Money(amount_minor=row[column], currency=row["currency"])

    return InvoiceSummary(
        id=row["id"],
        billing_reason=BillingReason(row["billing_reason"]),
        status=InvoiceStatus(row["status"]),
        total=money("total_minor"),
        tax=money("tax_minor"),
        due=money("amount_due_minor"),
        period_start=row["period_start"],
        period_end=row["period_end"],
        plan_change_id=row["plan_change_id"],
    )
