"""The simulated clock of a subscription: shows ``start`` until the instance is ready, then advances from there.

Temporal's virtual time only skips forward from the wall clock, so it can start neither in the past nor on a given day.
The worker therefore shifts the timestamp of each activation, from which ``workflow.now()`` is read, before the
workflow's code runs. Timers are durations and need no shift. The workflows are those of the product, unchanged; month
lengths and leap years are those of the shifted dates, which are also the dates in the database.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from temporalio.bridge.proto.workflow_activation import WorkflowActivation
from temporalio.bridge.proto.workflow_completion import WorkflowActivationCompletion
from temporalio.worker import UnsandboxedWorkflowRunner, WorkflowInstance, WorkflowInstanceDetails, WorkflowRunner
from temporalio.workflow import Info

from workflows import names


class SimulatedClock:
    """The clock of one simulation.

    Attributes:
        offset: How far the subscription's virtual time is ahead of the wall clock. Workflows that are started from
            outside (a top-up, a refund) run at the subscription's time.
    """

    def __init__(self, start: datetime) -> None:
        self._start = start
        self._shift: timedelta | None = None
        self.offset = timedelta()

    def to_simulated(self, real: datetime) -> datetime:
        """Return the simulated instant for an instant of the server's clock or of a workflow's virtual clock."""
        return self._start if self._shift is None else max(self._start, real + self._shift)

    def start(self, real: datetime) -> None:
        """Start the clock. Called when the instance is ready; later calls have no effect."""
        if self._shift is None:
            self._shift = self._start - real


class ShiftedTimeRunner(WorkflowRunner):
    """Runs workflows on the simulated clock.

    Without the SDK's sandbox, which takes seconds to load; tests and the stack check determinism with it.
    """

    def __init__(self, calendar: SimulatedClock) -> None:
        self._calendar = calendar
        self._runner = UnsandboxedWorkflowRunner()

    def prepare_workflow(self, defn: object) -> None:
        """Nothing to prepare: the workflow classes are already imported."""

    def create_instance(self, det: WorkflowInstanceDetails) -> WorkflowInstance:
        return _ShiftedTimeInstance(self._runner.create_instance(det), det.info, self._calendar)


class _ShiftedTimeInstance(WorkflowInstance):
    """Passes each activation on with the simulated time as its timestamp."""

    def __init__(self, instance: WorkflowInstance, info: Info, calendar: SimulatedClock) -> None:
        self._instance = instance
        self._calendar = calendar
        self._is_subscription = info.workflow_type == names.SUBSCRIPTION
        self._offset = calendar.offset if info.parent is None and not self._is_subscription else timedelta()

    def activate(self, act: WorkflowActivation) -> WorkflowActivationCompletion:
        real = act.timestamp.ToDatetime(UTC) + self._offset
        if self._is_subscription and any(job.HasField("resolve_child_workflow_execution") for job in act.jobs):
            # The first child that ends is the provisioning (or a declined card, which ends the order).
            self._calendar.start(real)
        act.timestamp.FromDatetime(self._calendar.to_simulated(real))
        return self._instance.activate(act)

    def get_serialization_context(self, command_info: Any) -> Any:
        return self._instance.get_serialization_context(command_info)

    def get_external_store_context(self, command_info: Any) -> Any:
        return self._instance.get_external_store_context(command_info)

    def get_info(self) -> Info:
        return self._instance.get_info()

    def get_thread_id(self) -> int | None:
        return self._instance.get_thread_id()
