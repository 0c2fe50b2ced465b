"""Plan changes: priced by the same rule as the preview, applied once, undone when the instance cannot follow."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession
from temporalio import activity

from activities import billing_steps as steps
from activities import bookkeeping as books
from activities import coupons
from activities.billing_steps import BillingSteps
from activities.bookkeeping import NewInvoice
from activities.collection import applied, applied_key, keep_in_wallet, posted_amount, received_by
from activities.terms import terms_of
from db.models.billing import Subscription
from db.queries import catalogue, invoices, records
from db.queries.journal import Journal, told
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
            before = await self._changed_before(session, record, terms, command)
            if before is not None:
                return before
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
                period = priced.period if priced.restarts else None
                await self._apply(
                    session, journal, record, terms, plan.name, command.order_id, period, credit=priced.credit or None
                )
                self._give_credit(journal, record, priced.credit, command.order_id)
                await journal.write(session)
                return changed
            return await self._charge_change(session, journal, record, plan.name, priced, new, changed)

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
                return books.bill_of(record, invoice)
            # The plan may have left the catalogue, or have got another price, while the card was asked.
            plan = await records.load_plan(session, command.terms.plan_id, record.currency, command.now)
            name = plan.name if plan is not None else command.terms.plan_code
            held = await books.capture_hold(session, record)
            nothing = zero(record.currency)
            amount = received + books.held_amount(held, record.currency)
            posting = ledger.charge(promotional=nothing, wallet=nothing, held=amount, tax=invoice.tax)
            journal.post(posting, key=applied_key(command.payment_id), description=f"Change to {name}", ref=invoice.id)
            period = Period(start=invoice.period_start, end=invoice.period_end) if command.restarts else None
            await self._apply(
                session,
                journal,
                record,
                command.terms,
                name,
                command.order_id,
                period,
                amount=invoice.total,
                invoice_id=invoice.id,
            )
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
            returned = None
            if invoice is not None and invoice.status is InvoiceStatus.PAID and invoice.total:
                returned = invoice.total
                journal.post(
                    ledger.refund_to_wallet(invoice.total),
                    key=f"reverted/{command.order_id}",
                    description="The plan change was undone",
                    ref=invoice.id,
                )
                journal.tell(
                    "refund.succeeded", f"{steps.plain(invoice.total)} went back to the wallet.", ref=invoice.id
                )
            await self._take_credit_back(session, journal, record, command.order_id)
            journal.change("plan", record.plan_id, old.plan_id, command.reason)
            journal.tell("subscription.plan_changed", "The plan change was undone: the instance could not be resized.")
            plan = await records.load_plan(session, old.plan_id, record.currency, command.now)
            name = plan.name if plan is not None else old.plan_code
            journal.notify("plan_changed", _mail(record, name, reason="undone", credit=returned))
            journal.update(
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
        _tell_change(journal, record, terms.plan_id, name, f"plan/{terms.plan_id}/{journal.at.isoformat()}")
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

    @staticmethod
    async def _changed_before(
        session: AsyncSession, record: Record, terms: Terms, command: ChangePlan
    ) -> Changed | None:
        """Return what the same order did before, from what it wrote; None when it is new.

        Raises:
            ApplicationError: ``PAYMENT_DECLINED``, as it was answered then.
        """
        invoice = await invoices.find_order(session, command.order_id)
        if invoice is None:
            if not await told(session, record.id, _fact(command.order_id)):
                return None
            # It cost nothing, so it left no invoice. A period that begins with the order was begun by it.
            restarts, start, end = record.period_start == command.now, record.period_start, record.period_end
        elif invoice.status is InvoiceStatus.VOID:
            raise refuse(
                Refusal.PAYMENT_DECLINED, "The card did not pay for this change.", {"decline_code": "declined"}
            )
        else:
            restarts, start, end = invoice.kind == "period", invoice.period_start, invoice.period_end
        changed = Changed(
            outcome=ChangeOutcome.APPLIED,
            terms=terms,
            restarts=restarts,
            invoice_id=invoice.id if invoice is not None else None,
            period_start=start if restarts else None,
            period_end=end if restarts else None,
        )
        if invoice is None or invoice.status is not InvoiceStatus.DRAFT:
            return changed
        held = await invoices.open_hold(session, record.id)
        rest = invoice.due - books.held_amount(held, record.currency)
        card = CardDue(amount=rest, payment_method_id=record.funds.payment_method_id or "")
        return replace(changed, outcome=ChangeOutcome.CARD_DUE, card=card)

    async def _schedule(
        self, session: AsyncSession, journal: Journal, record: Record, plan: PlanRecord, terms: Terms
    ) -> Changed:
        if record.pending_plan_id != plan.plan_id or record.cancel_at_period_end:
            journal.change("pending_plan", record.pending_plan_id, plan.plan_id, "scheduled for the period's end")
            journal.tell("subscription.plan_change_scheduled", f"{plan.name} begins with the next period.")
            journal.notify("plan_changed", _mail(record, plan.name, effective_at=record.period_end))
            journal.update(pending_plan_id=plan.plan_id, cancel_at_period_end=False)
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
        name: str,
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
            invoice = books.write_invoice(
                journal, record, new, status=InvoiceStatus.DRAFT, due=new.total, explanation=explanation
            )
            await journal.write(session)
            return replace(changed, outcome=ChangeOutcome.CARD_DUE, invoice_id=invoice.id, card=card)
        steps.post_invoice(journal, new, f"Change to {name}", funding)
        steps.tell_paid(journal, new.id, new.total)
        period = priced.period if priced.restarts else None
        order_id = new.order_id or new.id
        await self._apply(
            session, journal, record, changed.terms, name, order_id, period, amount=new.total, invoice_id=new.id
        )
        invoice = books.write_invoice(
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
        self,
        session: AsyncSession,
        journal: Journal,
        record: Record,
        terms: Terms,
        name: str,
        order_id: str,
        period: Period | None,
        **mail: Any,
    ) -> None:
        """Write the new plan; ``period`` when it begins a new one. ``mail`` is what its mail is told of the money."""
        columns: dict[str, Any] = {
            "plan_id": terms.plan_id,
            "price_id": terms.price_id,
            "price_minor": terms.price.amount_minor,
            "pending_plan_id": None,
        }
        if period is not None:
            columns |= {
                "anchor": period.start,
                "current_period_start": period.start,
                "current_period_end": period.end,
                **await coupons.use(session, record),
            }
        journal.update(**columns)
        _tell_change(journal, record, terms.plan_id, name, _fact(order_id), **mail)

    @staticmethod
    def _give_credit(journal: Journal, record: Record, amount: Money, order_id: str) -> None:
        if amount:
            journal.post(ledger.credit(amount), key=_credit_key(order_id), description="Unused time", ref=record.id)

    @staticmethod
    async def _take_credit_back(session: AsyncSession, journal: Journal, record: Record, order_id: str) -> None:
        """What the change gave as credit goes with it, as far as it was not spent in the moment between."""
        given = await posted_amount(session, _credit_key(order_id), record.currency)
        back = ledger.fund(given, promotional=record.funds.promotional, wallet=record.funds.wallet)
        if back.promotional or back.wallet:
            nothing = zero(record.currency)
            journal.post(
                ledger.charge(promotional=back.promotional, wallet=back.wallet, held=nothing, tax=nothing),
                key=f"reverted/{order_id}/credit",
                description="The plan change was undone",
                ref=record.id,
            )


def _fact(order_id: str) -> str:
    return f"plan/{order_id}"


def _credit_key(order_id: str) -> str:
    return f"credit/{order_id}"


def _tell_change(journal: Journal, record: Record, plan_id: str, name: str, fact: str, **mail: Any) -> None:
    journal.change("plan", record.plan_id, plan_id, "plan change")
    journal.tell("subscription.plan_changed", f"The plan is now {name}.", fact=fact)
    journal.notify("plan_changed", _mail(record, name, **mail))


def _mail(record: Record, name: str, **more: Any) -> dict[str, Any]:
    return books.mail_context(replace(record, plan_name=name), old_plan_name=record.plan_name, **more)
