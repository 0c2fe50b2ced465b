"""Restarts lost workflows of payments, refunds, card removals, subscriptions and deletions; cancels other operations.

A workflow is lost if it does not run although its row is unfinished. Each function checks one page of rows. It alerts
the administrators before it restarts anything: after a crash in between, the restarted workflow is no longer lost and
would never be reported.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from datetime import datetime, timedelta

from sqlalchemy.ext.asyncio import AsyncSession
from temporalio import activity

from activities.attempt_time import scheduled_at
from activities.operator_alerts import daily_dedup_key, list_names
from db.models.instances import InstanceOperation
from db.models.payments import PaymentMethod
from db.queries import instances, outbox, workflow_recovery
from db.queries.outbox import OutboxNotification
from db.queries.workflow_recovery import OrderedSubscription
from db.session import SessionFactory
from workflows import lost_workflows, names
from workflows.client import WorkflowClient
from workflows.ports.instances import OperationInput, OperationKind
from workflows.ports.payments import RemovePaymentMethod, payment_input_from_record
from workflows.ports.reconciliation import RestartLostWorkflows, RestartOutcome
from workflows.ports.refunds import refund_input_from_record
from workflows.ports.subscription import PLATFORM_ACTOR, CreateSubscription
from workflows.rules.funding import CollectionMethod
from workflows.rules.order_payments import is_needed_by_order

PAYMENT_MINIMUM_AGE = timedelta(minutes=15)
"""Younger payments may be between two workflows: a webhook or a restarted subscription starts them."""

OPERATION_MINIMUM_AGE = timedelta(hours=1)
"""The workflow of a younger operation may not have started yet: the subscription starts it once its worker is back."""

LOST_OPERATION_MESSAGE = "It was interrupted. Start it again if it is still needed."


async def restart_payments(
    sessions: SessionFactory, workflows: WorkflowClient, command: RestartLostWorkflows
) -> RestartOutcome:
    """Restart lost payments, except those of lost subscriptions, whose restarted workflow takes its payments over."""
    async with sessions() as session:
        page = await workflow_recovery.list_in_flight_payments(
            session, after=command.after, limit=command.limit, minimum_age=PAYMENT_MINIMUM_AGE
        )
    payments = {payment.payment_id: payment for payment, facts in page if not is_needed_by_order(facts)}
    lost = await _find_lost(
        sessions,
        workflows,
        {payment_id: names.payment_workflow_id(payment_id) for payment_id in payments},
        workflow_recovery.in_flight_among,
    )
    subscription_ids = {payments[payment_id].subscription_id for payment_id in lost}
    lost_subscriptions = await _find_lost_subscriptions(sessions, workflows, sorted(filter(None, subscription_ids)))
    restarted = await _restart(
        sessions,
        command,
        "payments",
        [payment_id for payment_id in lost if payments[payment_id].subscription_id not in lost_subscriptions],
        lambda payment_id: lost_workflows.restart_payment(workflows, payment_input_from_record(payments[payment_id])),
    )
    return _outcome(command, [payment.payment_id for payment, _ in page], restarted)


async def restart_refunds(
    sessions: SessionFactory, workflows: WorkflowClient, command: RestartLostWorkflows
) -> RestartOutcome:
    async with sessions() as session:
        page = await workflow_recovery.list_pending_refunds(session, after=command.after, limit=command.limit)
    refunds = {refund.refund_id: refund for refund in page}
    lost = await _find_lost(
        sessions,
        workflows,
        {refund_id: names.refund_workflow_id(refund_id) for refund_id in refunds},
        workflow_recovery.pending_refunds_among,
    )
    restarted = await _restart(
        sessions,
        command,
        "refunds",
        lost,
        lambda refund_id: lost_workflows.restart_refund(workflows, refund_input_from_record(refunds[refund_id])),
    )
    return _outcome(command, list(refunds), restarted)


async def restart_payment_method_removals(
    sessions: SessionFactory, workflows: WorkflowClient, command: RestartLostWorkflows
) -> RestartOutcome:
    async with sessions() as session:
        page = await workflow_recovery.list_unfinished_removals(session, after=command.after, limit=command.limit)
    methods = {method.id: method for method in page}
    restarted = await _restart(
        sessions,
        command,
        "payment method removals",
        await _find_lost(
            sessions,
            workflows,
            {method_id: names.payment_method_removal_workflow_id(method_id) for method_id in methods},
            workflow_recovery.unfinished_removals_among,
        ),
        lambda method_id: lost_workflows.restart_payment_method_removal(workflows, _to_removal(methods[method_id])),
    )
    return _outcome(command, list(methods), restarted)


async def restart_subscriptions(
    sessions: SessionFactory, workflows: WorkflowClient, command: RestartLostWorkflows
) -> RestartOutcome:
    async with sessions() as session:
        page = await workflow_recovery.list_unfinished(session, after=command.after, limit=command.limit)
    orders = {order.subscription_id: order for order in page}
    restarted = await _restart(
        sessions,
        command,
        "subscriptions",
        await _find_lost_subscriptions(sessions, workflows, list(orders)),
        lambda subscription_id: lost_workflows.restart_subscription(workflows, _to_order(orders[subscription_id])),
    )
    return _outcome(command, list(orders), restarted)


async def restart_deletions(
    sessions: SessionFactory, workflows: WorkflowClient, command: RestartLostWorkflows
) -> RestartOutcome:
    """Restart lost deletions of instances. A subscription that repeats one as well does no harm: it is idempotent."""
    async with sessions() as session:
        page = await instances.list_unfinished_deletions(
            session, after=command.after, limit=command.limit, minimum_age=OPERATION_MINIMUM_AGE
        )
    deletions = {operation.id: _to_deletion(operation, subscription_id) for operation, subscription_id in page}
    restarted = await _restart(
        sessions,
        command,
        "instance deletions",
        await _find_lost(
            sessions,
            workflows,
            {
                operation_id: names.operation_workflow_id(deletion.instance_id, operation_id)
                for operation_id, deletion in deletions.items()
            },
            instances.unfinished_operations_among,
        ),
        lambda operation_id: lost_workflows.restart_operation(workflows, deletions[operation_id]),
    )
    return _outcome(command, list(deletions), restarted)


async def cancel_lost_operations(
    sessions: SessionFactory, workflows: WorkflowClient, command: RestartLostWorkflows
) -> RestartOutcome:
    async with sessions() as session:
        page = await instances.list_unfinished_operations(
            session, after=command.after, limit=command.limit, minimum_age=OPERATION_MINIMUM_AGE
        )
    lost = await _find_lost(
        sessions,
        workflows,
        {operation.id: names.operation_workflow_id(operation.instance_id, operation.id) for operation in page},
        instances.unfinished_operations_among,
    )
    if lost:
        activity.logger.error("operations without a workflow: %s", ", ".join(lost))
        async with sessions.begin() as session:
            await outbox.enqueue(session, _build_operations_alert(lost, command.now))
            await instances.cancel_operations(session, lost, message=LOST_OPERATION_MESSAGE, at=command.now)
    return _outcome(command, [operation.id for operation in page], len(lost))


async def _find_lost_subscriptions(
    sessions: SessionFactory, workflows: WorkflowClient, subscription_ids: Sequence[str]
) -> list[str]:
    return await _find_lost(
        sessions,
        workflows,
        {subscription_id: names.subscription_workflow_id(subscription_id) for subscription_id in subscription_ids},
        workflow_recovery.unfinished_among,
    )


async def _find_lost(
    sessions: SessionFactory,
    workflows: WorkflowClient,
    workflow_ids: Mapping[str, str],
    unfinished_among: Callable[[AsyncSession, Collection[str]], Awaitable[set[str]]],
) -> list[str]:
    """Return the ids of the rows whose workflow does not run although they are unfinished.

    Args:
        workflow_ids: The id of each row's workflow, by the id of the row.
        unfinished_among: Reads which of the lost rows are still unfinished: the workflow of a row that ended since the
            page was read has ended as well.
    """
    ids = {workflow_id: row_id for row_id, workflow_id in workflow_ids.items()}
    lost = [ids[workflow_id] for workflow_id in await lost_workflows.find_lost(workflows, list(ids))]
    if not lost:
        return []
    async with sessions() as session:
        unfinished = await unfinished_among(session, lost)
    return [row_id for row_id in lost if row_id in unfinished]


async def _restart(
    sessions: SessionFactory,
    command: RestartLostWorkflows,
    kind: str,
    lost: Sequence[str],
    restart: Callable[[str], Awaitable[bool]],
) -> int:
    """Alert the administrators, start as many of the lost workflows again as the command allows, and count them."""
    if lost:
        await _alert(sessions, kind, lost, command)
    restarted = [row_id for row_id in lost[: command.max_restarts] if await restart(row_id)]
    _count(kind, len(restarted))
    return len(restarted)


def _outcome(command: RestartLostWorkflows, page: Sequence[str], restarted: int) -> RestartOutcome:
    is_last_page = len(page) < command.limit
    return RestartOutcome(restarted=restarted, last_id=None if is_last_page else page[-1])


async def _alert(sessions: SessionFactory, kind: str, ids: Sequence[str], command: RestartLostWorkflows) -> None:
    activity.logger.error("%s without a workflow: %s", kind, ", ".join(ids))
    restarted = min(len(ids), command.max_restarts)
    alert = outbox.build_operator_alert(
        daily_dedup_key(f"{kind}/lost", ids, scheduled_at(command.now)),
        command.now,
        f"Workflows of {kind} were lost",
        f"{len(ids)} {kind} had no running workflow: {list_names(ids)}. {restarted} of them are started again and go on"
        " from what the database holds; the next run restarts the others. Find out why they ended: it may have been a"
        " termination by hand, a failure of the workflow, or a restored Temporal database.",
        severity="critical",
    )
    async with sessions.begin() as session:
        await outbox.enqueue(session, alert)


def _build_operations_alert(ids: Sequence[str], now: datetime) -> OutboxNotification:
    return outbox.build_operator_alert(
        daily_dedup_key("operations/lost", ids, scheduled_at(now)),
        now,
        "Workflows of operations were lost",
        f"{len(ids)} operations on instances had no running workflow: {list_names(ids)}. They are cancelled and not"
        " repeated: order them again where they are still needed.",
        severity="warning",
    )


def _count(kind: str, restarted: int) -> None:
    activity.metric_meter().create_counter(
        "berth_workflows_restarted", "Workflows that were lost and started again"
    ).add(restarted, {"kind": kind})


def _to_removal(method: PaymentMethod) -> RemovePaymentMethod:
    return RemovePaymentMethod(
        payment_method_id=method.id,
        organization_id=method.organization_id,
        actor=PLATFORM_ACTOR,
        only_at_gateway=True,
    )


def _to_deletion(operation: InstanceOperation, subscription_id: str) -> OperationInput:
    return OperationInput(
        operation_id=operation.id,
        instance_id=operation.instance_id,
        subscription_id=subscription_id,
        organization_id=operation.organization_id,
        kind=OperationKind(operation.kind),
        actor=operation.actor,
        business_time=operation.created_at,
    )


def _to_order(order: OrderedSubscription) -> CreateSubscription:
    return CreateSubscription(
        subscription_id=order.subscription_id,
        instance_id=order.instance_id,
        organization_id=order.organization_id,
        user_id=order.user_id,
        plan_id=order.plan_id,
        name=order.name,
        parameters=order.parameters,
        coupon=order.coupon,
        collection_method=CollectionMethod(order.collection_method),
    )
