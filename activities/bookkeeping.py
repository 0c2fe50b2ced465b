"""The small steps that every money-moving activity of a subscription takes, each inside the caller's transaction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession
from temporalio import activity

from db.queries import invoices, records
from db.queries.invoices import HoldRecord, InvoiceRecord
from db.queries.journal import Journal
from db.queries.records import Record
from workflows.ports.billing import Bill
from workflows.ports.subscription import CardDue
from workflows.refusals import refuse
from workflows.rules import ids, ledger
from workflows.rules.errors import Refusal
from workflows.rules.invoice import InvoiceStatus
from workflows.rules.money import Money, total, zero
from workflows.rules.periods import Period
from workflows.rules.pricing import Line
from workflows.rules.subscription import INDEBTED


async def require(session: AsyncSession, subscription_id: str) -> Record:
    """Lock and return the subscription.

    Raises:
        ApplicationError: ``NOT_FOUND``.
    """
    record = await records.load(session, subscription_id)
    if record is None:
        raise refuse(Refusal.NOT_FOUND, "There is no such subscription.")
    return record


def journal_of(record: Record, at: datetime, actor: str) -> Journal:
    return Journal(
        organization_id=record.organization_id, subscription_id=record.id, at=at, actor=actor, run_id=run_id()
    )


def run_id() -> str:
    """Return the workflow run that asks; part of every change record."""
    return activity.info().workflow_run_id or "" if activity.in_activity() else ""


def bill_of(record: Record, invoice: InvoiceRecord | None, *, card: CardDue | None = None) -> Bill:
    """Say where an invoice and its subscription stand."""
    return Bill(
        invoice_id=invoice.id if invoice else None,
        paid=invoice is None or invoice.status is InvoiceStatus.PAID,
        card=card,
        state=record.state,
        first_failure=record.first_failure if record.state in INDEBTED else None,
    )


@dataclass(frozen=True, kw_only=True)
class NewInvoice:
    """An invoice to be written: what it is for, its lines, and how much of it is paid by what."""

    id: str
    kind: str
    period: Period
    lines: Sequence[Line]
    price_id: str
    order_id: str | None = None

    @cached_property
    def total(self) -> Money:
        return total((line.amount + line.tax for line in self.lines), self.lines[0].unit_price.currency)

    @cached_property
    def tax(self) -> Money:
        return total((line.tax for line in self.lines), self.lines[0].unit_price.currency)


def period_invoice_id(record: Record, start: datetime) -> str:
    return ids.derived("inv", record.id, start.isoformat())


def write_invoice(
    journal: Journal,
    record: Record,
    new: NewInvoice,
    *,
    status: InvoiceStatus,
    due: Money,
    explanation: dict[str, Any],
) -> InvoiceRecord:
    """Add an invoice to the journal, which draws a number for all but drafts."""
    now = journal.at
    issued = None if status is InvoiceStatus.DRAFT else now.isoformat()
    journal.invoice(
        {
            "id": new.id,
            "organization_id": record.organization_id,
            "subscription_id": record.id,
            "kind": new.kind,
            "status": status.value,
            "currency": new.total.currency,
            "period_start": new.period.start.isoformat(),
            "period_end": new.period.end.isoformat(),
            "subtotal_minor": (new.total - new.tax).amount_minor,
            "tax_minor": new.tax.amount_minor,
            "total_minor": new.total.amount_minor,
            "amount_due_minor": due.amount_minor,
            "issued_at": issued,
            "paid_at": issued if status is InvoiceStatus.PAID else None,
            "created_at": now.isoformat(),
            "order_id": new.order_id,
            "explanation": explanation,
        },
        [_line(record, new, position, line) for position, line in enumerate(new.lines)],
        numbered=issued is not None,
    )
    return InvoiceRecord(
        id=new.id,
        kind=new.kind,
        status=status,
        total=new.total,
        tax=new.tax,
        due=due,
        period_start=new.period.start,
        period_end=new.period.end,
    )


def _line(record: Record, new: NewInvoice, position: int, line: Line) -> dict[str, Any]:
    return {
        "invoice_id": new.id,
        "position": position,
        "organization_id": record.organization_id,
        "description": line.description,
        "quantity": line.quantity,
        "unit_price_minor": line.unit_price.amount_minor,
        "discount_minor": line.discount.amount_minor,
        "tax_minor": line.tax.amount_minor,
        "amount_minor": line.amount.amount_minor,
        "price_id": new.price_id,
        "period_start": line.period.start.isoformat(),
        "period_end": line.period.end.isoformat(),
    }


async def hold_beside_card(
    session: AsyncSession, journal: Journal, record: Record, funding: ledger.Funding, purpose: str
) -> None:
    """Set aside what credit contributes while a card is asked for the rest."""
    if not funding.wallet and not funding.promotional:
        return
    await invoices.insert_hold(
        session,
        organization_id=record.organization_id,
        subscription_id=record.id,
        purpose=purpose,
        wallet=funding.wallet,
        promotional=funding.promotional,
    )
    journal.post(
        ledger.hold(promotional=funding.promotional, wallet=funding.wallet),
        key=f"hold/{record.id}/{purpose}",
        description="Set aside",
        ref=record.id,
    )


async def release_hold(session: AsyncSession, journal: Journal, record: Record) -> None:
    """Give back what was set aside, each part to where it came from; a second call finds nothing to give back."""
    held = await invoices.open_hold(session, record.id)
    if held is None:
        return
    await invoices.end_hold(session, held.id, "released")
    if held.total:
        journal.post(
            ledger.release(promotional=held.promotional, wallet=held.wallet),
            key=f"release/{record.id}/{held.purpose}",
            description="Released",
            ref=record.id,
        )


async def capture_hold(session: AsyncSession, record: Record) -> HoldRecord | None:
    """Mark the open hold as taken and return it; posting what it pays is the caller's."""
    held = await invoices.open_hold(session, record.id)
    if held is not None:
        await invoices.end_hold(session, held.id, "captured")
    return held


def held_amount(held: HoldRecord | None, currency: str) -> Money:
    return held.total if held is not None else zero(currency)


def money_json(amount: Money) -> dict[str, Any]:
    return {"amount_minor": amount.amount_minor, "currency": amount.currency}


def mail_context(record: Record, **more: Any) -> dict[str, Any]:
    """Return what every mail about a subscription is told, and ``more``; money and instants become JSON."""
    context: dict[str, Any] = {
        "subscription_id": record.id,
        "subscription_name": record.name,
        "plan_name": record.plan_name,
        "service_name": record.service_name,
        "hostname": record.hostname,
        "url": record.url or (f"https://{record.hostname}" if record.hostname else None),
    }
    for name, value in more.items():
        context[name] = _json(value)
    return context


def _json(value: Any) -> Any:
    if isinstance(value, Money):
        return money_json(value)
    return value.isoformat() if isinstance(value, datetime) else value


def moved(record: Record, **changes: Any) -> Record:
    return replace(record, **changes)
