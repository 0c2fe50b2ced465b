"""Invoices of periods: activation and renewal. Each activity is one transaction and finds what an earlier run wrote."""

from __future__ import annotations

from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession
from temporalio import activity

from activities import billing_steps as steps
from activities import bookkeeping as books
from activities import coupons
from activities.bookkeeping import NewInvoice
from activities.collection import CollectionActivities
from activities.plan_changes import PlanChangeActivities
from db.queries import invoices
from db.queries.journal import Journal
from db.queries.records import Record
from workflows.ports.billing import Activate, Bill, Billing, Renew
from workflows.ports.subscription import CardDue
from workflows.rules import dunning, ledger
from workflows.rules.invoice import InvoiceStatus
from workflows.rules.money import zero
from workflows.rules.periods import Period
from workflows.rules.pricing import plan_line
from workflows.rules.subscription import LIVE, State


class BillingActivities(CollectionActivities, PlanChangeActivities, Billing):
    @activity.defn(name="billing.activate")
    async def activate(self, command: Activate) -> Bill:
        async with self._sessions.begin() as session:
            record = await books.require(session, command.subscription_id)
            if record.state is not State.PROVISIONING:
                existing = await invoices.find_period(session, record.id, command.period_start)
                return await self.again(session, record, existing)
            journal = books.journal_of(record, command.now, "platform")
            message = f"{record.service_name} is ready at {record.hostname}."
            journal.tell("instance.ready", message, ref=record.instance_id)
            if command.trial:
                return await self._begin_trial(session, journal, record, command)
            return await self._bill_first_period(session, journal, record, command)

    @activity.defn(name="billing.renew")
    async def renew(self, command: Renew) -> Bill:
        async with self._sessions.begin() as session:
            record = await books.require(session, command.subscription_id)
            # An invoice, unless it is a draft that a card still pays, moves the locked row into its period.
            begun = command.restart or record.period_start is None or record.period_start >= command.period_start
            existing = await invoices.find_period(session, record.id, command.period_start) if begun else None
            if existing is not None or record.state not in LIVE:
                return await self.again(session, record, existing)
            journal = books.journal_of(record, command.now, command.actor)
            before = record.state
            record, columns = await self.due_change(session, journal, record, command.terms)
            new = _period_invoice(record, Period(start=command.period_start, end=command.period_end))
            funding = steps.fund(record, new.total)
            card = self.card(record, funding)
            if command.restart and not funding.covered and card is None:
                return await self._cannot_restart(session, command)
            draft = command.restart and not funding.covered
            if card is not None:
                await books.hold_beside_card(session, journal, record, funding, f"{new.id}/renewal")
            if draft:
                if columns:
                    journal.update(**columns)
            else:
                columns |= await coupons.use(session, record)
                record = self._begin_period(journal, record, command, columns, funding, card)
                steps.post_invoice(journal, new, steps.what(record), funding if funding.covered else None)
            if funding.covered:
                _tell_renewal(journal, before, record, new)
            elif card is None:
                _tell_unpaid(journal, record, new, command)
            status = InvoiceStatus.DRAFT if draft else InvoiceStatus.PAID if funding.covered else InvoiceStatus.OPEN
            invoice = books.write_invoice(
                journal,
                record,
                new,
                status=status,
                due=zero(record.currency) if funding.covered else new.total,
                explanation=steps.explain(
                    record, new.lines, promotional=funding.promotional, wallet=funding.wallet, card=funding.rest
                ),
            )
            await journal.write(session)
            return books.bill_of(record, invoice, card=card)

    async def _begin_trial(self, session: AsyncSession, journal: Journal, record: Record, command: Activate) -> Bill:
        record = self.enter(
            journal,
            record,
            State.TRIALING,
            "the instance is ready",
            anchor=command.period_start,
            current_period_start=command.period_start,
            current_period_end=command.period_end,
            trial_end=command.period_end,
        )
        journal.tell("subscription.activated", "The trial has begun.")
        journal.notify("service_ready", books.mail_context(record, trial_end=command.period_end))
        await journal.write(session)
        return books.bill_of(record, None)

    async def _bill_first_period(
        self, session: AsyncSession, journal: Journal, record: Record, command: Activate
    ) -> Bill:
        """Finalise the first invoice; what was held pays it, an authorised card owes the rest."""
        period = Period(start=command.period_start, end=command.period_end)
        new = _period_invoice(record, period)
        held = await books.capture_hold(session, record)
        paid = min(books.held_amount(held, record.currency), new.total)
        due, nothing = new.total - paid, zero(record.currency)
        record = self.enter(
            journal,
            record,
            State.ACTIVE,
            "the instance is ready",
            anchor=period.start,
            current_period_start=period.start,
            current_period_end=period.end,
            **await coupons.use(session, record),
        )
        what = steps.what(record)
        if due:
            steps.post_invoice(journal, new, what, None)
        if paid:
            post = (
                ledger.collected(promotional=nothing, wallet=nothing, held=paid)
                if due
                else ledger.charge(promotional=nothing, wallet=nothing, held=paid, tax=new.tax)
            )
            journal.post(post, key=f"paid/{new.id}/held", description=what, ref=new.id)
        journal.tell("subscription.activated", "Billing has begun.", ref=new.id)
        if not due:
            steps.tell_paid(journal, new.id, new.total)
        context = books.mail_context(
            record, amount=new.total, period_start=period.start, period_end=period.end, invoice_id=new.id
        )
        journal.notify("service_ready", context)
        invoice = books.write_invoice(
            journal,
            record,
            new,
            status=InvoiceStatus.OPEN if due else InvoiceStatus.PAID,
            due=due,
            explanation=steps.explain(record, new.lines, held=paid, card=due),
        )
        await journal.write(session)
        card = CardDue(amount=due, payment_method_id=record.funds.payment_method_id or "") if due else None
        return books.bill_of(record, invoice, card=card)

    def _begin_period(
        self,
        journal: Journal,
        record: Record,
        command: Renew,
        columns: dict[str, Any],
        funding: ledger.Funding,
        card: CardDue | None,
    ) -> Record:
        """The period begins, paid or not; without credit and card the subscription falls behind at once."""
        columns = {
            **columns,
            "current_period_start": command.period_start,
            "current_period_end": command.period_end,
        }
        if command.restart or record.anchor is None or record.interval != command.terms.interval:
            columns["anchor"] = command.period_start
        if not funding.covered and card is None:
            why = "the renewal was not paid"
            return self.fall_behind(journal, record, command.period_start, why, **columns)
        return self.enter(journal, record, State.ACTIVE, "a new period began", **columns)

    async def _cannot_restart(self, session: AsyncSession, command: Renew) -> Bill:
        """A trial ends, or a pause was to end, and nothing can pay: it is (or stays) paused, never free."""
        record = await books.require(session, command.subscription_id)
        if record.state is State.TRIALING:
            journal = books.journal_of(record, command.now, command.actor)
            context = books.mail_context(record, amount=command.terms.price, status=State.PAUSED)
            journal.notify("payment_failed", context)
            record = self.pause_after_trial(journal, record)
            await journal.write(session)
        return steps.unpaid_bill(record)


def _period_invoice(record: Record, period: Period) -> NewInvoice:
    return NewInvoice(
        id=books.period_invoice_id(record, period.start),
        kind="period",
        period=period,
        lines=(plan_line(steps.what(record), record.price, period, record.discount),),
        price_id=record.price_id,
    )


def _tell_renewal(journal: Journal, before: State, record: Record, new: NewInvoice) -> None:
    kind = "resumed" if before is State.PAUSED else "renewed"
    context = books.mail_context(
        record, amount=new.total, invoice_id=new.id, period_start=new.period.start, period_end=new.period.end
    )
    journal.tell(f"subscription.{kind}", "A new period has begun.", ref=new.id, fact=f"{kind}/{new.id}")
    steps.tell_paid(journal, new.id, new.total)
    journal.notify(f"subscription_{kind}", context, fact=f"{kind}/{new.id}")


def _tell_unpaid(journal: Journal, record: Record, new: NewInvoice, command: Renew) -> None:
    journal.tell("payment.failed", "Neither the wallet nor a card covers the renewal.", ref=new.id)
    first = record.first_failure or command.now
    context = books.mail_context(
        record,
        amount=new.total,
        invoice_id=new.id,
        period_start=new.period.start,
        period_end=new.period.end,
        next_attempt=dunning.next_retry(command.terms.calendar, first, 0),
        suspends_at=dunning.suspension(command.terms.calendar, first),
    )
    journal.notify("payment_failed", context)
