"""Client of the workflows, for the API, the activities and the command line.

Every method waits a bounded time. Ids of workflows and updates derive from the organization and its
``Idempotency-Key``, so that a retry finds what the first request started.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Generic, TypeVar

from temporalio.client import (
    Client,
    WithStartWorkflowOperation,
    WorkflowExecutionStatus,
    WorkflowFailureError,
    WorkflowUpdateFailedError,
    WorkflowUpdateHandle,
    WorkflowUpdateRPCTimeoutOrCancelledError,
    WorkflowUpdateStage,
)
from temporalio.common import (
    WorkflowIDConflictPolicy,
    WorkflowIDReusePolicy,
)
from temporalio.exceptions import WorkflowAlreadyStartedError
from temporalio.service import RPCError, RPCStatusCode

from workflows import names
from workflows.errors import to_rule_violation
from workflows.ports.billing import AdjustWallet
from workflows.ports.notifications import RenderedDocument, RenderInvoice
from workflows.ports.payments import (
    AddPaymentMethod,
    GatewayEvent,
    MakePaymentMethodDefault,
    PaymentInput,
    PaymentMethodAdded,
    PaymentOutcome,
    RemovePaymentMethod,
)
from workflows.ports.refunds import RefundInput, RefundOutcome
from workflows.ports.subscription import (
    CancelSubscription,
    ChangePlan,
    ClockStatus,
    CreateSubscription,
    FundsArrived,
    LifecycleCommand,
    StartOperation,
    SubscriptionInput,
    SubscriptionResult,
)
from workflows.rpc_errors import (
    TemporalUnavailable,
    WorkflowNotRunning,
    consume_start_error,
    from_connect_error,
    from_rpc_error,
    translate_rpc_errors,
)
from workflows.rules.subscription import SubscriptionStatus

T = TypeVar("T")

UPDATE_TIMEOUT = timedelta(seconds=3)
"""How long an order waits for its result. After that the API answers 202: accepted and in progress."""

RESULT_TIMEOUT = timedelta(seconds=4)
"""How long a command or a short workflow (saving a card, sending a refund) is awaited: the API responds within 5 s."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateResult(Generic[T]):
    """An accepted update; ``result`` is None when it did not come in time."""

    workflow_id: str
    result: T | None


class WorkflowClient:
    """Starts, updates, signals and queries workflows.

    Every method raises ``RuleViolation`` when a rule rejected the command, ``TemporalUnavailable`` when no response
    came in time, and ``WorkflowNotRunning`` when the workflow has ended.
    """

    def __init__(self, client: Client) -> None:
        self._client = client

    @property
    def client(self) -> Client:
        return self._client

    async def create_subscription(self, command: CreateSubscription) -> UpdateResult[SubscriptionResult]:
        """Start (or find) the subscription's workflow and wait until the order is recorded or refused."""
        workflow_id = names.subscription_workflow_id(command.subscription_id)
        start: WithStartWorkflowOperation[Any, Any] = WithStartWorkflowOperation(
            names.SUBSCRIPTION,
            SubscriptionInput(command=command),
            id=workflow_id,
            task_queue=names.PLATFORM_QUEUE,
            id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
            id_reuse_policy=WorkflowIDReusePolicy.ALLOW_DUPLICATE_FAILED_ONLY,
            search_attributes=names.search_attributes(
                command.organization_id,
                "subscription",
                subscription=command.subscription_id,
                instance=command.instance_id,
                # The status that most orders have once they are recorded: it saves the workflow an upsert.
                status=SubscriptionStatus.PROVISIONING,
            ),
            memo={"request_id": command.request_id},
            result_type=SubscriptionResult,
        )
        return await self._update_with_start(
            workflow_id, "await_created", f"open/{command.subscription_id}", SubscriptionResult, start
        )

    async def cancel(self, subscription_id: str, command: CancelSubscription) -> UpdateResult[SubscriptionResult]:
        return await self._execute_update(subscription_id, "cancel", command, command.update_id)

    async def resume(self, subscription_id: str, command: LifecycleCommand) -> UpdateResult[SubscriptionResult]:
        return await self._execute_update(subscription_id, "resume", command, command.update_id)

    async def pause(self, subscription_id: str, command: LifecycleCommand) -> UpdateResult[SubscriptionResult]:
        return await self._execute_update(subscription_id, "pause", command, command.update_id)

    async def retry_payment(self, subscription_id: str, command: LifecycleCommand) -> UpdateResult[SubscriptionResult]:
        return await self._execute_update(subscription_id, "retry_payment", command, command.update_id)

    async def change_plan(self, subscription_id: str, command: ChangePlan) -> UpdateResult[SubscriptionResult]:
        return await self._execute_update(subscription_id, "change_plan", command, command.update_id)

    async def start_operation(self, subscription_id: str, command: StartOperation) -> UpdateResult[SubscriptionResult]:
        """Restart, stop, start or back up the subscription's instance, one operation at a time."""
        return await self._execute_update(subscription_id, "start_operation", command, command.update_id)

    async def start_top_up(self, command: PaymentInput) -> UpdateResult[PaymentOutcome]:
        """Start (or find) the top-up's payment and wait until it has an outcome or needs the customer."""
        workflow_id = names.payment_workflow_id(command.payment_id)
        start: WithStartWorkflowOperation[Any, Any] = WithStartWorkflowOperation(
            names.PAYMENT,
            command,
            id=workflow_id,
            task_queue=names.PLATFORM_QUEUE,
            id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
            id_reuse_policy=WorkflowIDReusePolicy.ALLOW_DUPLICATE_FAILED_ONLY,
            search_attributes=names.search_attributes(command.organization_id, "payment"),
            memo={"request_id": command.request_id},
        )
        update_id = f"answered/{command.payment_id}"
        return await self._update_with_start(workflow_id, "await_outcome", update_id, PaymentOutcome, start)

    async def add_payment_method(self, command: AddPaymentMethod) -> PaymentMethodAdded:
        """Attach a card at its gateway and wait for the result."""
        result: PaymentMethodAdded = await self._execute_workflow(
            names.PAYMENT_METHOD_SETUP,
            command,
            names.payment_method_setup_workflow_id(command.payment_method_id),
            PaymentMethodAdded,
            command.organization_id,
        )
        return result

    async def make_payment_method_default(self, command: MakePaymentMethodDefault) -> None:
        """Make a saved card the default; wait until it is recorded and past-due subscriptions are signaled."""
        await self._execute_workflow(
            names.PAYMENT_METHOD_DEFAULT,
            command,
            names.payment_method_default_workflow_id(command.default_change_id),
            type(None),
            command.organization_id,
        )

    async def remove_payment_method(self, command: RemovePaymentMethod) -> None:
        """Detach a saved card and wait for the result."""
        await self._execute_workflow(
            names.PAYMENT_METHOD_REMOVAL,
            command,
            names.payment_method_removal_workflow_id(command.payment_method_id),
            type(None),
            command.organization_id,
        )

    async def adjust_wallet(self, command: AdjustWallet) -> str:
        """Post an administrator's correction and return the id of its ledger transaction."""
        result: str = await self._execute_workflow(
            names.WALLET_ADJUSTMENT,
            command,
            names.adjustment_workflow_id(command.adjustment_id),
            str,
            command.organization_id,
        )
        return result

    async def refund_payment(self, command: RefundInput) -> UpdateResult[RefundOutcome]:
        """Start (or find) the refund and wait for the gateway's first answer, which may be that it is pending."""
        workflow_id = names.refund_workflow_id(command.refund_id)
        start: WithStartWorkflowOperation[Any, Any] = WithStartWorkflowOperation(
            names.REFUND,
            command,
            id=workflow_id,
            task_queue=names.PLATFORM_QUEUE,
            id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
            id_reuse_policy=WorkflowIDReusePolicy.ALLOW_DUPLICATE_FAILED_ONLY,
            search_attributes=names.search_attributes(command.organization_id, "refund"),
            memo={"request_id": command.request_id},
        )
        update_id = f"answered/{command.refund_id}"
        return await self._update_with_start(workflow_id, "await_outcome", update_id, RefundOutcome, start)

    async def render_invoice(self, invoice_id: str, organization_id: str) -> RenderedDocument:
        """Render an invoice's PDF (again, if it was lost) and wait until it is stored, 3 s at most."""
        handle: Any = await translate_rpc_errors(
            self._client.start_workflow(
                names.INVOICE_RENDERING,
                RenderInvoice(invoice_id=invoice_id, organization_id=organization_id),
                id=names.invoice_rendering_workflow_id(invoice_id),
                task_queue=names.PLATFORM_QUEUE,
                id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
                search_attributes=names.search_attributes(organization_id, "document"),
                result_type=RenderedDocument,
                rpc_timeout=UPDATE_TIMEOUT,
            )
        )
        try:
            async with asyncio.timeout(UPDATE_TIMEOUT.total_seconds()):
                result: RenderedDocument = await translate_rpc_errors(handle.result())
        except TimeoutError as error:
            raise TemporalUnavailable from error
        except WorkflowFailureError as error:
            raise to_rule_violation(error) from error
        return result

    async def deliver_gateway_event(self, event: GatewayEvent, payment_input: PaymentInput) -> None:
        """Deliver a gateway's event to its payment; a payment that has ended is started again for it."""
        workflow_id = names.payment_workflow_id(payment_input.payment_id)
        await self._signal_with_start(names.PAYMENT, workflow_id, payment_input, event)

    async def deliver_refund_event(self, event_id: str, refund_input: RefundInput) -> None:
        """Let a refund ask its gateway again; a refund that has ended is started again for it."""
        workflow_id = names.refund_workflow_id(refund_input.refund_id)
        await self._signal_with_start(names.REFUND, workflow_id, refund_input, event_id)

    async def signal_funds_arrived(self, subscription_id: str, fact: FundsArrived) -> None:
        """Signal a subscription that its open invoice may be collectable now. Does nothing when it has ended."""
        handle = self._client.get_workflow_handle(names.subscription_workflow_id(subscription_id))
        try:
            await translate_rpc_errors(handle.signal("funds_arrived", fact, rpc_timeout=UPDATE_TIMEOUT))
        except WorkflowNotRunning:
            return

    async def is_running(self, workflow_id: str) -> bool:
        """Return whether a workflow is running; False when it has ended or was never started."""
        try:
            description = await translate_rpc_errors(
                self._client.get_workflow_handle(workflow_id).describe(rpc_timeout=UPDATE_TIMEOUT)
            )
        except WorkflowNotRunning:
            return False
        return description.status is WorkflowExecutionStatus.RUNNING

    async def get_clock_status(self, subscription_id: str) -> ClockStatus:
        """Return the subscription's time and its next scheduled action."""
        handle = self._client.get_workflow_handle(names.subscription_workflow_id(subscription_id))
        view: ClockStatus = await translate_rpc_errors(
            handle.query("clock_status", result_type=ClockStatus, rpc_timeout=timedelta(seconds=10))
        )
        return view

    async def release_reminders(self, subscription_id: str) -> None:
        """Send the reminders that are due on the subscription's clock."""
        handle = self._client.get_workflow_handle(names.subscription_workflow_id(subscription_id))
        await translate_rpc_errors(handle.execute_update("release_reminders", rpc_timeout=timedelta(seconds=10)))

    async def _execute_update(
        self, subscription_id: str, name: str, command: object, update_id: str
    ) -> UpdateResult[SubscriptionResult]:
        workflow_id = names.subscription_workflow_id(subscription_id)
        handle = self._client.get_workflow_handle(workflow_id)
        deadline = time.monotonic() + RESULT_TIMEOUT.total_seconds()
        update: WorkflowUpdateHandle[SubscriptionResult] = await translate_rpc_errors(
            handle.start_update(
                name,
                command,
                id=update_id,
                wait_for_stage=WorkflowUpdateStage.ACCEPTED,
                result_type=SubscriptionResult,
                rpc_timeout=UPDATE_TIMEOUT,
            )
        )
        try:
            # Acceptance and result share one limit. The SDK polls again, with the same limit, when the server has ended
            # a poll without a result.
            remaining = max(deadline - time.monotonic(), 0.05)
            async with asyncio.timeout(remaining):
                view: SubscriptionResult = await update.result(rpc_timeout=timedelta(seconds=remaining))
        except WorkflowUpdateFailedError as error:
            raise to_rule_violation(error) from error
        except (WorkflowUpdateRPCTimeoutOrCancelledError, RPCError, TimeoutError):
            # It was accepted, so it will be executed; only its result is missing.
            return UpdateResult(workflow_id=workflow_id, result=None)
        return UpdateResult(workflow_id=workflow_id, result=view)

    async def _update_with_start(
        self,
        workflow_id: str,
        update: str,
        update_id: str,
        result_type: type[T],
        start: WithStartWorkflowOperation[Any, Any],
    ) -> UpdateResult[T]:
        try:
            outcome: T = await self._client.execute_update_with_start_workflow(
                update,
                id=update_id,
                start_workflow_operation=start,
                result_type=result_type,
                rpc_timeout=UPDATE_TIMEOUT,
            )
        except WorkflowUpdateFailedError as error:
            raise to_rule_violation(error) from error
        except (WorkflowUpdateRPCTimeoutOrCancelledError, WorkflowAlreadyStartedError):
            await consume_start_error(start)
            return await self._accepted_if_started(workflow_id)
        except RPCError as error:
            await consume_start_error(start)
            if error.status in (RPCStatusCode.DEADLINE_EXCEEDED, RPCStatusCode.CANCELLED):
                return await self._accepted_if_started(workflow_id)
            raise from_rpc_error(error) from error
        except RuntimeError as error:
            await consume_start_error(start)
            raise from_connect_error(error) from error
        return UpdateResult(workflow_id=workflow_id, result=outcome)

    async def _accepted_if_started(self, workflow_id: str) -> UpdateResult[Any]:
        """Return an accepted update without a result, once the server confirms that the workflow was started."""
        handle = self._client.get_workflow_handle(workflow_id)
        try:
            await translate_rpc_errors(handle.describe(rpc_timeout=timedelta(seconds=1)))
        except WorkflowNotRunning as error:
            raise TemporalUnavailable from error
        return UpdateResult(workflow_id=workflow_id, result=None)

    async def _signal_with_start(
        self, workflow: str, workflow_id: str, command: PaymentInput | RefundInput, event: object
    ) -> None:
        await translate_rpc_errors(
            self._client.start_workflow(
                workflow,
                command,
                id=workflow_id,
                task_queue=names.PLATFORM_QUEUE,
                start_signal="gateway_event",
                start_signal_args=[event],
                id_reuse_policy=WorkflowIDReusePolicy.ALLOW_DUPLICATE,
                search_attributes=names.search_attributes(command.organization_id, workflow.lower()),
                rpc_timeout=UPDATE_TIMEOUT,
            )
        )

    async def _execute_workflow(
        self, workflow: str, command: object, workflow_id: str, result_type: type[T], organization_id: str
    ) -> T:
        handle: Any = self._client.get_workflow_handle(workflow_id, result_type=result_type)
        # A workflow that ran and ended before: the handle has its result.
        with contextlib.suppress(WorkflowAlreadyStartedError):
            handle = await translate_rpc_errors(
                self._client.start_workflow(
                    workflow,
                    command,
                    id=workflow_id,
                    task_queue=names.PLATFORM_QUEUE,
                    id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
                    id_reuse_policy=WorkflowIDReusePolicy.ALLOW_DUPLICATE_FAILED_ONLY,
                    search_attributes=names.search_attributes(organization_id, workflow.lower()),
                    result_type=result_type,
                    rpc_timeout=UPDATE_TIMEOUT,
                )
            )
        try:
            # The SDK polls for the result without a limit.
            async with asyncio.timeout(RESULT_TIMEOUT.total_seconds()):
                result: T = await translate_rpc_errors(handle.result())
        except TimeoutError as error:
            raise TemporalUnavailable from error
        except WorkflowFailureError as error:
            raise to_rule_violation(error) from error
        return result
