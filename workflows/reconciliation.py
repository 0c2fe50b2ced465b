"""The sweeps: they find what should not be there, or was never told. Schedules start them; they live in real time."""

from __future__ import annotations

from datetime import timedelta

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from workflows import names, policies
    from workflows.ports.instances import Cluster, Collected, CollectOrphans
    from workflows.ports.reconciliation import (
        AuditLedger,
        LedgerAudit,
        Reconcile,
        Reconciled,
        Reconciling,
        TellUndelivered,
    )

ON_THEIR_WAY = timedelta(minutes=2)
"""How long a webhook's own delivery may take before somebody else hands it on."""

ROUNDS = 20
"""Bounds one sweep; the next one goes on."""


@workflow.defn(name=names.ORPHAN_COLLECTION)
class OrphanCollection:
    """Removes from the cluster what no instance owns."""

    @workflow.run
    async def run(self, order: CollectOrphans) -> Collected:
        return await workflow.execute_activity_method(
            Cluster.collect_orphans, order, task_queue=names.INFRASTRUCTURE, **policies.SWEEP
        )


@workflow.defn(name=names.RECONCILIATION)
class Reconciliation:
    @workflow.run
    async def run(self, order: Reconcile) -> Reconciled:
        told = await self._tell()
        audit = LedgerAudit(drifts=0, unbalanced=0)
        if order.ledger:
            audit = await workflow.execute_activity_method(
                Reconciling.audit_ledger, AuditLedger(now=workflow.now()), **policies.AUDIT
            )
        if not audit.sound:
            workflow.upsert_search_attributes([names.ATTENTION_KEY.value_set(True)])
        return Reconciled(drifts=audit.drifts, unbalanced=audit.unbalanced, told=told)

    async def _tell(self) -> int:
        told = 0
        for _ in range(ROUNDS):
            step = await workflow.execute_activity_method(
                Reconciling.tell_undelivered,
                TellUndelivered(before=workflow.now() - ON_THEIR_WAY),
                **policies.AUDIT,
            )
            told += step.events
            if not step.more:
                break
        return told
