"""A subscription's own records: the order, its end, and the moves that touch no money."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from temporalio import activity

from activities import billing_steps as steps
from activities import bookkeeping as books
from activities import coupons
from activities.terms import terms_of
from db.queries import invoices, records
from db.queries.journal import Journal, constraint_of
from db.queries.records import Funds, PlanRecord, Record
from db.session import Sessions
from workflows.ports.billing import Subscriptions
from workflows.ports.subscription import (
    CardDue,
    CloseOrder,
    Collection,
    Opened,
    OpenSubscription,
    RecordIntent,
    RecordState,
    Remind,
    Secured,
    Subscribe,
)
from workflows.refusals import refusal_of, refuse
from workflows.rules import ledger
from workflows.rules.errors import Refusal, RuleBroken
from workflows.rules.ids import dns_label, host_label
from workflows.rules.money import Money
from workflows.rules.pricing import Discount, reduction
from workflows.rules.subscription import BEFORE_READY, INDEBTED, State, move

_REFUSED_BY_CONSTRAINT = {
    "uq_subscriptions_one_trial_per_service": (
        Refusal.TRIAL_ALREADY_USED,
        "This account has already tried this service.",
    ),
    "uq_instances_hostname": (Refusal.CONFLICT, "This host name is taken."),
}

_NOTICES = {
    State.FAILED: "subscription_failed",
    State.EXPIRED: "subscription_expired",
    State.CANCELLED: "subscription_cancelled",
    State.SUSPENDED: "subscription_suspended",
    State.PAUSED: "subscription_paused",
    State.TERMINATED: "subscription_terminated",
}


class SubscriptionActivities(Subscriptions):
    def __init__(self, sessions: Sessions, base_domain: str) -> None:
        self._sessions = sessions
        self._base_domain = base_domain

    @activity.defn(name="subscriptions.open")
    async def open(self, command: OpenSubscription) -> Opened:
        try:
            async with self._sessions.begin() as session:
                return await self._open(session, command)
        except RuleBroken as broken:
            raise refusal_of(broken) from broken
        except IntegrityError as error:
            refusal = _REFUSED_BY_CONSTRAINT.get(constraint_of(error))
            if refusal is None:
                raise
            raise refuse(*refusal) from error

    @activity.defn(name="subscriptions.secured")
    async def secured(self, command: Secured) -> None:
        async with self._sessions.begin() as session:
            record = await books.require(session, command.subscription_id)
            if record.state is not State.PENDING:
                return
            journal = books.journal_of(record, command.now, "platform")
            journal.tell("payment.authorized", "The card is authorised.", ref=command.payment_id)
            journal.tell("instance.provisioning", f"{record.service_name} is being set up.", ref=record.instance_id)
            _enter(journal, record, State.PROVISIONING, "secured")
            await journal.write(session)

    @activity.defn(name="subscriptions.close_order")
    async def close_order(self, command: CloseOrder) -> None:
        async with self._sessions.begin() as session:
            record = await books.require(session, command.subscription_id)
            if record.state not in BEFORE_READY:
                return
            journal = books.journal_of(record, command.now, command.actor)
            await books.release_hold(session, journal, record)
            await coupons.release(session, record.id)
            # Nobody has begun to set it up, so nobody else will say that it is gone.
            await session.execute(
                text(
                    "UPDATE instances SET status = 'deleted', deleted_at = :at"
                    " WHERE subscription_id = :id AND status = 'requested'"
                ),
                {"id": record.id, "at": command.now},
            )
            journal.tell(f"subscription.{command.state}", command.reason)
            journal.notify(_NOTICES[command.state], books.mail_context(record, reason=command.reason))
            columns = {"cancelled_at": command.now} if command.state is State.CANCELLED else {}
            _enter(journal, record, command.state, command.reason, **columns)
            await journal.write(session)

    @activity.defn(name="subscriptions.record_state")
    async def record_state(self, command: RecordState) -> None:
        async with self._sessions.begin() as session:
            record = await books.require(session, command.subscription_id)
            if record.state is command.to:
                return
            journal = books.journal_of(record, command.now, command.actor)
            columns: dict[str, Any] = {}
            if command.to is State.CANCELLED:
                columns = {
                    "cancelled_at": command.now,
                    "delete_at": command.delete_at,
                    "cancel_at_period_end": False,
                    "pending_plan_id": None,
                    "first_failure_at": None,
                }
            if command.to is State.PAUSED:
                columns = {"cancel_at_period_end": False}
            if command.void_invoice:
                await _void_invoices(session, journal, record)
            if command.to is State.CANCELLED:
                await coupons.release(session, record.id)
            journal.tell(f"subscription.{command.to}", command.reason)
            context = await _told_of_state(session, record, command)
            journal.notify(_NOTICES[command.to], context)
            _enter(journal, record, command.to, command.reason, **columns)
            await journal.write(session)

    @activity.defn(name="subscriptions.record_intent")
    async def record_intent(self, command: RecordIntent) -> None:
        async with self._sessions.begin() as session:
            record = await books.require(session, command.subscription_id)
            journal = books.journal_of(record, command.now, command.actor)
            if record.cancel_at_period_end != command.cancel_at_period_end:
                before, after = str(record.cancel_at_period_end), str(command.cancel_at_period_end)
                journal.change("cancel_at_period_end", before, after, command.reason)
                if command.cancel_at_period_end:
                    journal.tell("subscription.cancellation_scheduled", "It ends with the period that is paid for.")
                    context = books.mail_context(
                        record, reason=command.reason, period_end=record.period_end, cancel_at_period_end=True
                    )
                    journal.notify("subscription_cancelled", context)
                else:
                    journal.tell("subscription.cancellation_withdrawn", "It goes on after all.")
            journal.update(
                cancel_at_period_end=command.cancel_at_period_end,
                pending_plan_id=command.pending_plan_id,
            )
            await journal.write(session)

    @activity.defn(name="subscriptions.remind")
    async def remind(self, command: Remind) -> None:
        async with self._sessions.begin() as session:
            record = await books.require(session, command.subscription_id)
            journal = books.journal_of(record, command.now, "platform")
            due = record.price - reduction(record.price, record.discount)
            funds = record.funds.wallet + record.funds.promotional
            context = books.mail_context(
                record,
                days=command.days,
                due_at=command.due_at,
                amount=due,
                cancel_at_period_end=record.cancel_at_period_end,
                balance_too_low=funds.amount_minor < due.amount_minor and record.funds.payment_method_id is None,
                trial_end=record.trial_end if record.state is State.TRIALING else None,
            )
            fact = f"expiring/{command.due_at.isoformat()}/{command.days}"
            journal.notify("subscription_expiring", context, fact=fact)
            await journal.write(session)

    async def _open(self, session: AsyncSession, command: OpenSubscription) -> Opened:
        order = command.order
        account = await _account(session, order)
        known = await records.load(session, order.subscription_id)
        plan = await records.load_plan(session, order.plan_id, account["currency"], command.now)
        if plan is None:
            raise refuse(Refusal.NOT_FOUND, "There is no such plan in the account's currency.")
        terms = terms_of(plan, account["timezone"])
        if known is not None:
            return Opened(terms=terms, card=await _card_due_again(session, known))
        if not plan.available:
            raise refuse(Refusal.PLAN_UNAVAILABLE, "This plan is no longer offered.")
        await _refuse_second(session, order, plan)
        # Balances before the coupon, as where an order ends: two orders never wait for each other.
        funds = await records.lock_funds(session, order.organization_id, plan.price.currency)
        discount = await coupons.reserve(session, order, command.now)
        trial = plan.trial_days > 0
        due = (
            Money(amount_minor=0, currency=plan.price.currency)
            if trial
            else plan.price - reduction(plan.price, discount)
        )
        funding = _secure(order, due, funds)
        state = State.PROVISIONING if funding.covered else State.PENDING
        await self._insert(session, command, plan, account["timezone"], state, trial, discount)
        journal = Journal(
            organization_id=order.organization_id,
            subscription_id=order.subscription_id,
            at=command.now,
            actor=order.user_id,
            run_id=command.run_id,
        )
        record = await books.require(session, order.subscription_id)
        journal.change("status", None, state.value, "ordered")
        journal.tell("subscription.created", f"{plan.service_name}, {plan.name}, was ordered.", ref=order.plan_id)
        journal.notify("subscription_created", books.mail_context(record, amount=plan.price))
        if funding.wallet or funding.promotional:
            await books.hold_beside_card(session, journal, record, funding, "order")
        if funding.covered:
            if due:
                journal.tell("payment.authorized", f"{steps.plain(due)} is set aside.")
            journal.tell("instance.provisioning", f"{plan.service_name} is being set up.", ref=order.instance_id)
        await journal.write(session)
        if funding.covered:
            return Opened(terms=terms, card=None)
        return Opened(terms=terms, card=CardDue(amount=funding.rest, payment_method_id=funds.payment_method_id or ""))

    async def _insert(
        self,
        session: AsyncSession,
        command: OpenSubscription,
        plan: PlanRecord,
        timezone: str,
        state: State,
        trial: bool,
        discount: Discount | None,
    ) -> None:
        order = command.order
        wished = json.loads(order.parameters_json).get("subdomain")
        label = host_label(wished, order.name or plan.service_slug, order.instance_id)
        await session.execute(
            _INSERT,
            {
                "id": order.subscription_id,
                "organization_id": order.organization_id,
                "user_id": order.user_id,
                "plan_id": plan.plan_id,
                "price_id": plan.price_id,
                "service_id": plan.service_id,
                "name": order.name,
                "status": state.value,
                "collection": order.collection.value if order.collection else None,
                "trial": trial,
                "currency": plan.price.currency,
                "price_minor": plan.price.amount_minor,
                "coupon_code": discount.code if discount else None,
                "coupon_periods_left": discount.periods_left if discount else None,
                "timezone": timezone,
                "workflow_id": command.workflow_id,
                "at": command.now,
                "instance_id": order.instance_id,
                "service_slug": plan.service_slug,
                "version": plan.service_version,
                "hostname": f"{label}.{self._base_domain}",
                "namespace": f"berth-{dns_label(order.instance_id)}",
                "cpu": plan.cpu_millicores,
                "memory": plan.memory_mib,
                "storage": plan.storage_gib,
                "replicas": plan.replicas,
                "parameters": order.parameters_json,
            },
        )


_INSERT = text(
    """
WITH subscription AS (
    INSERT INTO subscriptions (id, organization_id, user_id, plan_id, price_id, service_id, name, status, collection,
        trial, currency, price_minor, coupon_code, coupon_periods_left, timezone, workflow_id, created_at, updated_at)
    VALUES (:id, :organization_id, :user_id, :plan_id, :price_id, :service_id, :name, :status, :collection, :trial,
        :currency, :price_minor, :coupon_code, :coupon_periods_left, :timezone, :workflow_id, :at, :at)
)
INSERT INTO instances (id, organization_id, subscription_id, service_slug, version, hostname, namespace, status,
    cpu_millicores, memory_mib, storage_gib, replicas, parameters, created_at)
VALUES (:instance_id, :organization_id, :id, :service_slug, :version, :hostname, :namespace, 'requested',
    :cpu, :memory, :storage, :replicas, CAST(:parameters AS jsonb), :at)
"""
)


def _secure(order: Subscribe, due: Money, funds: Funds) -> ledger.Funding:
    """Say what secures the first period.

    Raises:
        ApplicationError: ``INSUFFICIENT_FUNDS``.
    """
    nothing = Money(amount_minor=0, currency=due.currency)
    if order.collection is Collection.CARD:
        funding = ledger.Funding(promotional=nothing, wallet=nothing, rest=due)
    else:
        funding = ledger.fund(due, promotional=funds.promotional, wallet=funds.wallet)
    if not funding.covered and (order.collection is Collection.WALLET or funds.payment_method_id is None):
        raise refuse(
            Refusal.INSUFFICIENT_FUNDS,
            "Neither the wallet nor a card on file covers the first period.",
            {"due_minor": str(due.amount_minor), "currency": due.currency},
        )
    return funding


async def _told_of_state(session: AsyncSession, record: Record, command: RecordState) -> dict[str, Any]:
    """Return what the mail about a move is told; who owes hears how much and until when."""
    reason, owed = command.reason, {}
    if record.state in INDEBTED and command.to is State.CANCELLED and command.actor == "platform":
        reason = "unpaid"
    if command.to is State.SUSPENDED:
        for invoice in await invoices.open_invoices(session, record.id):
            owed = {"amount": invoice.due, "invoice_id": invoice.id}
    return books.mail_context(
        record,
        reason=reason,
        delete_at=command.delete_at or record.delete_at,
        cancels_at=command.cancels_at,
        **owed,
    )


async def _account(session: AsyncSession, order: Subscribe) -> Mapping[str, Any]:
    statement = text("SELECT currency, timezone FROM organizations WHERE id = :id")
    row = (await session.execute(statement, {"id": order.organization_id})).mappings().one_or_none()
    if row is None:
        raise refuse(Refusal.NOT_FOUND, "There is no such account.")
    return dict(row)


async def _card_due_again(session: AsyncSession, record: Record) -> CardDue | None:
    """The order was opened by an earlier run of this activity: say what it left to the card."""
    if record.state is not State.PENDING:
        return None
    held = await invoices.open_hold(session, record.id)
    due = record.price - reduction(record.price, record.discount)
    rest = due - books.held_amount(held, record.currency)
    return CardDue(amount=rest, payment_method_id=record.funds.payment_method_id or "")


async def _refuse_second(session: AsyncSession, order: Subscribe, plan: PlanRecord) -> None:
    """A service that is not paid for is not ordered anew."""
    statement = text(
        "SELECT id FROM subscriptions WHERE organization_id = :organization AND service_id = :service"
        " AND status IN ('past_due', 'suspended') LIMIT 1"
    )
    parameters = {"organization": order.organization_id, "service": plan.service_id}
    owed = (await session.execute(statement, parameters)).scalar_one_or_none()
    if owed is not None:
        raise refuse(
            Refusal.DUPLICATE_SUBSCRIPTION,
            "A subscription to this service waits to be paid.",
            {"subscription_id": owed},
        )


async def _void_invoices(session: AsyncSession, journal: Journal, record: Record) -> None:
    """Withdraw what is owed or drafted; what credit had already paid of it goes back to the wallet."""
    await invoices.void_drafts(session, record.id, journal.at)
    for invoice in await invoices.open_invoices(session, record.id):
        journal.post(
            ledger.voided(total=invoice.due, tax=invoice.tax),
            key=f"void/{invoice.id}",
            description="Withdrawn",
            ref=invoice.id,
        )
        paid = invoice.total - invoice.due
        if paid:
            journal.post(
                ledger.refund_to_wallet(paid),
                key=f"void/{invoice.id}/paid",
                description="Withdrawn",
                ref=invoice.id,
            )
        await invoices.mark_void(session, invoice.id, journal.at)
        journal.tell("invoice.voided", "The open invoice was withdrawn.", ref=invoice.id, fact=f"void/{invoice.id}")


def _enter(journal: Journal, record: Record, state: State, why: str, **columns: Any) -> None:
    move(record.state, state)
    journal.change("status", record.state.value, state.value, why)
    journal.update(status=state.value, **columns)
