"""The calendar that the simulated life goes by: it shows ``start`` until the instance is ready, and runs on from there.

Temporal's virtual time only skips forward from the wall clock, so it can begin neither in the past nor on a given day
without waiting. Here the worker shifts the time that it tells workflows instead: ``workflow.now()`` answers from each
activation's timestamp, and that is what is moved, before the workflow's code runs. Timers are spans and need nothing.
The workflows are the product's own and know nothing of it; month lengths and leap years are those of the dates that
they see, and these are the dates in the database.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from temporalio.bridge.proto.workflow_activation import WorkflowActivation
from temporalio.bridge.proto.workflow_completion import WorkflowActivationCompletion
from temporalio.worker import UnsandboxedWorkflowRunner, WorkflowInstance, WorkflowInstanceDetails, WorkflowRunner
from temporalio.workflow import Info

from workflows import names


class Calendar:
    """One life's calendar.

    Attributes:
        ahead: How far the subscription's virtual time is ahead of the wall clock. What is started from outside (a
            top-up, a refund) is told the subscription's time, not the beginning of the story.
    """

    def __init__(self, start: datetime) -> None:
        self._start = start
        self._shift: timedelta | None = None
        self.ahead = timedelta()

    def shown(self, real: datetime) -> datetime:
        """Return what the calendar shows at an instant of the server's clock (or of a workflow's virtual one)."""
        return self._start if self._shift is None else max(self._start, real + self._shift)

    def begin(self, real: datetime) -> None:
        """The instance is ready: from here on time passes."""
        if self._shift is None:
            self._shift = self._start - real


class CalendarRunner(WorkflowRunner):
    """Runs workflows as usual, by the calendar.

    Without the SDK's sandbox: it proves determinism, which the tests and the stack do, and costs a start its seconds.
    """

    def __init__(self, calendar: Calendar) -> None:
        self._calendar = calendar
        self._runner = UnsandboxedWorkflowRunner()

    def prepare_workflow(self, defn: object) -> None:
        """Nothing to prepare: nothing is loaded apart from what is here."""

    def create_instance(self, det: WorkflowInstanceDetails) -> WorkflowInstance:
        return _ByCalendar(self._runner.create_instance(det), det.info, self._calendar)


class _ByCalendar(WorkflowInstance):
    """Hands each activation on with the time that the calendar shows."""

    def __init__(self, instance: WorkflowInstance, info: Info, calendar: Calendar) -> None:
        self._instance = instance
        self._calendar = calendar
        self._is_the_life = info.workflow_type == names.SUBSCRIPTION
        self._ahead = calendar.ahead if info.parent is None and not self._is_the_life else timedelta()

    def activate(self, act: WorkflowActivation) -> WorkflowActivationCompletion:
        real = act.timestamp.ToDatetime(UTC) + self._ahead
        if self._is_the_life and any(job.HasField("resolve_child_workflow_execution") for job in act.jobs):
            # The first child that ends is the provisioning (or a declined card, which ends the order).
            self._calendar.begin(real)
        act.timestamp.FromDatetime(self._calendar.shown(real))
        return self._instance.activate(act)

    def get_serialization_context(self, command_info: Any) -> Any:
        return self._instance.get_serialization_context(command_info)

    def get_external_store_context(self, command_info: Any) -> Any:
        return self._instance.get_external_store_context(command_info)

    def get_info(self) -> Info:
        return self._instance.get_info()

    def get_thread_id(self) -> int | None:
        return self._instance.get_thread_id()
