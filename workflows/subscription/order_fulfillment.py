"""Fulfillment of an order: create, authorize, provision, activate; a failure compensates the steps in reverse order."""

from __future__ import annotations

import functools

from temporalio import workflow
from temporalio.exceptions import ChildWorkflowError
from temporalio.workflow import ParentClosePolicy

from workflows import local_first, names, policies
from workflows.ports.billing import BillingActivities, BillingOutcome, StartFirstPeriod, SubscriptionActivities
from workflows.ports.instances import OperationInput, OperationKind, ProvisioningInput, ProvisioningOutcome
from workflows.ports.payments import PaymentInput, PaymentOutcome
from workflows.ports.subscription import (
    PLATFORM_ACTOR,
    AbortOrder,
    CancelAt,
    CancelSubscription,
    CardCharge,
    CreateSubscriptionOutcome,
    RecordCancellationRequest,
    RecordOrder,
    StartProvisioning,
)
from workflows.rules import dunning, ids
from workflows.rules.payment import IN_FLIGHT_STATUSES, PAID_STATUSES, PaymentStatus
from workflows.rules.subscription import PRE_READY_STATUSES, SubscriptionStatus
from workflows.saga import Saga
from workflows.subscription import card_payments, lifecycle, recovery
from workflows.subscription.card_payments import PaymentHandle
from workflows.subscription.context import SubscriptionContext

UNSETTLED_STATUSES = tuple(IN_FLIGHT_STATUSES - {PaymentStatus.AUTHORIZED})

RECORDED_CANCELLATION = CancelSubscription(
    update_id="", actor=PLATFORM_ACTOR, at=CancelAt.NOW, reason="cancelled by the customer"
)
"""The accepted cancellation of a lost run: the timeline keeps that it was requested, not by whom."""


class OrderAborted(Exception):
    """The order ends with ``status``; the saga compensates the completed steps."""

    def __init__(self, status: SubscriptionStatus, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


class OrderFulfillment:
    def __init__(self, context: SubscriptionContext) -> None:
        self._context = context
        self._payment: PaymentHandle | None = None
        self._payment_input: PaymentInput | None = None
        self._method_ids: list[str] = []
        self._provisioning: workflow.ChildWorkflowHandle[object, ProvisioningOutcome] | None = None
        self._provisioning_rolled_back = False
        self._abort = OrderAborted(SubscriptionStatus.CANCELLED, "the workflow was cancelled")

    async def run(self) -> bool:
        """Return True when the instance is ready and billing has begun, False when the order has ended.

        A run that follows a lost one continues from the row. Before readiness it repeats the steps: each finds what the
        lost run did, and takes over its payment and its provisioning.

        Raises:
            ApplicationError: the order was refused; nothing was written.
        """
        opened = await self._create_subscription()
        if opened.state.status not in PRE_READY_STATUSES:
            return await recovery.adopt(self._context)
        try:
            async with Saga() as saga:
                # Compensations run newest first: this one runs last. The order is recorded as ended, and what it held
                # is released, once its instance is deleted and its authorization is voided.
                saga.add_compensation(self._record_abort)
                try:
                    if opened.cancellation_requested:
                        await self._take_over_cancellation(saga, opened)
                    if opened.card_charge is not None:
                        saga.add_compensation(self._cancel_authorization)
                        await self._authorize_card(opened.card_charge)
                    saga.add_compensation(self._delete_instance)
                    self._raise_if_cancel_requested()
                    await self._provision()
                except OrderAborted as ending:
                    self._abort = ending
                    await self._record_cancellation_request()
                    raise
        except OrderAborted:
            return False
        await self._activate()
        return True

    async def _create_subscription(self) -> CreateSubscriptionOutcome:
        command, info = self._context.command, workflow.info()
        # A local activity: the customer waits for it, and it saves a workflow task and an activity task.
        opened: CreateSubscriptionOutcome = await local_first.execute(
            SubscriptionActivities.record_order,
            RecordOrder(order=command, workflow_id=info.workflow_id, run_id=info.run_id, now=workflow.now()),
        )
        self._context.store_created(opened)
        return opened

    async def _take_over_cancellation(self, saga: Saga, opened: CreateSubscriptionOutcome) -> None:
        """Take over what a lost run began for an order whose cancellation it accepted, and abort the order.

        Raises:
            OrderAborted: always.
        """
        if self._context.cancel_request is None:
            self._context.cancel_request = RECORDED_CANCELLATION
        if opened.card_charge is not None:
            saga.add_compensation(functools.partial(self._void_authorizations, opened.card_charge))
        if opened.state.status is SubscriptionStatus.PROVISIONING:
            saga.add_compensation(self._delete_instance)
            await self._provision()
        self._raise_if_cancel_requested()

    async def _authorize_card(self, card: CardCharge) -> None:
        """Authorize the amount that credit does not cover, at the first card that does not decline."""
        self._method_ids = [method.payment_method_id for method in card.payment_methods]
        for method in card.payment_methods:
            outcome = await self._authorize(card_payments.build_payment(self._context, card.amount, method, None))
            if outcome is None or not dunning.may_charge_backup(outcome.status, outcome.decline_code):
                break
        # An operator may have captured it at the gateway already.
        if self._payment_status() not in {PaymentStatus.AUTHORIZED, *PAID_STATUSES}:
            raise OrderAborted(SubscriptionStatus.EXPIRED, "the card was declined")
        committed = await workflow.execute_activity_method(
            SubscriptionActivities.start_provisioning,
            StartProvisioning(
                subscription_id=self._context.command.subscription_id,
                payment_id=self._payment_input.payment_id if self._payment_input is not None else None,
                now=workflow.now(),
            ),
            **policies.DATABASE,
        )
        self._context.store_committed(committed)

    async def _authorize(self, payment: PaymentInput) -> PaymentOutcome | None:
        """Start the payment and return its outcome once it is authorized or has ended; None if it was terminated."""
        self._payment_input = payment
        handle = self._payment = await card_payments.start_payment(payment)
        await workflow.wait_condition(
            lambda: (
                self._payment_status() not in (None, *UNSETTLED_STATUSES)
                or handle.done()
                or self._is_cancel_requested()
            )
        )
        self._raise_if_cancel_requested()
        if self._payment_status() is PaymentStatus.AUTHORIZED:
            return self._context.payments[payment.payment_id]
        try:
            return await handle
        except ChildWorkflowError:
            return None

    async def _provision(self) -> None:
        command = self._context.command
        child: workflow.ChildWorkflowHandle[object, ProvisioningOutcome] = await workflow.start_child_workflow(
            names.PROVISIONING,
            ProvisioningInput(
                instance_id=command.instance_id,
                subscription_id=command.subscription_id,
                organization_id=command.organization_id,
                business_time=workflow.now(),
                request_id=command.request_id,
            ),
            id=names.provisioning_workflow_id(command.instance_id),
            id_reuse_policy=policies.TAKE_OVER,
            parent_close_policy=ParentClosePolicy.ABANDON,
            cancellation_type=workflow.ChildWorkflowCancellationType.WAIT_CANCELLATION_COMPLETED,
            result_type=ProvisioningOutcome,
            search_attributes=names.search_attributes(
                command.organization_id,
                "provisioning",
                subscription=command.subscription_id,
                instance=command.instance_id,
            ),
        )
        self._provisioning = child
        await workflow.wait_condition(lambda: child.done() or self._is_cancel_requested())
        self._raise_if_cancel_requested()
        try:
            provisioned = await child
        except ChildWorkflowError as error:
            raise OrderAborted(SubscriptionStatus.FAILED, "provisioning was terminated") from error
        if not provisioned.ready:
            self._provisioning_rolled_back = True
            raise OrderAborted(
                SubscriptionStatus.FAILED,
                provisioned.message or provisioned.reason or "the instance did not become ready",
            )

    async def _activate(self) -> None:
        """Start the first period (or the trial) now that the instance is ready, and capture the authorized payment."""
        context, state, now = self._context, self._context.require_state(), workflow.now()
        state.instance_desired_running = True
        # Keeps other payments and a pause out until the first payment is captured.
        async with context.collection_lock:
            async with context.state_lock:
                outcome: BillingOutcome = await workflow.execute_activity_method(
                    BillingActivities.start_first_period,
                    StartFirstPeriod(
                        subscription_id=context.command.subscription_id,
                        period_start=now,
                        trial_days=state.terms.trial_days,
                        now=now,
                    ),
                    **policies.DATABASE,
                )
                context.store_committed(outcome.state)
            authorized = self._payment_input
            if self._payment is not None and authorized is not None and outcome.invoice_id is not None:
                await card_payments.signal_payment(self._payment, "capture")
                payment = await card_payments.await_payment(context, self._payment, authorized)
                async with context.state_lock:
                    charged = card_payments.judge_payment(
                        context, payment, authorized.payment_method_id, self._method_ids
                    )
                    await card_payments.record_payment(context, outcome.invoice_id, charged)

    async def _record_cancellation_request(self) -> None:
        """Record the accepted cancellation that aborts the order; an authorization can take days to be voided."""
        request = self._context.cancel_request
        if request is not None and self._abort.status is SubscriptionStatus.CANCELLED:
            await workflow.execute_activity_method(
                SubscriptionActivities.record_cancellation_request,
                RecordCancellationRequest(
                    subscription_id=self._context.command.subscription_id, actor=request.actor, now=workflow.now()
                ),
                **policies.DATABASE,
            )

    # Compensations

    async def _record_abort(self) -> None:
        request = self._context.cancel_request
        outcome = await workflow.execute_activity_method(
            SubscriptionActivities.abort_order,
            AbortOrder(
                subscription_id=self._context.command.subscription_id,
                status=self._abort.status,
                reason=self._abort.reason,
                actor=request.actor if request else PLATFORM_ACTOR,
                now=workflow.now(),
            ),
            **policies.DATABASE,
        )
        self._context.store_committed(outcome.state)
        await self._context.signal_past_due(outcome.past_due_subscription_ids)

    async def _cancel_authorization(self) -> None:
        if self._payment is not None:
            await card_payments.signal_payment(self._payment, "cancel_authorization")
            await workflow.wait_condition(self._payment.done)

    async def _void_authorizations(self, card: CardCharge) -> None:
        """Take over the payments that a lost run started, and void the authorization of the one that has it."""
        for method in card.payment_methods:
            payment = card_payments.build_payment(self._context, card.amount, method, None)
            handle = await card_payments.start_payment(payment)
            await card_payments.signal_payment(handle, "cancel_authorization")
            try:
                outcome = await handle
            except ChildWorkflowError:
                return
            if not dunning.may_charge_backup(outcome.status, outcome.decline_code):
                break

    async def _delete_instance(self) -> None:
        """Delete an instance that became ready just before the cancellation; provisioning rolls back by itself."""
        command, provisioning = self._context.command, self._provisioning
        if self._provisioning_rolled_back:
            return
        if provisioning is not None and not provisioning.done():
            provisioning.cancel()
            await workflow.wait_condition(provisioning.done)
        operation_id = ids.derive_id("op", command.subscription_id, "undo")
        await workflow.execute_child_workflow(
            names.INSTANCE_OPERATION,
            OperationInput(
                operation_id=operation_id,
                instance_id=command.instance_id,
                subscription_id=command.subscription_id,
                organization_id=command.organization_id,
                kind=OperationKind.DELETE,
                actor=PLATFORM_ACTOR,
                business_time=workflow.now(),
            ),
            id=names.operation_workflow_id(command.instance_id, operation_id),
            id_reuse_policy=policies.TAKE_OVER,
            parent_close_policy=ParentClosePolicy.ABANDON,
        )

    def _payment_status(self) -> PaymentStatus | None:
        payment = self._payment_input
        outcome = self._context.payments.get(payment.payment_id) if payment is not None else None
        return outcome.status if outcome else None

    def _is_cancel_requested(self) -> bool:
        return self._context.cancel_request is not None

    def _raise_if_cancel_requested(self) -> None:
        request = self._context.cancel_request
        if request is not None:
            raise OrderAborted(SubscriptionStatus.CANCELLED, request.reason or "cancelled by the customer")


async def execute_late_cancellation(context: SubscriptionContext, request: CancelSubscription) -> None:
    """Execute a cancellation that came too late to compensate the order, and whose update was answered before."""
    async with context.state_lock:
        if not context.is_handled(request.update_id):
            await lifecycle.cancel(context, request.at, request.actor, request.reason)
    context.mark_handled(request.update_id)
    context.cancel_request = None
