"""``OrphanCleanup`` and ``Reconciliation``: started by schedules, on the server's clock."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from workflows import names, policies
    from workflows.ports.instances import CleanUpOrphans, ClusterActivities, OrphanCleanupOutcome
    from workflows.ports.reconciliation import (
        AuditLedger,
        DeliverPendingWebhooks,
        LedgerAudit,
        RecheckRefunds,
        ReconciliationActivities,
        ReconciliationInput,
        ReconciliationOutcome,
        RestartLostWorkflows,
        RestartOutcome,
    )

WEBHOOK_DELIVERY_GRACE = timedelta(minutes=2)
"""Age at which reconciliation delivers a webhook that its own request has not delivered."""

MAX_RECHECKED_PAGES = 500
"""Bounds the refunds that one run reads again to 10,000, and its history."""

MAX_BATCHES = 20
"""Bounds one sweep; the next one goes on."""


@workflow.defn(name=names.ORPHAN_CLEANUP)
class OrphanCleanup:
    """Deletes from the cluster what is left of deleted and failed instances."""

    @workflow.run
    async def run(self, command: CleanUpOrphans) -> OrphanCleanupOutcome:
        collected = await workflow.execute_activity_method(
            ClusterActivities.clean_up_orphans,
            command,
            task_queue=names.INFRASTRUCTURE_QUEUE,
            **policies.ORPHAN_CLEANUP,
        )
        if collected.unknown or collected.paused:
            workflow.upsert_search_attributes([names.NEEDS_ATTENTION_KEY.value_set(True)])
        return collected


@workflow.defn(name=names.RECONCILIATION)
class Reconciliation:
    @workflow.run
    async def run(self, command: ReconciliationInput) -> ReconciliationOutcome:
        delivered = await self._deliver_pending_webhooks()
        audit = LedgerAudit(balance_mismatches=0, unbalanced_transactions=0)
        if command.audit_ledger:
            audit = await workflow.execute_activity_method(
                ReconciliationActivities.audit_ledger, AuditLedger(now=workflow.now()), **policies.RECONCILIATION
            )
        rejected = await self._recheck_refunds() if command.recheck_refunds else 0
        payments = refunds = removals = subscriptions = deletions = operations = 0
        if command.restart_lost_workflows:
            # Payments first: a subscription that is started below takes over its own.
            payments = await self._restart(ReconciliationActivities.restart_payments, command.max_restarts)
            refunds = await self._restart(ReconciliationActivities.restart_refunds, command.max_restarts)
            removals = await self._restart(
                ReconciliationActivities.restart_payment_method_removals, command.max_restarts
            )
            subscriptions = await self._restart(ReconciliationActivities.restart_subscriptions, command.max_restarts)
            deletions = await self._restart(ReconciliationActivities.restart_deletions, command.max_restarts)
            operations = await self._restart(ReconciliationActivities.cancel_lost_operations, command.max_restarts)
        lost_workflows = payments + refunds + removals + subscriptions + deletions + operations
        if not audit.is_balanced or lost_workflows:
            workflow.upsert_search_attributes([names.NEEDS_ATTENTION_KEY.value_set(True)])
        return ReconciliationOutcome(
            balance_mismatches=audit.balance_mismatches,
            unbalanced_transactions=audit.unbalanced_transactions,
            webhooks_delivered=delivered,
            refunds_rejected=rejected,
            payments_restarted=payments,
            refunds_restarted=refunds,
            payment_method_removals_restarted=removals,
            subscriptions_restarted=subscriptions,
            deletions_restarted=deletions,
            operations_cancelled=operations,
        )

    async def _deliver_pending_webhooks(self) -> int:
        delivered = 0
        for _ in range(MAX_BATCHES):
            step = await workflow.execute_activity_method(
                ReconciliationActivities.deliver_pending_webhooks,
                DeliverPendingWebhooks(received_before=workflow.now() - WEBHOOK_DELIVERY_GRACE),
                **policies.RECONCILIATION,
            )
            delivered += step.events
            if not step.has_more:
                break
        return delivered

    async def _recheck_refunds(self) -> int:
        rejected, after = 0, ""
        for _ in range(MAX_RECHECKED_PAGES):
            page = await workflow.execute_activity_method(
                ReconciliationActivities.recheck_refunds,
                RecheckRefunds(after=after, now=workflow.now()),
                **policies.RECONCILIATION,
            )
            rejected += page.rejected
            if page.last_id is None:
                return rejected
            after = page.last_id
        workflow.logger.warning("refunds after %s are not read again: there are too many", after)
        return rejected

    async def _restart(
        self, restart: Callable[[Any, RestartLostWorkflows], Awaitable[RestartOutcome]], max_restarts: int
    ) -> int:
        """Check one page after the other, until ``max_restarts`` workflows were started."""
        restarted, after = 0, ""
        while restarted < max_restarts:
            page = await workflow.execute_activity_method(
                restart,
                RestartLostWorkflows(after=after, max_restarts=max_restarts - restarted, now=workflow.now()),
                **policies.RECONCILIATION,
            )
            restarted += page.restarted
            if page.last_id is None:
                break
            after = page.last_id
        return restarted
