"""Audits the ledger, delivers webhooks that were stored but not delivered, and restarts workflows that were lost.

It changes no balance.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy.exc import NoResultFound
from sqlalchemy.ext.asyncio import AsyncSession
from temporalio import activity
from temporalio.client import Client

from activities import lost_workflows, refund_rechecks
from activities.attempt_time import scheduled_at
from activities.gateways.protocol import PaymentGateway
from activities.rule_errors import converts_rule_violations
from db.models.payments import Payment, Refund, WebhookEventRow
from db.queries import ledger, outbox, webhooks
from db.queries.payments import to_payment_record, to_refund_record
from db.session import SessionFactory, allow_long_statements
from workflows.client import WorkflowClient
from workflows.ports.payments import GatewayEvent, PaymentInput, payment_input_from_record
from workflows.ports.reconciliation import (
    AuditLedger,
    DeliverPendingWebhooks,
    LedgerAudit,
    RecheckOutcome,
    RecheckRefunds,
    ReconciliationActivities,
    RestartLostWorkflows,
    RestartOutcome,
    WebhookDeliveryOutcome,
)
from workflows.ports.refunds import RefundInput, refund_input_from_record
from workflows.rules.money import Money
from workflows.rules.payment import PaymentStatus

AUDIT_STATEMENT = timedelta(minutes=2)
"""Time limit of one statement over the whole ledger; the activity runs two of them within 5 minutes."""


class PostgresReconciliationActivities(ReconciliationActivities):
    """Reconciliation.

    Args:
        client: Temporal client that delivers events and restarts workflows; None uses the worker's.
        gateways: What reads refunds again, by name.
        audits: Connection pool of the ledger audit, whose statements take long; None uses ``sessions``.
    """

    def __init__(
        self,
        sessions: SessionFactory,
        client: Client | None = None,
        *,
        gateways: Mapping[str, PaymentGateway] | None = None,
        audits: SessionFactory | None = None,
    ) -> None:
        self._sessions = sessions
        self._gateways = gateways or {}
        self._audits = audits or sessions
        self._client = client

    @activity.defn(name="reconciliation.audit_ledger")
    @converts_rule_violations
    async def audit_ledger(self, command: AuditLedger) -> LedgerAudit:
        async with self._audits() as session:
            await allow_long_statements(session, AUDIT_STATEMENT)
            mismatches, unbalanced = (
                await ledger.find_balance_mismatches(session),
                await ledger.count_unbalanced_transactions(session),
            )
        audit = LedgerAudit(balance_mismatches=len(mismatches), unbalanced_transactions=unbalanced)
        _gauge(
            "berth_ledger_balance_mismatches",
            "Ledger balance mismatches",
            audit.balance_mismatches,
        )
        _gauge("berth_ledger_unbalanced_transactions", "Unbalanced ledger transactions", audit.unbalanced_transactions)
        if not audit.is_balanced:
            where = ", ".join(
                f"{mismatch.account} of {mismatch.organization_id} ({mismatch.stored_minor} stored,"
                f" {mismatch.computed_minor} posted, in minor units of {mismatch.currency})"
                for mismatch in mismatches[:5]
            )
            await self._alert_administrators(audit, where, command.now)
        return audit

    @activity.defn(name="reconciliation.deliver_pending_webhooks")
    @converts_rule_violations
    async def deliver_pending_webhooks(self, command: DeliverPendingWebhooks) -> WebhookDeliveryOutcome:
        workflows = self._workflows()
        async with self._sessions() as session:
            events = await webhooks.list_undelivered(session, before=command.received_before, limit=command.limit)
            pending = [delivery for event in events if (delivery := await _find_delivery(session, event)) is not None]
        for delivery in pending:
            event = delivery.event
            if isinstance(delivery.resumed, RefundInput):
                await workflows.deliver_refund_event(event.event_id, delivery.resumed)
            else:
                await workflows.deliver_gateway_event(_to_gateway_event(event), delivery.resumed)
            async with self._sessions.begin() as session:
                await webhooks.mark_delivered(session, event.gateway, event.event_id, at=datetime.now(UTC))
        # A batch in which nothing could be delivered would be read again.
        return WebhookDeliveryOutcome(events=len(pending), has_more=bool(pending) and len(events) == command.limit)

    @activity.defn(name="reconciliation.recheck_refunds")
    @converts_rule_violations
    async def recheck_refunds(self, command: RecheckRefunds) -> RecheckOutcome:
        return await refund_rechecks.recheck_refunds(self._sessions, self._gateways, self._workflows(), command)

    @activity.defn(name="reconciliation.restart_payments")
    @converts_rule_violations
    async def restart_payments(self, command: RestartLostWorkflows) -> RestartOutcome:
        return await lost_workflows.restart_payments(self._sessions, self._workflows(), command)

    @activity.defn(name="reconciliation.restart_refunds")
    @converts_rule_violations
    async def restart_refunds(self, command: RestartLostWorkflows) -> RestartOutcome:
        return await lost_workflows.restart_refunds(self._sessions, self._workflows(), command)

    @activity.defn(name="reconciliation.restart_payment_method_removals")
    @converts_rule_violations
    async def restart_payment_method_removals(self, command: RestartLostWorkflows) -> RestartOutcome:
        return await lost_workflows.restart_payment_method_removals(self._sessions, self._workflows(), command)

    @activity.defn(name="reconciliation.restart_subscriptions")
    @converts_rule_violations
    async def restart_subscriptions(self, command: RestartLostWorkflows) -> RestartOutcome:
        return await lost_workflows.restart_subscriptions(self._sessions, self._workflows(), command)

    @activity.defn(name="reconciliation.restart_deletions")
    @converts_rule_violations
    async def restart_deletions(self, command: RestartLostWorkflows) -> RestartOutcome:
        return await lost_workflows.restart_deletions(self._sessions, self._workflows(), command)

    @activity.defn(name="reconciliation.cancel_lost_operations")
    @converts_rule_violations
    async def cancel_lost_operations(self, command: RestartLostWorkflows) -> RestartOutcome:
        return await lost_workflows.cancel_lost_operations(self._sessions, self._workflows(), command)

    def _workflows(self) -> WorkflowClient:
        return WorkflowClient(self._client or activity.client())

    async def _alert_administrators(self, audit: LedgerAudit, where: str, now: datetime) -> None:
        counts = (
            f"{audit.balance_mismatches} balance mismatches, {audit.unbalanced_transactions} unbalanced transactions"
        )
        activity.logger.error("ledger reconciliation failed: %s", counts)
        async with self._sessions.begin() as session:
            alert = outbox.build_operator_alert(
                f"ledger/{scheduled_at(now).date().isoformat()}",
                now,
                "Ledger reconciliation failed",
                f"{counts}. No data was changed; investigate {f'first: {where}' if where else 'the transactions'}.",
                severity="critical",
            )
            await outbox.enqueue(session, alert)


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingDelivery:
    """A stored event, and the start input of the workflow that it is for."""

    event: WebhookEventRow
    resumed: PaymentInput | RefundInput


async def _find_delivery(session: AsyncSession, event: WebhookEventRow) -> PendingDelivery | None:
    """Return what delivers a stored event. None for incomplete rows, which are logged and do not stop the others."""
    try:
        if event.refund_id is not None:
            refund = await session.get_one(Refund, event.refund_id)
            return PendingDelivery(event=event, resumed=refund_input_from_record(to_refund_record(refund)))
        _to_gateway_event(event)
        payment = await session.get_one(Payment, event.payment_id)
        return PendingDelivery(event=event, resumed=payment_input_from_record(to_payment_record(payment)))
    except (ValueError, NoResultFound) as error:
        activity.logger.error("the webhook %s of %s cannot be delivered: %s", event.event_id, event.gateway, error)
        return None


def _to_gateway_event(event: WebhookEventRow) -> GatewayEvent:
    """Convert a stored event. Raises ``ValueError`` if it has no payment status."""
    if (
        event.gateway_reference is None
        or event.payment_status is None
        or event.amount_minor is None
        or event.currency is None
    ):
        raise ValueError(f"{event.gateway} {event.event_id} has no matching payment")
    return GatewayEvent(
        event_id=event.event_id,
        gateway=event.gateway,
        gateway_reference=event.gateway_reference,
        status=PaymentStatus(event.payment_status),
        amount=Money(amount_minor=event.amount_minor, currency=event.currency),
        decline_code=event.decline_code,
    )


def _gauge(name: str, description: str, value: int) -> None:
    activity.metric_meter().create_gauge(name, description).set(value)
