"""What the cluster has to do follows from the subscription's state; one operation on the instance at a time.

The entity never commands "suspend" where it changes state: it compares what should be with what the cluster was last
told, so that a crash between the two, or a cluster that is away, only delays it. This goes on beside the calendar: a
payment whose outcome takes days must not hold up a restart, and a slow cluster must not hold up a renewal.
"""

from __future__ import annotations

import asyncio
import contextlib
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from temporalio import workflow
from temporalio.exceptions import ChildWorkflowError
from temporalio.workflow import ParentClosePolicy

from workflows import names, policies
from workflows.ports.instances import (
    Instances,
    Operate,
    OperationKind,
    OperationOutcome,
    OperationStatus,
)
from workflows.ports.subscription import OperateOrder, Resources
from workflows.rules import ids
from workflows.rules.subscription import State

if TYPE_CHECKING:
    from workflows.subscription import Subscription

RUNNING = frozenset({State.TRIALING, State.ACTIVE, State.PAST_DUE})
DONE = OperationStatus.SUCCEEDED
STOPPED = frozenset({State.SUSPENDED, State.PAUSED, State.CANCELLED})

TRY_AGAIN = timedelta(minutes=2)
"""After an operation that the platform wanted has failed. A technical wait, far shorter than any calendar one."""


class Convergence:
    def __init__(self, entity: Subscription) -> None:
        self._entity = entity
        self._accepted: Operate | None = None
        self._cluster = asyncio.Lock()
        self._not_before: datetime | None = None

    @property
    def busy(self) -> bool:
        return self._cluster.locked() or self._accepted is not None

    @property
    def at_rest(self) -> bool:
        """Nothing is to be done before something happens, or before a failed operation is tried again."""
        return not self.busy and (self._wanted() is None or self._waiting())

    async def accept(self, order: OperateOrder) -> None:
        """Record a customer's operation; ``run`` carries it out."""
        operate = self._operate(OperationKind(order.kind), order.actor, order.operation_id)
        await workflow.execute_activity_method(Instances.open_operation, operate, **policies.DATABASE)
        self._accepted = operate
        self._entity.changed()

    async def run(self) -> None:
        """Keep the cluster as it should be until cancelled."""
        while True:
            seen = self._entity.changes
            if not self.at_rest:
                async with self._cluster:
                    await self._step()
                continue
            pause = self._not_before - workflow.now() if self._wanted() and self._not_before else None
            with contextlib.suppress(TimeoutError):
                await workflow.wait_condition(lambda: self._entity.changes != seen, timeout=pause)  # noqa: B023

    async def delete(self) -> None:
        """Delete the instance and its data; ends only when the cluster is verified clean."""
        async with self._cluster:
            delete = OperationKind.DELETE
            while (await self._run(self._operate(delete, "platform", self._next_id()))).status is not DONE:
                await workflow.sleep(TRY_AGAIN)
            self._entity.alive.instance_running = False

    async def _step(self) -> None:
        """Do the next thing that the cluster has to do, if there still is one."""
        if self._accepted is not None:
            await self._carry_out(self._accepted)
        elif not self._waiting() and (kind := self._wanted()) is not None:
            await self._converge(kind)

    def _waiting(self) -> bool:
        return self._not_before is not None and workflow.now() < self._not_before

    def _wanted(self) -> OperationKind | None:
        life = self._entity.alive
        if life.state in STOPPED:
            return OperationKind.SUSPEND if life.instance_running else None
        if life.state not in RUNNING or life.stopped_by_customer:
            return None
        if not life.instance_running:
            return OperationKind.RESUME
        return OperationKind.RESIZE if life.applied_plan_id != life.terms.plan_id else None

    async def _converge(self, kind: OperationKind) -> None:
        life = self._entity.alive
        terms = life.terms
        resources = terms.resources if kind is OperationKind.RESIZE else None
        outcome = await self._run(self._operate(kind, "platform", self._next_id(), resources))
        if outcome.status is DONE:
            self._not_before = None
            if kind is OperationKind.RESIZE:
                life.applied_plan_id = terms.plan_id
                life.fallback = None
            else:
                life.instance_running = kind is OperationKind.RESUME
            self._attention(False)
            return
        if kind is OperationKind.RESIZE and life.fallback is not None:
            await self._entity.cycle.revert_change(outcome.reason or "the instance could not be resized")
            return
        self._not_before = workflow.now() + TRY_AGAIN
        self._attention(True)

    async def _carry_out(self, operate: Operate) -> None:
        life = self._entity.alive
        outcome = await self._run(operate)
        self._accepted = None
        if outcome.status is DONE and operate.kind in (OperationKind.STOP, OperationKind.START):
            life.stopped_by_customer = operate.kind is OperationKind.STOP
            life.instance_running = operate.kind is OperationKind.START

    async def _run(self, operate: Operate) -> OperationOutcome:
        try:
            outcome: OperationOutcome = await workflow.execute_child_workflow(
                names.INSTANCE_OPERATION,
                operate,
                id=names.operation_workflow(operate.instance_id, operate.operation_id),
                parent_close_policy=ParentClosePolicy.ABANDON,
                result_type=OperationOutcome,
                search_attributes=names.attributes(
                    operate.organization_id,
                    "operation",
                    subscription=operate.subscription_id,
                    instance=operate.instance_id,
                ),
            )
            return outcome
        except ChildWorkflowError:
            # Somebody ended the operation by hand. What is wanted of the cluster is still wanted.
            return OperationOutcome(
                operation_id=operate.operation_id, status=OperationStatus.FAILED, reason="the operation was broken off"
            )
        finally:
            self._entity.changed()

    def _operate(
        self, kind: OperationKind, actor: str, operation_id: str, resources: Resources | None = None
    ) -> Operate:
        order = self._entity.order
        return Operate(
            operation_id=operation_id,
            instance_id=order.instance_id,
            subscription_id=order.subscription_id,
            organization_id=order.organization_id,
            kind=kind,
            actor=actor,
            business_time=workflow.now(),
            resources=resources,
        )

    def _next_id(self) -> str:
        life = self._entity.alive
        life.operations += 1
        return ids.derived("op", self._entity.order.subscription_id, str(life.operations))

    def _attention(self, wanted: bool) -> None:
        workflow.upsert_search_attributes([names.ATTENTION_KEY.value_set(wanted)])
