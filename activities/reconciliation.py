"""Implements ``workflows/ports/reconciliation.py``: finds, tells and reports; repairs nothing by itself."""

from __future__ import annotations

from datetime import UTC, datetime

from temporalio import activity
from temporalio.client import Client

from db.models.payments import Payment, WebhookEvent
from db.queries import ledger, outbox, webhooks
from db.queries.payments import facts_of
from db.session import Sessions
from workflows.client import Orchestrator
from workflows.ports.payments import GatewayEvent, Pay, pay_of
from workflows.ports.reconciliation import AuditLedger, LedgerAudit, Reconciling, TellUndelivered, Told
from workflows.rules.money import Money
from workflows.rules.payment import PaymentStatus


class ReconciliationActivities(Reconciling):
    """``client`` is for telling payments; None takes that of the worker."""

    def __init__(self, sessions: Sessions, client: Client | None = None) -> None:
        self._sessions = sessions
        self._client = client

    @activity.defn(name="reconciliation.audit_ledger")
    async def audit_ledger(self, command: AuditLedger) -> LedgerAudit:
        async with self._sessions() as session:
            drifts, unbalanced = await ledger.drift(session), await ledger.unbalanced(session)
        audit = LedgerAudit(drifts=len(drifts), unbalanced=unbalanced)
        _gauge("berth_ledger_drifts", "Kept balances that are not the sum of their entries", audit.drifts)
        _gauge("berth_ledger_unbalanced", "Transactions that do not sum to zero", audit.unbalanced)
        if not audit.sound:
            where = ", ".join(f"{one.account} {one.currency} of {one.organization_id}" for one in drifts[:5])
            await self._alert(audit, where, command.now)
        return audit

    @activity.defn(name="reconciliation.tell_undelivered")
    async def tell_undelivered(self, command: TellUndelivered) -> Told:
        orchestrator = Orchestrator(self._client or activity.client())
        waiting = await self._waiting(command)
        for event, resume in waiting:
            await orchestrator.payment_event(event, resume)
            async with self._sessions.begin() as session:
                await webhooks.delivered(session, event.gateway, event.event_id, at=datetime.now(UTC))
        return Told(events=len(waiting), more=len(waiting) == command.limit)

    async def _waiting(self, command: TellUndelivered) -> list[tuple[GatewayEvent, Pay]]:
        async with self._sessions() as session:
            events = await webhooks.undelivered(session, before=command.before, limit=command.limit)
            payments = [await session.get_one(Payment, event.payment_id) for event in events]
            return [(_said(event), pay_of(facts_of(payment))) for event, payment in zip(events, payments, strict=True)]

    async def _alert(self, audit: LedgerAudit, where: str, now: datetime) -> None:
        activity.logger.error("the ledger is not sound: %d drifts, %d unbalanced", audit.drifts, audit.unbalanced)
        details = f"{audit.drifts} balances drifted, {audit.unbalanced} transactions do not sum to zero."
        async with self._sessions.begin() as session:
            alert = outbox.operator_alert(
                f"ledger/{now.date().isoformat()}",
                now,
                "The ledger does not add up",
                f"{details} {f'First: {where}. ' if where else ''}Nothing was changed.",
                severity="critical",
            )
            await outbox.enqueue(session, alert)


def _said(event: WebhookEvent) -> GatewayEvent:
    """Raises: ``ValueError`` for an event without a fact; such are never ``received``."""
    if event.reference is None or event.fact is None or event.amount_minor is None or event.currency is None:
        raise ValueError(f"{event.gateway} {event.event_id} says nothing about a payment")
    return GatewayEvent(
        event_id=event.event_id,
        gateway=event.gateway,
        reference=event.reference,
        status=PaymentStatus(event.fact),
        amount=Money(amount_minor=event.amount_minor, currency=event.currency),
        decline_code=event.decline_code,
    )


def _gauge(name: str, description: str, value: int) -> None:
    activity.metric_meter().create_gauge(name, description).set(value)
