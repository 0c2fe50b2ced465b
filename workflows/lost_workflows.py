"""Finds workflows that do not run although they should, and starts them again.

Each ``restart_…`` function returns whether it started the workflow, False while that runs, and raises
``TemporalUnavailable`` if the server did not respond.
"""

from __future__ import annotations

from collections.abc import Sequence

from temporalio.common import TypedSearchAttributes, WorkflowIDReusePolicy
from temporalio.exceptions import WorkflowAlreadyStartedError

from workflows import names
from workflows.client import UPDATE_TIMEOUT, WorkflowClient
from workflows.ports.instances import OperationInput
from workflows.ports.payments import PaymentInput, RemovePaymentMethod
from workflows.ports.refunds import RefundInput
from workflows.ports.subscription import CreateSubscription, SubscriptionInput
from workflows.rpc_errors import translate_rpc_errors


async def find_lost(workflows: WorkflowClient, workflow_ids: Sequence[str]) -> list[str]:
    """Return those of ``workflow_ids`` that do not run, in their order.

    The server's list of running workflows is some seconds behind, so each one that it lacks is asked for by itself.

    Raises:
        TemporalUnavailable: the server did not respond.
    """
    if not workflow_ids:
        return []
    among = ", ".join(f"'{workflow_id}'" for workflow_id in workflow_ids)
    listed = workflows.client.list_workflows(f"ExecutionStatus = 'Running' AND WorkflowId IN ({among})")
    running = {execution.id async for execution in listed}
    return [
        workflow_id
        for workflow_id in workflow_ids
        if workflow_id not in running and not await workflows.is_running(workflow_id)
    ]


async def restart_subscription(workflows: WorkflowClient, order: CreateSubscription) -> bool:
    """Start the workflow of a recorded subscription again after it was lost; it continues from its row.

    ``WorkflowClient.create_subscription`` does not: the server answers its update from the lost run.
    """
    return await _start(
        workflows,
        names.SUBSCRIPTION,
        SubscriptionInput(command=order),
        names.subscription_workflow_id(order.subscription_id),
        names.search_attributes(
            order.organization_id, "subscription", subscription=order.subscription_id, instance=order.instance_id
        ),
    )


async def restart_payment(workflows: WorkflowClient, payment: PaymentInput) -> bool:
    """Start the workflow of a recorded payment again; no subscription awaits it any more."""
    return await _start(
        workflows,
        names.PAYMENT,
        payment,
        names.payment_workflow_id(payment.payment_id),
        names.search_attributes(payment.organization_id, "payment", subscription=payment.subscription_id),
    )


async def restart_refund(workflows: WorkflowClient, refund: RefundInput) -> bool:
    """Start the workflow of a recorded refund again; it continues from its row."""
    return await _start(
        workflows,
        names.REFUND,
        refund,
        names.refund_workflow_id(refund.refund_id),
        names.search_attributes(refund.organization_id, "refund"),
    )


async def restart_payment_method_removal(workflows: WorkflowClient, removal: RemovePaymentMethod) -> bool:
    """Start the workflow of a recorded removal again; it detaches the card at its gateway."""
    return await _start(
        workflows,
        names.PAYMENT_METHOD_REMOVAL,
        removal,
        names.payment_method_removal_workflow_id(removal.payment_method_id),
        names.search_attributes(removal.organization_id, names.PAYMENT_METHOD_REMOVAL.lower()),
    )


async def restart_operation(workflows: WorkflowClient, operation: OperationInput) -> bool:
    """Start the workflow of a recorded operation on an instance again; its steps are idempotent."""
    return await _start(
        workflows,
        names.INSTANCE_OPERATION,
        operation,
        names.operation_workflow_id(operation.instance_id, operation.operation_id),
        names.search_attributes(
            operation.organization_id,
            "operation",
            subscription=operation.subscription_id,
            instance=operation.instance_id,
        ),
    )


async def _start(
    workflows: WorkflowClient, name: str, argument: object, workflow_id: str, attributes: TypedSearchAttributes
) -> bool:
    """Start a workflow unless it runs; return whether it was started.

    Raises:
        TemporalUnavailable: the server did not respond.
    """
    start = workflows.client.start_workflow(
        name,
        argument,
        id=workflow_id,
        task_queue=names.PLATFORM_QUEUE,
        # Also after a run that completed: the database may have been restored from a time before that.
        id_reuse_policy=WorkflowIDReusePolicy.ALLOW_DUPLICATE,
        search_attributes=attributes,
        rpc_timeout=UPDATE_TIMEOUT,
    )
    try:
        await translate_rpc_errors(start)
    except WorkflowAlreadyStartedError:
        return False
    return True
