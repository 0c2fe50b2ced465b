"""Plan changes: priced by the same rule as the preview, applied once, undone when the instance cannot follow."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession
from temporalio import activity

from activities import billing_steps as steps
from activities import bookkeeping as books
from activities.billing_steps import BillingSteps
from activities.bookkeeping import NewInvoice
from activities.collection import applied, applied_key, keep_in_wallet, received_by
from activities.terms import terms_of
from db.models.billing import Subscription
from db.queries import catalogue, invoices, records
from db.queries.journal import Journal
from db.queries.plan_changes import quote_change
from db.queries.records import PlanRecord, Record
from workflows.ports.billing import Bill, Changed, ChangeOutcome, ChangePlan, CompleteChange, RevertChange
from workflows.ports.subscription import CardDue, Terms
from workflows.refusals import refusal_of, refuse
from workflows.rules import ids, ledger
from workflows.rules.errors import Refusal, RuleBroken
from workflows.rules.invoice import InvoiceStatus
from workflows.rules.money import Money, zero
from workflows.rules.periods import Period
from workflows.rules.plan_change import Quote
from workflows.rules.proration import Mode
from workflows.rules.subscription import LIVE


class PlanChangeActivities(BillingSteps):
    @activity.defn(name="billing.change_plan")
    async def change_plan(self, command: ChangePlan) -> Changed:
        async with self._sessions.begin() as session:
            record = await books.require(session, command.subscription_id)
            plan = await records.load_plan(session, command.plan_id, record.currency, command.now)
            if plan is None:
                raise refuse(Refusal.PLAN_UNAVAILABLE, "This plan is not offered.")
            terms = terms_of(plan, record.timezone)
            before = await invoices.find_order(session, command.order_id)
            if before is not None:
                return await self._changed_before(session, record, terms, before)
            priced = await self._price(session, command)
            journal = books.journal_of(record, command.now, command.actor)
            if priced.mode is Mode.PERIOD_END:
                return await self._schedule(session, journal, record, plan, terms)
            changed = Changed(
                outcome=ChangeOutcome.APPLIED,
                terms=terms,
                restarts=priced.restarts,
                period_start=priced.period.start if priced.restarts else None,
                period_end=priced.period.end if priced.restarts else None,
            )
            new = self._change_invoice(record, plan, priced, command)
            if new is None:
                await self._apply(session, journal, record, plan, priced.period if priced.restarts else None)
                self._give_credit(journal, record, priced.credit, command.order_id)
                await journal.write(session)
                return changed
            return await self._charge_change(session, journal, record, plan, priced, new, changed)

    @activity.defn(name="billing.complete_change")
    async def complete_change(self, command: CompleteChange) -> Bill:
        async with self._sessions.begin() as session:
            record = await books.require(session, command.subscription_id)
            invoice = await invoices.find(session, command.invoice_id)
            if await applied(session, command.payment_id):
                return books.bill_of(record, invoice)
            journal = books.journal_of(record, command.now, command.actor)
            received = await received_by(session, command.payment_id)
            if invoice is None or invoice.status is not InvoiceStatus.DRAFT or record.state not in LIVE:
                await books.release_hold(session, journal, record)
                keep_in_wallet(journal, received, command.payment_id)
                await journal.write(session)
                return steps.unpaid_bill(record)
            plan = await records.load_plan(session, command.terms.plan_id, record.currency, command.now)
            if plan is None:
                raise refuse(Refusal.PLAN_UNAVAILABLE, "The plan is no longer offered.")
            held = await books.capture_hold(session, record)
            nothing = zero(record.currency)
            amount = received + books.held_amount(held, record.currency)
            posting = ledger.charge(promotional=nothing, wallet=nothing, held=amount, tax=invoice.tax)
            journal.post(
                posting, key=applied_key(command.payment_id), description=f"Change to {plan.name}", ref=invoice.id
            )
            period = Period(start=invoice.period_start, end=invoice.period_end) if command.restarts else None
            await self._apply(session, journal, record, plan, period)
            steps.tell_paid(journal, invoice.id, invoice.total)
            number = await invoices.draw_number(session, command.now)
            await invoices.mark_paid(session, invoice.id, command.now, number)
            await journal.write(session)
            return Bill(invoice_id=invoice.id, paid=True, card=None, state=record.state)

    @activity.defn(name="billing.revert_change")
    async def revert_change(self, command: RevertChange) -> None:
        async with self._sessions.begin() as session:
            record = await books.require(session, command.subscription_id)
            old = command.fallback.terms
            if record.plan_id == old.plan_id:
                return
            journal = books.journal_of(record, command.now, "platform")
            invoice = await invoices.find_order(session, command.order_id)
            if invoice is not None and invoice.status is InvoiceStatus.PAID and invoice.total:
                journal.post(
                    ledger.refund_to_wallet(invoice.total),
                    key=f"reverted/{command.order_id}",
                    description="The plan change was undone",
                    ref=invoice.id,
                )
                journal.tell(
                    "refund.succeeded", f"{steps.plain(invoice.total)} went back to the wallet.", ref=invoice.id
                )
            journal.change("plan", record.plan_id, old.plan_id, command.reason)
            journal.tell("subscription.plan_changed", "The plan change was undone: the instance could not be resized.")
            await books.update(
                session,
                record,
                command.now,
                plan_id=old.plan_id,
                price_id=old.price_id,
                price_minor=old.price.amount_minor,
                anchor=command.fallback.anchor,
                current_period_start=command.fallback.period_start,
                current_period_end=command.fallback.period_end,
            )
            await journal.write(session)

    async def due_change(
        self, session: AsyncSession, journal: Journal, record: Record, terms: Terms
    ) -> tuple[Record, dict[str, Any]]:
        """Return the record as a scheduled change makes it, and the columns to write; nothing when none is due."""
        if terms.plan_id == record.plan_id:
            return record, {}
        plan = await records.load_plan(session, terms.plan_id, record.currency, journal.at)
        name = plan.name if plan is not None else terms.plan_code
        _tell_change(journal, record, terms.plan_id, name)
        changed = replace(
            record,
            plan_id=terms.plan_id,
            plan_code=terms.plan_code,
            plan_name=name,
            price_id=terms.price_id,
            price=terms.price,
        )
        return changed, {
            "plan_id": terms.plan_id,
            "price_id": terms.price_id,
            "price_minor": terms.price.amount_minor,
            "pending_plan_id": None,
        }

    @staticmethod
    async def _price(session: AsyncSession, command: ChangePlan) -> Quote:
        """Price the change exactly as the preview does."""
        subscription = await session.get_one(Subscription, command.subscription_id)
        plan = await catalogue.plan(session, command.plan_id)
        if plan is None:
            raise refuse(Refusal.PLAN_UNAVAILABLE, "This plan is not offered.")
        try:
            return await quote_change(session, subscription, plan, at=command.now, mode=command.mode)
        except RuleBroken as broken:
            raise refusal_of(broken) from broken

    async def _changed_before(
        self, session: AsyncSession, record: Record, terms: Terms, invoice: invoices.InvoiceRecord
    ) -> Changed:
        """The same order ran before: answer from what it wrote."""
        restarts = invoice.period_end != record.period_end or (
            record.plan_id == terms.plan_id and (invoice.period_start == record.anchor)
        )
        if invoice.status is InvoiceStatus.DRAFT:
            held = await invoices.open_hold(session, record.id)
            rest = invoice.due - books.held_amount(held, record.currency)
            return Changed(
                outcome=ChangeOutcome.CARD_DUE,
                terms=terms,
                restarts=restarts,
                invoice_id=invoice.id,
                card=CardDue(amount=rest, payment_method_id=record.funds.payment_method_id or ""),
                period_start=invoice.period_start if restarts else None,
                period_end=invoice.period_end if restarts else None,
            )
        return Changed(
            outcome=ChangeOutcome.APPLIED,
            terms=terms,
            restarts=restarts,
            invoice_id=invoice.id,
            period_start=invoice.period_start if restarts else None,
            period_end=invoice.period_end if restarts else None,
        )

    async def _schedule(
        self, session: AsyncSession, journal: Journal, record: Record, plan: PlanRecord, terms: Terms
    ) -> Changed:
        journal.change("pending_plan", record.pending_plan_id, plan.plan_id, "scheduled for the period's end")
        journal.tell("subscription.plan_change_scheduled", f"{plan.name} begins with the next period.")
        await books.update(session, record, journal.at, pending_plan_id=plan.plan_id, cancel_at_period_end=False)
        await journal.write(session)
        return Changed(outcome=ChangeOutcome.SCHEDULED, terms=terms, restarts=False)

    @staticmethod
    def _change_invoice(record: Record, plan: PlanRecord, priced: Quote, command: ChangePlan) -> NewInvoice | None:
        """Return the invoice of the change; None when nothing is due, since an invoice is never negative."""
        if not priced.due:
            return None
        period = priced.period if priced.restarts else Period(start=command.now, end=priced.period.end)
        return NewInvoice(
            id=ids.derived("inv", record.id, command.order_id),
            kind="period" if priced.restarts else "change",
            period=period,
            lines=priced.lines,
            price_id=plan.price_id,
            order_id=command.order_id,
        )

    async def _charge_change(
        self,
        session: AsyncSession,
        journal: Journal,
        record: Record,
        plan: PlanRecord,
        priced: Quote,
        new: NewInvoice,
        changed: Changed,
    ) -> Changed:
        funding = steps.fund(record, new.total)
        card = self.card(record, funding)
        if not funding.covered and card is None:
            raise refuse(Refusal.INSUFFICIENT_FUNDS, "Neither credit nor a card covers the change.")
        covered = {"promotional": funding.promotional, "wallet": funding.wallet, "card": funding.rest}
        explanation = steps.explain(record, new.lines, **covered)
        if card is not None:
            await books.hold_beside_card(session, journal, record, funding, f"{new.id}/change")
            invoice = await books.write_invoice(
                session, journal, record, new, status=InvoiceStatus.DRAFT, due=new.total, explanation=explanation
            )
            await journal.write(session)
            return replace(changed, outcome=ChangeOutcome.CARD_DUE, invoice_id=invoice.id, card=card)
        steps.post_invoice(journal, new, f"Change to {plan.name}", funding)
        steps.tell_paid(journal, new.id, new.total)
        await self._apply(session, journal, record, plan, priced.period if priced.restarts else None)
        invoice = await books.write_invoice(
            session,
            journal,
            record,
            new,
            status=InvoiceStatus.PAID,
            due=zero(record.currency),
            explanation=explanation,
        )
        await journal.write(session)
        return replace(changed, invoice_id=invoice.id)

    async def _apply(
        self, session: AsyncSession, journal: Journal, record: Record, plan: PlanRecord, period: Period | None
    ) -> None:
        """Write the new plan; ``period`` when it begins a new one."""
        columns: dict[str, Any] = {
            "plan_id": plan.plan_id,
            "price_id": plan.price_id,
            "price_minor": plan.price.amount_minor,
            "pending_plan_id": None,
        }
        if period is not None:
            columns |= {
                "anchor": period.start,
                "current_period_start": period.start,
                "current_period_end": period.end,
            }
        await books.update(session, record, journal.at, **columns)
        _tell_change(journal, record, plan.plan_id, plan.name)

    @staticmethod
    def _give_credit(journal: Journal, record: Record, amount: Money, order_id: str) -> None:
        if amount:
            journal.post(ledger.credit(amount), key=f"credit/{order_id}", description="Unused time", ref=record.id)


def _tell_change(journal: Journal, record: Record, plan_id: str, name: str) -> None:
    journal.change("plan", record.plan_id, plan_id, "plan change")
    journal.tell(
        "subscription.plan_changed", f"The plan is now {name}.", fact=f"plan/{plan_id}/{journal.at.isoformat()}"
    )
    journal.notify("plan_changed", books.mail_context(replace(record, plan_name=name)))
