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
from workflows.ports.instances import CollectOrphans
from workflows.ports.reconciliation import Reconcile

ORPHAN_GRACE = timedelta(hours=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recurring:
    """``id`` names schedule and workflows; ``offset`` keeps the daily ones out of each other's way."""

    id: str
    workflow: str
    order: object
    every: timedelta
    offset: timedelta = timedelta()

    def schedule(self) -> Schedule:
        return Schedule(
            action=ScheduleActionStartWorkflow(self.workflow, self.order, id=self.id, task_queue=names.PLATFORM),
            spec=ScheduleSpec(intervals=[ScheduleIntervalSpec(every=self.every, offset=self.offset)]),
            # A sweep that is late is no reason for two at once, and after an outage one is enough.
            policy=SchedulePolicy(overlap=ScheduleOverlapPolicy.SKIP, catchup_window=timedelta(minutes=1)),
        )


RECURRING = (
    Recurring(
        id="orphan-collection",
        workflow=names.ORPHAN_COLLECTION,
        order=CollectOrphans(grace_seconds=ORPHAN_GRACE.total_seconds()),
        every=timedelta(minutes=15),
    ),
    Recurring(
        id="reconciliation/events",
        workflow=names.RECONCILIATION,
        order=Reconcile(ledger=False),
        every=timedelta(minutes=5),
    ),
    Recurring(
        id="reconciliation/ledger",
        workflow=names.RECONCILIATION,
        order=Reconcile(ledger=True),
        every=timedelta(days=1),
        offset=timedelta(hours=3),
    ),
)


async def ensure(client: Client, wanted: tuple[Recurring, ...] = RECURRING) -> None:
    """Create the schedules, or bring those that exist up to date. Pauses and notes of operators stay."""
    for recurring in wanted:
        try:
            await client.create_schedule(recurring.id, recurring.schedule())
        except ScheduleAlreadyRunningError:
            await client.get_schedule_handle(recurring.id).update(_renewed(recurring))


def _renewed(recurring: Recurring) -> Callable[[ScheduleUpdateInput], ScheduleUpdate]:
    def update(found: ScheduleUpdateInput) -> ScheduleUpdate:
        schedule = recurring.schedule()
        schedule.state = found.description.schedule.state
        return ScheduleUpdate(schedule=schedule)

    return update
