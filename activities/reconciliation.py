"""Audits the ledger, delivers webhooks that were stored but not delivered, and restarts workflows that were lost.

It changes no balance.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from temporalio import activity
from temporalio.client import Client

from activities.operator_alerts import daily_dedup_key, list_names
from db.models.payments import Payment, WebhookEventRow
from db.queries import ledger, outbox, subscription_recovery, webhooks
from db.queries.payments import to_payment_record
from db.queries.subscription_recovery import OrderedSubscription
from db.session import SessionFactory, allow_long_statements
from workflows import lost_workflows, names
from workflows.client import WorkflowClient
from workflows.ports.payments import GatewayEvent, PaymentInput, payment_input_from_record
from workflows.ports.reconciliation import (
    AuditLedger,
    DeliverPendingWebhooks,
    LedgerAudit,
    ReconciliationActivities,
    RestartOutcome,
    RestartSubscriptions,
    WebhookDeliveryOutcome,
)
from workflows.ports.subscription import CreateSubscription
from workflows.rules.funding import CollectionMethod
from workflows.rules.money import Money
from workflows.rules.payment import PaymentStatus

AUDIT_STATEMENT = timedelta(minutes=2)
"""Time limit of one statement over the whole ledger; the activity runs two of them within 5 minutes."""


class PostgresReconciliationActivities(ReconciliationActivities):
    """Reconciliation.

    Args:
        client: Temporal client that delivers events and restarts workflows; None uses the worker's.
        audits: Connection pool of the ledger audit, whose statements take long; None uses ``sessions``.
    """

    def __init__(
        self, sessions: SessionFactory, client: Client | None = None, *, audits: SessionFactory | None = None
    ) -> None:
        self._sessions = sessions
        self._audits = audits or sessions
        self._client = client

    @activity.defn(name="reconciliation.audit_ledger")
    async def audit_ledger(self, command: AuditLedger) -> LedgerAudit:
        async with self._audits() as session:
            await allow_long_statements(session, AUDIT_STATEMENT)
            mismatches, unbalanced = (
                await ledger.find_balance_mismatches(session),
                await ledger.count_unbalanced_transactions(session),
            )
        audit = LedgerAudit(balance_mismatches=len(mismatches), unbalanced=unbalanced)
        _gauge(
            "berth_ledger_balance_mismatches",
            "Kept balances that are not the sum of their entries",
            audit.balance_mismatches,
        )
        _gauge("berth_ledger_unbalanced_transactions", "Transactions that do not sum to zero", audit.unbalanced)
        if not audit.is_balanced:
            where = ", ".join(
                f"{mismatch.account} {mismatch.currency} of {mismatch.organization_id}" for mismatch in mismatches[:5]
            )
            await self._alert_administrators(audit, where, command.now)
        return audit

    @activity.defn(name="reconciliation.deliver_pending_webhooks")
    async def deliver_pending_webhooks(self, command: DeliverPendingWebhooks) -> WebhookDeliveryOutcome:
        workflows = WorkflowClient(self._client or activity.client())
        pending = await self._pending_webhooks(command)
        for event, payment_input in pending:
            await workflows.deliver_gateway_event(event, payment_input)
            async with self._sessions.begin() as session:
                await webhooks.mark_delivered(session, event.gateway, event.event_id, at=datetime.now(UTC))
        return WebhookDeliveryOutcome(events=len(pending), has_more=len(pending) == command.limit)

    @activity.defn(name="reconciliation.restart_subscriptions")
    async def restart_subscriptions(self, command: RestartSubscriptions) -> RestartOutcome:
        workflows = WorkflowClient(self._client or activity.client())
        async with self._sessions() as session:
            page = await subscription_recovery.list_unfinished(session, after=command.after, limit=command.limit)
        lost = await self._find_lost(workflows, page)
        if lost:
            await self._alert_lost(lost, command)
        restarted = [
            order.subscription_id
            for order in lost[: command.max_restarts]
            if await lost_workflows.restart_subscription(workflows, _to_order(order))
        ]
        activity.metric_meter().create_counter(
            "berth_subscriptions_restarted", "Workflows of subscriptions that were lost and started again"
        ).add(len(restarted))
        is_last_page = len(page) < command.limit
        return RestartOutcome(restarted=len(restarted), last_id=None if is_last_page else page[-1].subscription_id)

    async def _find_lost(
        self, workflows: WorkflowClient, page: Sequence[OrderedSubscription]
    ) -> list[OrderedSubscription]:
        by_workflow_id = {names.subscription_workflow_id(order.subscription_id): order for order in page}
        lost = [by_workflow_id[lost] for lost in await lost_workflows.find_lost(workflows, list(by_workflow_id))]
        # A subscription that ended since the page was read needs no workflow.
        async with self._sessions() as session:
            unfinished = await subscription_recovery.unfinished_among(
                session, [order.subscription_id for order in lost]
            )
        return [order for order in lost if order.subscription_id in unfinished]

    async def _alert_lost(self, lost: Sequence[OrderedSubscription], command: RestartSubscriptions) -> None:
        """Alert before the restart: an alert that a crash prevented would not be made up for."""
        ids = [order.subscription_id for order in lost]
        activity.logger.error("subscriptions without a workflow: %s", ", ".join(ids))
        restarted = min(len(ids), command.max_restarts)
        alert = outbox.build_operator_alert(
            daily_dedup_key("subscriptions/lost", ids, command.now),
            command.now,
            "Workflows of subscriptions were lost",
            f"{len(ids)} subscriptions had no running workflow: {list_names(ids)}. {restarted} of them are started"
            " again and go on from what the database holds; the next run restarts the others. Find out why they ended:"
            " it may have been a termination by hand, a failure of the workflow, or a restored Temporal database.",
            severity="critical",
        )
        async with self._sessions.begin() as session:
            await outbox.enqueue(session, alert)

    async def _pending_webhooks(self, command: DeliverPendingWebhooks) -> list[tuple[GatewayEvent, PaymentInput]]:
        async with self._sessions() as session:
            events = await webhooks.list_undelivered(session, before=command.received_before, limit=command.limit)
            payments = [await session.get_one(Payment, event.payment_id) for event in events]
            return [
                (_to_gateway_event(event), payment_input_from_record(to_payment_record(payment)))
                for event, payment in zip(events, payments, strict=True)
            ]

    async def _alert_administrators(self, audit: LedgerAudit, where: str, now: datetime) -> None:
        activity.logger.error(
            "the ledger is not sound: %d drifts, %d unbalanced", audit.balance_mismatches, audit.unbalanced
        )
        details = f"{audit.balance_mismatches} balances drifted, {audit.unbalanced} transactions do not sum to zero."
        async with self._sessions.begin() as session:
            alert = outbox.build_operator_alert(
                f"ledger/{now.date().isoformat()}",
                now,
                "The ledger does not add up",
                f"{details} {f'First: {where}. ' if where else ''}Nothing was changed.",
                severity="critical",
            )
            await outbox.enqueue(session, alert)


def _to_order(order: OrderedSubscription) -> CreateSubscription:
    return CreateSubscription(
        subscription_id=order.subscription_id,
        instance_id=order.instance_id,
        organization_id=order.organization_id,
        user_id=order.user_id,
        plan_id=order.plan_id,
        name=order.name,
        parameters=order.parameters,
        coupon=order.coupon,
        collection_method=CollectionMethod(order.collection_method),
    )


def _to_gateway_event(event: WebhookEventRow) -> GatewayEvent:
    """Convert a stored event. Raises ``ValueError`` if it has no payment status; such events are never ``received``."""
    if (
        event.gateway_reference is None
        or event.payment_status is None
        or event.amount_minor is None
        or event.currency is None
    ):
        raise ValueError(f"{event.gateway} {event.event_id} says nothing about a payment")
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
