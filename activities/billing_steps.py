"""Steps that several billing activities share, each inside the caller's transaction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from activities import bookkeeping as books
from activities import coupons
from activities.bookkeeping import NewInvoice
from activities.formatting import money
from db.queries import invoices
from db.queries.invoices import InvoiceRecord
from db.queries.journal import Journal
from db.queries.records import Record
from db.session import Sessions
from workflows.ports.billing import Bill
from workflows.ports.subscription import CardDue, Collection
from workflows.rules import dunning, ledger
from workflows.rules.invoice import InvoiceStatus
from workflows.rules.money import Money, zero
from workflows.rules.pricing import Line
from workflows.rules.subscription import INDEBTED, LIVE, State, move


class BillingSteps:
    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

    @staticmethod
    def enter(journal: Journal, record: Record, state: State, why: str, **columns: Any) -> Record:
        """Move the subscription, with its change record; staying where it is is no move."""
        if state is not record.state:
            move(record.state, state)
            journal.change("status", record.state.value, state.value, why)
            columns["status"] = state.value
        if columns:
            journal.update(**columns)
        return replace(record, state=state, first_failure=columns.get("first_failure_at", record.first_failure))

    def pause_after_trial(self, journal: Journal, record: Record) -> Record:
        record = self.enter(journal, record, State.PAUSED, "the trial ended without a way to pay")
        journal.tell("subscription.paused", "The trial has ended without a way to pay; the data is kept.")
        journal.notify("subscription_paused", books.mail_context(record, reason="trial_ended"))
        return record

    def fall_behind(self, journal: Journal, record: Record, due_at: datetime, why: str, **columns: Any) -> Record:
        """The subscription owes from ``due_at`` on."""
        first = dunning.first_failure(due_at, journal.at)
        journal.tell("subscription.past_due", f"Past due: {why}.")
        return self.enter(journal, record, State.PAST_DUE, why, first_failure_at=first, **columns)

    async def paid(
        self, session: AsyncSession, journal: Journal, record: Record, invoice: InvoiceRecord, *, draft: bool = False
    ) -> Bill:
        """An invoice of a period is paid: the subscription is (again) active. Writes the journal."""
        before = record.state
        columns: dict[str, Any] = {"first_failure_at": None}
        if draft:
            columns |= {
                "anchor": invoice.period_start,
                "current_period_start": invoice.period_start,
                "current_period_end": invoice.period_end,
                **await coupons.use(session, record),
            }
        record = self.enter(journal, record, State.ACTIVE, "the invoice was paid", **columns)
        tell_paid(journal, invoice.id, invoice.total)
        # A first invoice that a card pays after readiness renews nothing: "service ready" has told of it.
        first = before is State.ACTIVE and not draft and invoice.period_start == record.anchor
        kind = _NEWS.get(before, "renewed")
        context = books.mail_context(
            record,
            amount=invoice.total,
            invoice_id=invoice.id,
            period_start=invoice.period_start,
            period_end=invoice.period_end,
        )
        if not first:
            journal.tell(f"subscription.{kind}", _SENTENCES[kind], ref=invoice.id, fact=f"{kind}/{invoice.id}")
            journal.notify(f"subscription_{kind}", context, fact=f"{kind}/{invoice.id}")
        number = await invoices.draw_number(session, journal.at) if draft else None
        await invoices.mark_paid(session, invoice.id, journal.at, number)
        await journal.write(session)
        return Bill(invoice_id=invoice.id, paid=True, card=None, state=record.state)

    async def again(self, session: AsyncSession, record: Record, invoice: InvoiceRecord | None) -> Bill:
        """Answer what an earlier run of the same step answered."""
        unpaid = invoice is not None and invoice.status in (InvoiceStatus.DRAFT, InvoiceStatus.OPEN)
        if invoice is None or not unpaid or record.state in INDEBTED or record.state not in LIVE:
            return books.bill_of(record, invoice)
        held = await invoices.open_hold(session, record.id)
        rest = invoice.due - books.held_amount(held, record.currency)
        card = CardDue(amount=rest, payment_method_id=record.funds.payment_method_id or "")
        return books.bill_of(record, invoice, card=card)

    @staticmethod
    def card(record: Record, funding: ledger.Funding) -> CardDue | None:
        """Return what a card has to pay, None when credit covers all or the order excludes a card."""
        method = record.funds.payment_method_id
        if funding.covered or method is None or record.collection == Collection.WALLET:
            return None
        return CardDue(amount=funding.rest, payment_method_id=method)


_NEWS = {State.PAST_DUE: "recovered", State.SUSPENDED: "recovered", State.PAUSED: "resumed"}
_SENTENCES = {
    "recovered": "The debt is settled.",
    "resumed": "A new period has begun.",
    "renewed": "A new period has begun.",
}


def fund(record: Record, due: Money) -> ledger.Funding:
    """Split what is due as the order wished: credit and then a card, or the card alone."""
    if record.collection == Collection.CARD and record.funds.payment_method_id is not None:
        nothing = zero(due.currency)
        return ledger.Funding(promotional=nothing, wallet=nothing, rest=due)
    return ledger.fund(due, promotional=record.funds.promotional, wallet=record.funds.wallet)


def post_invoice(journal: Journal, new: NewInvoice, what: str, funding: ledger.Funding | None) -> None:
    """Post a finalised invoice: paid at once by ``funding``, or owed when it is None."""
    nothing = zero(new.total.currency)
    if not new.total:
        return
    if funding is None:
        journal.post(
            ledger.invoiced(total=new.total, tax=new.tax), key=f"invoice/{new.id}", description=what, ref=new.id
        )
        return
    journal.post(
        ledger.charge(promotional=funding.promotional, wallet=funding.wallet, held=nothing, tax=new.tax),
        key=f"paid/{new.id}",
        description=what,
        ref=new.id,
    )


def tell_paid(journal: Journal, invoice_id: str, total: Money) -> None:
    amount = plain(total)
    journal.tell("payment.succeeded", f"{amount} was paid.", ref=invoice_id, fact=f"payment.succeeded/{invoice_id}")
    journal.tell("invoice.paid", f"The invoice over {amount} was paid.", ref=invoice_id, fact=f"paid/{invoice_id}")


def explain(record: Record, lines: Sequence[Line], **covered: Money) -> dict[str, Any]:
    """Return why the amounts of an invoice are what they are, line by line, for ``GET …/explain``."""
    return {
        "price_id": record.price_id,
        "plan": record.plan_code,
        "lines": [
            {
                "description": line.description,
                "unit_price": books.money_json(line.unit_price),
                "discount": books.money_json(line.discount),
                "coupon": record.discount.code if record.discount and line.discount else None,
                "period": {"start": line.period.start.isoformat(), "end": line.period.end.isoformat()},
                "arithmetic": f"{line.unit_price.amount_minor} x {line.quantity} - {line.discount.amount_minor}"
                f" = {line.amount.amount_minor} {line.amount.currency} (minor units)",
            }
            for line in lines
        ],
        "covered": {source: books.money_json(amount) for source, amount in covered.items()},
    }


def what(record: Record) -> str:
    return f"{record.service_name}, {record.plan_name}"


def plain(amount: Money) -> str:
    """Return an amount as the timeline tells it, with the currency's own number of decimals."""
    return money(amount.amount_minor, amount.currency)


def unpaid_bill(record: Record) -> Bill:
    """Nothing was invoiced and nothing was paid."""
    first = record.first_failure if record.state in INDEBTED else None
    return Bill(invoice_id=None, paid=False, card=None, state=record.state, first_failure=first)
