"""Starts the workflows of payments, refunds and subscriptions again that do not run although they should, and cancels
operations on instances whose workflow does not run.

Each function checks one page. A workflow that runs is left alone, and the administrators are alerted before anything is
started: an alert that a crash prevented would not be made up for.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from temporalio import activity

from activities.operator_alerts import daily_dedup_key, list_names
from db.models.payments import Refund
from db.queries import instances, outbox, workflow_recovery
from db.queries.outbox import OutboxNotification
from db.queries.workflow_recovery import OrderedSubscription
from db.session import SessionFactory
from workflows import lost_workflows, names
from workflows.client import WorkflowClient
from workflows.ports.payments import RefundDestination, RefundInput, payment_input_from_record
from workflows.ports.reconciliation import RestartLostWorkflows, RestartOutcome
from workflows.ports.subscription import CreateSubscription
from workflows.rules.funding import CollectionMethod
from workflows.rules.money import Money
from workflows.rules.order_payments import pays_unfinished_order
from workflows.rules.payment import PaymentRecord

PAYMENT_MINIMUM_AGE = timedelta(minutes=15)
"""Younger payments may be between two workflows: a webhook or a restarted subscription starts them."""

OPERATION_MINIMUM_AGE = timedelta(hours=1)
"""The workflow of a younger operation may not have started yet: the subscription starts it once its worker is back."""

LOST_OPERATION_MESSAGE = "It was interrupted. Start it again if it is still needed."


async def restart_payments(
    sessions: SessionFactory, workflows: WorkflowClient, command: RestartLostWorkflows
) -> RestartOutcome:
    async with sessions() as session:
        page = await workflow_recovery.list_in_flight_payments(
            session, after=command.after, limit=command.limit, minimum_age=PAYMENT_MINIMUM_AGE
        )
    lost = await _find_lost_payments(
        sessions, workflows, [payment for payment, facts in page if not pays_unfinished_order(facts)]
    )
    if lost:
        await _alert(sessions, "payments", [payment.payment_id for payment in lost], command)
    restarted = [
        payment.payment_id
        for payment in lost[: command.max_restarts]
        if await lost_workflows.restart_payment(workflows, payment_input_from_record(payment))
    ]
    _count("payments", len(restarted))
    is_last_page = len(page) < command.limit
    return RestartOutcome(restarted=len(restarted), last_id=None if is_last_page else page[-1][0].payment_id)


async def restart_refunds(
    sessions: SessionFactory, workflows: WorkflowClient, command: RestartLostWorkflows
) -> RestartOutcome:
    async with sessions() as session:
        page = await workflow_recovery.list_pending_refunds(session, after=command.after, limit=command.limit)
    by_workflow_id = {names.refund_workflow_id(refund.id): refund for refund in page}
    lost = [
        by_workflow_id[workflow_id] for workflow_id in await lost_workflows.find_lost(workflows, list(by_workflow_id))
    ]
    # The workflow of a refund that was answered since the page was read has ended.
    async with sessions() as session:
        pending = await workflow_recovery.pending_refunds_among(session, [refund.id for refund in lost])
    lost = [refund for refund in lost if refund.id in pending]
    if lost:
        await _alert(sessions, "refunds", [refund.id for refund in lost], command)
    restarted = [
        refund.id
        for refund in lost[: command.max_restarts]
        if await lost_workflows.restart_refund(workflows, _to_refund_input(refund))
    ]
    _count("refunds", len(restarted))
    is_last_page = len(page) < command.limit
    return RestartOutcome(restarted=len(restarted), last_id=None if is_last_page else page[-1].id)


async def restart_subscriptions(
    sessions: SessionFactory, workflows: WorkflowClient, command: RestartLostWorkflows
) -> RestartOutcome:
    async with sessions() as session:
        page = await workflow_recovery.list_unfinished(session, after=command.after, limit=command.limit)
    by_id = {order.subscription_id: order for order in page}
    lost = await _find_lost_subscriptions(sessions, workflows, list(by_id))
    if lost:
        await _alert(sessions, "subscriptions", lost, command)
    restarted = [
        subscription_id
        for subscription_id in lost[: command.max_restarts]
        if await lost_workflows.restart_subscription(workflows, _to_order(by_id[subscription_id]))
    ]
    _count("subscriptions", len(restarted))
    is_last_page = len(page) < command.limit
    return RestartOutcome(restarted=len(restarted), last_id=None if is_last_page else page[-1].subscription_id)


async def cancel_lost_operations(
    sessions: SessionFactory, workflows: WorkflowClient, command: RestartLostWorkflows
) -> RestartOutcome:
    async with sessions() as session:
        page = await instances.list_unfinished_operations(
            session, after=command.after, limit=command.limit, minimum_age=OPERATION_MINIMUM_AGE
        )
    by_workflow_id = {
        names.operation_workflow_id(operation.instance_id, operation.id): operation.id for operation in page
    }
    lost = [
        by_workflow_id[workflow_id] for workflow_id in await lost_workflows.find_lost(workflows, list(by_workflow_id))
    ]
    async with sessions.begin() as session:
        # The workflow of an operation that ended since the page was read has ended.
        unfinished = await instances.unfinished_operations_among(session, lost)
        if unfinished:
            activity.logger.error("operations without a workflow: %s", ", ".join(sorted(unfinished)))
            await outbox.enqueue(session, _build_operations_alert(sorted(unfinished), command.now))
            await instances.cancel_operations(session, unfinished, message=LOST_OPERATION_MESSAGE, at=command.now)
    is_last_page = len(page) < command.limit
    return RestartOutcome(restarted=len(unfinished), last_id=None if is_last_page else page[-1].id)


async def _find_lost_subscriptions(
    sessions: SessionFactory, workflows: WorkflowClient, subscription_ids: Sequence[str]
) -> list[str]:
    by_workflow_id = {names.subscription_workflow_id(identifier): identifier for identifier in subscription_ids}
    lost = [
        by_workflow_id[workflow_id] for workflow_id in await lost_workflows.find_lost(workflows, list(by_workflow_id))
    ]
    # A subscription that ended since the page was read needs no workflow.
    async with sessions() as session:
        unfinished = await workflow_recovery.unfinished_among(session, lost)
    return [subscription_id for subscription_id in lost if subscription_id in unfinished]


async def _find_lost_payments(
    sessions: SessionFactory, workflows: WorkflowClient, page: Sequence[PaymentRecord]
) -> list[PaymentRecord]:
    """Return the payments to start again; one of a subscription that is lost itself is left to its next run."""
    by_workflow_id = {names.payment_workflow_id(payment.payment_id): payment for payment in page}
    lost = [
        by_workflow_id[workflow_id] for workflow_id in await lost_workflows.find_lost(workflows, list(by_workflow_id))
    ]
    subscription_ids = {payment.subscription_id for payment in lost if payment.subscription_id is not None}
    lost_subscriptions = set(await _find_lost_subscriptions(sessions, workflows, sorted(subscription_ids)))
    async with sessions() as session:
        in_flight = await workflow_recovery.in_flight_among(session, [payment.payment_id for payment in lost])
    return [
        payment
        for payment in lost
        if payment.payment_id in in_flight and payment.subscription_id not in lost_subscriptions
    ]


async def _alert(sessions: SessionFactory, kind: str, ids: Sequence[str], command: RestartLostWorkflows) -> None:
    activity.logger.error("%s without a workflow: %s", kind, ", ".join(ids))
    restarted = min(len(ids), command.max_restarts)
    alert = outbox.build_operator_alert(
        daily_dedup_key(f"{kind}/lost", ids, command.now),
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
        daily_dedup_key("operations/lost", ids, now),
        now,
        "Workflows of operations were lost",
        f"{len(ids)} operations on instances had no running workflow: {list_names(ids)}. They are cancelled and not"
        " repeated: order them again where they are still needed.",
        severity="warning",
    )


def _count(kind: str, restarted: int) -> None:
    activity.metric_meter().create_counter(
        "berth_workflows_restarted", "Workflows of payments, refunds and subscriptions that were lost and started again"
    ).add(restarted, {"kind": kind})


def _to_refund_input(refund: Refund) -> RefundInput:
    return RefundInput(
        refund_id=refund.id,
        payment_id=refund.payment_id,
        organization_id=refund.organization_id,
        amount=Money(amount_minor=refund.amount_minor, currency=refund.currency),
        destination=RefundDestination(refund.destination),
        reason=refund.reason,
        actor=refund.actor,
        request_id=refund.request_id or "",
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
