"""What happens again and again: Temporal's schedules, put in place by whichever worker starts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

from temporalio.client import (
    Client,
    Schedule,
    ScheduleActionStartWorkflow,
    ScheduleAlreadyRunningError,
    ScheduleIntervalSpec,
    ScheduleOverlapPolicy,
    SchedulePolicy,
    ScheduleSpec,
    ScheduleUpdate,
    ScheduleUpdateInput,
)

from workflows import names
from workflows.ports.instances import CleanUpOrphans
from workflows.ports.reconciliation import ReconciliationInput

ORPHAN_MINIMUM_AGE = timedelta(hours=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleDefinition:
    """``id`` names schedule and workflows; ``offset`` keeps the daily ones out of each other's way."""

    id: str
    workflow: str
    input: object
    every: timedelta
    offset: timedelta = timedelta()

    def to_temporal(self) -> Schedule:
        return Schedule(
            action=ScheduleActionStartWorkflow(self.workflow, self.input, id=self.id, task_queue=names.PLATFORM_QUEUE),
            spec=ScheduleSpec(intervals=[ScheduleIntervalSpec(every=self.every, offset=self.offset)]),
            # What fell due while the server was down runs once when it is back, however long that took: within one
            # interval exactly one start falls due, and a shorter window would drop the audit of a whole day.
            policy=SchedulePolicy(overlap=ScheduleOverlapPolicy.SKIP, catchup_window=self.every),
        )


SCHEDULES = (
    ScheduleDefinition(
        id="orphan-collection",
        workflow=names.ORPHAN_CLEANUP,
        input=CleanUpOrphans(grace_seconds=ORPHAN_MINIMUM_AGE.total_seconds()),
        every=timedelta(minutes=15),
    ),
    ScheduleDefinition(
        id="reconciliation/events",
        workflow=names.RECONCILIATION,
        input=ReconciliationInput(audit_ledger=False),
        every=timedelta(minutes=5),
    ),
    ScheduleDefinition(
        id="reconciliation/ledger",
        workflow=names.RECONCILIATION,
        input=ReconciliationInput(audit_ledger=True, recheck_refunds=True),
        every=timedelta(days=1),
        offset=timedelta(hours=3),
    ),
    ScheduleDefinition(
        id="reconciliation/workflows",
        workflow=names.RECONCILIATION,
        input=ReconciliationInput(audit_ledger=False, restart_lost_workflows=True),
        every=timedelta(hours=1),
        offset=timedelta(minutes=17),
    ),
)


async def upsert_schedules(client: Client, schedules: tuple[ScheduleDefinition, ...] = SCHEDULES) -> None:
    """Create the schedules, or bring those that exist up to date. Pauses and notes of operators stay."""
    for recurring in schedules:
        try:
            await client.create_schedule(recurring.id, recurring.to_temporal())
        except ScheduleAlreadyRunningError:
            await client.get_schedule_handle(recurring.id).update(_update_schedule(recurring))


def _update_schedule(recurring: ScheduleDefinition) -> Callable[[ScheduleUpdateInput], ScheduleUpdate]:
    def update(update_input: ScheduleUpdateInput) -> ScheduleUpdate:
        schedule = recurring.to_temporal()
        schedule.state = update_input.description.schedule.state
        return ScheduleUpdate(schedule=schedule)

    return update
