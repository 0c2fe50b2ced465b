"""One run of the reconciliation, as the schedule starts it."""

from __future__ import annotations

from datetime import timedelta

from tests.support.temporal import TemporalFixture
from workflows import names
from workflows.ports.reconciliation import ReconciliationInput, ReconciliationOutcome


async def reconcile(
    temporal: TemporalFixture, command: ReconciliationInput | None = None, *, queue: str | None = None
) -> ReconciliationOutcome:
    """Run the reconciliation and return its outcome.

    Args:
        command: By default it restarts lost workflows, and audits no ledger.
        queue: The task queue of its worker; the platform's by default.
    """
    outcome: ReconciliationOutcome = await temporal.client.execute_workflow(
        names.RECONCILIATION,
        command or ReconciliationInput(audit_ledger=False, restart_lost_workflows=True),
        id=temporal.unique_id("reconciliation"),
        task_queue=queue or names.PLATFORM_QUEUE,
        result_type=ReconciliationOutcome,
        execution_timeout=timedelta(seconds=30),
    )
    return outcome
