"""What the cluster has to do follows from the subscription's state; one operation on the instance at a time.

The entity never commands "suspend" where it changes state: it compares what should be with what the cluster was last
told, so that a crash between the two, or a cluster that is away, only delays it.
"""

from __future__ import annotations

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
        self._underway = False
        self._not_before: datetime | None = None

    @property
    def busy(self) -> bool:
        return self._underway or self._accepted is not None

    @property
    def due(self) -> bool:
        """Something is to be done that does not have to wait."""
        return self._accepted is not None

    async def accept(self, order: OperateOrder) -> None:
        """Record a customer's operation; the loop carries it out."""
        operate = self._operate(OperationKind(order.kind), order.actor, order.operation_id)
        await workflow.execute_activity_method(Instances.open_operation, operate, **policies.DATABASE)
        self._accepted = operate

    async def step(self) -> bool:
        """Do the next thing that the cluster has to do. False: it is as it should be, or has to wait."""
        if self._accepted is not None:
            await self._carry_out(self._accepted)
            return True
        if self._waiting():
            return False
        kind = self._wanted()
        if kind is None:
            return False
        await self._converge(kind)
        return True

    def wait(self, due_at: datetime | None) -> timedelta | None:
        """Return how long the entity may sleep: until ``due_at``, or until a failed operation is tried again."""
        moments = [at for at in (due_at, self._not_before if self._wanted() else None) if at is not None]
        return max(min(moments) - workflow.now(), timedelta()) if moments else None

    async def delete(self) -> None:
        """Delete the instance and its data; ends only when the cluster is verified clean."""
        while (await self._run(self._operate(OperationKind.DELETE, "platform", self._next_id()))).status is not DONE:
            await workflow.sleep(TRY_AGAIN)
        self._entity.alive.instance_running = False

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
        self._underway = True
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
            self._underway = False
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
