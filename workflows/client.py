"""The one way into the workflows: connect, and the ``Orchestrator`` that the API (and the worker's CLI) speaks to.

Every method is one call to the Temporal server with a bounded wait. Orders derive their ids from the account and its
``Idempotency-Key``, so that a retry finds what the first try started.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, Generic, TypeVar

import temporalio.converter
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
from temporalio.service import RetryConfig, RPCError, RPCStatusCode

from workflows import names
from workflows.codec import EncryptionCodec
from workflows.converter import PayloadConverter
from workflows.ports.billing import AccountAdjustment
from workflows.ports.notifications import RenderedInvoice, RenderInvoice
from workflows.ports.payments import (
    AddPaymentMethod,
    GatewayEvent,
    Pay,
    PaymentMethodAdded,
    PaymentOutcome,
    RefundOrder,
    RefundOutcome,
    RemovePaymentMethod,
)
from workflows.ports.subscription import (
    Cancel,
    ChangePlanOrder,
    ClockView,
    FundsArrived,
    OperateOrder,
    Order,
    Subscribe,
    Subscribed,
    View,
)
from workflows.refusals import refusal_in
from workflows.settings import TemporalSettings

T = TypeVar("T")

ANSWER_WITHIN = timedelta(seconds=3)
"""How long an order waits for its outcome before the caller is told that it is on its way."""

DONE_WITHIN = timedelta(seconds=4)
"""How long a short process (a card is saved, a refund is sent) is waited for: whatever is away, callers hear in 5 s."""


class Unavailable(Exception):
    """The Temporal server, or every worker, is away; nothing is known to have been accepted."""


class NotSeenYet(Unavailable):
    """No worker has taken up the workflow's current run: it has just begun, and nobody can answer for it."""


class NotRunning(Exception):
    """The workflow has ended (or never was): there is nothing to give the order to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted(Generic[T]):
    """An order that was accepted; ``outcome`` is None when it did not come within ``ANSWER_WITHIN``."""

    workflow_id: str
    outcome: T | None


def data_converter(settings: TemporalSettings) -> temporalio.converter.DataConverter:
    plain = replace(temporalio.converter.default(), payload_converter_class=PayloadConverter)
    if not settings.encryption_keys:
        return plain
    return replace(
        plain,
        payload_codec=EncryptionCodec(settings.encryption_keys),
        failure_converter_class=temporalio.converter.DefaultFailureConverterWithEncodedAttributes,
    )


async def connect(settings: TemporalSettings, *, lazy: bool = False, **options: Any) -> Client:
    """Return a client. ``lazy`` connects at the first call, so that the API starts while Temporal is away."""
    return await Client.connect(
        settings.address,
        namespace=settings.namespace,
        data_converter=data_converter(settings),
        lazy=lazy,
        retry_config=RetryConfig(max_retries=2, max_elapsed_time_millis=2_000),
        **options,
    )


class Orchestrator:
    """Orders, facts and questions to workflows.

    Raises from every method: ``RuleBroken`` when a rule refused, ``Unavailable`` when nobody answers,
    ``NotRunning`` when the entity has ended.
    """

    def __init__(self, client: Client) -> None:
        self._client = client

    @property
    def client(self) -> Client:
        return self._client

    async def subscribe(self, order: Subscribe) -> Accepted[View]:
        """Start (or find) the subscription's workflow and wait until it is opened or refused."""
        workflow_id = names.subscription_workflow(order.subscription_id)
        start: WithStartWorkflowOperation[Any, Any] = WithStartWorkflowOperation(
            names.SUBSCRIPTION,
            Subscribed(order=order),
            id=workflow_id,
            task_queue=names.PLATFORM,
            id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
            id_reuse_policy=WorkflowIDReusePolicy.ALLOW_DUPLICATE_FAILED_ONLY,
            search_attributes=names.attributes(
                order.organization_id, "subscription", subscription=order.subscription_id, instance=order.instance_id
            ),
            memo={"request_id": order.request_id},
            result_type=View,
        )
        return await self._update_with_start(workflow_id, "opened", f"open/{order.subscription_id}", View, start)

    async def cancel(self, subscription_id: str, order: Cancel) -> Accepted[View]:
        return await self._order(subscription_id, "cancel", order, order.order_id)

    async def resume(self, subscription_id: str, order: Order) -> Accepted[View]:
        return await self._order(subscription_id, "resume", order, order.order_id)

    async def pause(self, subscription_id: str, order: Order) -> Accepted[View]:
        return await self._order(subscription_id, "pause", order, order.order_id)

    async def retry_payment(self, subscription_id: str, order: Order) -> Accepted[View]:
        return await self._order(subscription_id, "retry_payment", order, order.order_id)

    async def change_plan(self, subscription_id: str, order: ChangePlanOrder) -> Accepted[View]:
        return await self._order(subscription_id, "change_plan", order, order.order_id)

    async def operate(self, subscription_id: str, order: OperateOrder) -> Accepted[View]:
        """Restart, stop, start or back up the subscription's instance, one operation at a time."""
        return await self._order(subscription_id, "operate", order, order.order_id)

    async def top_up(self, order: Pay) -> Accepted[PaymentOutcome]:
        """Start (or find) the top-up's payment and wait until it is settled, refused or needs the customer."""
        workflow_id = names.payment_workflow(order.payment_id)
        start: WithStartWorkflowOperation[Any, Any] = WithStartWorkflowOperation(
            names.PAYMENT,
            order,
            id=workflow_id,
            task_queue=names.PLATFORM,
            id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
            id_reuse_policy=WorkflowIDReusePolicy.ALLOW_DUPLICATE_FAILED_ONLY,
            search_attributes=names.attributes(order.organization_id, "payment"),
            memo={"request_id": order.request_id},
        )
        update_id = f"answered/{order.payment_id}"
        return await self._update_with_start(workflow_id, "answered", update_id, PaymentOutcome, start)

    async def add_payment_method(self, order: AddPaymentMethod) -> PaymentMethodAdded:
        """Attach a card at its gateway and wait for the result."""
        result: PaymentMethodAdded = await self._run(
            names.PAYMENT_METHOD_SETUP,
            order,
            names.payment_method_workflow(order.payment_method_id),
            PaymentMethodAdded,
            order.organization_id,
        )
        return result

    async def remove_payment_method(self, order: RemovePaymentMethod) -> None:
        """Take a card off file and wait until it is."""
        await self._run(
            names.PAYMENT_METHOD_REMOVAL,
            order,
            names.payment_method_removal_workflow(order.payment_method_id),
            type(None),
            order.organization_id,
        )

    async def adjust(self, order: AccountAdjustment) -> str:
        """Post an administrator's correction; returns the transaction's id."""
        result: str = await self._run(
            names.ADJUSTMENT, order, names.adjustment_workflow(order.adjustment_id), str, order.organization_id
        )
        return result

    async def refund(self, order: RefundOrder) -> RefundOutcome:
        result: RefundOutcome = await self._run(
            names.REFUND, order, names.refund_workflow(order.refund_id), RefundOutcome, order.organization_id
        )
        return result

    async def render_invoice(self, invoice_id: str, organization_id: str) -> RenderedInvoice:
        """Render an invoice's PDF (again, if it was lost) and wait until it is kept, 3 s at most."""
        handle: Any = await _bounded(
            self._client.start_workflow(
                names.INVOICE_DOCUMENT,
                RenderInvoice(invoice_id=invoice_id, organization_id=organization_id),
                id=names.document_workflow(invoice_id),
                task_queue=names.PLATFORM,
                id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
                search_attributes=names.attributes(organization_id, "document"),
                result_type=RenderedInvoice,
                rpc_timeout=ANSWER_WITHIN,
            )
        )
        try:
            async with asyncio.timeout(ANSWER_WITHIN.total_seconds()):
                result: RenderedInvoice = await _bounded(handle.result())
        except TimeoutError as error:
            raise Unavailable from error
        except WorkflowFailureError as error:
            raise refusal_in(error) from error
        return result

    async def payment_event(self, event: GatewayEvent, resume: Pay) -> None:
        """Tell a payment what its gateway said; a payment that has ended is resumed to hear it."""
        await _bounded(
            self._client.start_workflow(
                names.PAYMENT,
                resume,
                id=names.payment_workflow(resume.payment_id),
                task_queue=names.PLATFORM,
                start_signal="gateway_event",
                start_signal_args=[event],
                id_reuse_policy=WorkflowIDReusePolicy.ALLOW_DUPLICATE,
                search_attributes=names.attributes(resume.organization_id, "payment"),
                rpc_timeout=ANSWER_WITHIN,
            )
        )

    async def funds_arrived(self, subscription_id: str, fact: FundsArrived) -> None:
        """Tell a subscription that a debt may be collectable now. A subscription that has ended ignores it."""
        handle = self._client.get_workflow_handle(names.subscription_workflow(subscription_id))
        try:
            await _bounded(handle.signal("funds_arrived", fact, rpc_timeout=ANSWER_WITHIN))
        except NotRunning:
            return

    async def is_running(self, workflow_id: str) -> bool:
        """Whether a process is under way; False when it has ended or never was."""
        try:
            found = await _bounded(self._client.get_workflow_handle(workflow_id).describe(rpc_timeout=ANSWER_WITHIN))
        except NotRunning:
            return False
        return found.status is WorkflowExecutionStatus.RUNNING

    async def clock(self, subscription_id: str) -> ClockView:
        """Where the subscription stands on its own calendar."""
        handle = self._client.get_workflow_handle(names.subscription_workflow(subscription_id))
        view: ClockView = await _bounded(
            handle.query("clock", result_type=ClockView, rpc_timeout=timedelta(seconds=10))
        )
        return view

    async def _order(self, subscription_id: str, name: str, order: object, order_id: str) -> Accepted[View]:
        workflow_id = names.subscription_workflow(subscription_id)
        handle = self._client.get_workflow_handle(workflow_id)
        update: WorkflowUpdateHandle[View] = await _bounded(
            handle.start_update(
                name,
                order,
                id=order_id,
                wait_for_stage=WorkflowUpdateStage.ACCEPTED,
                result_type=View,
                rpc_timeout=ANSWER_WITHIN,
            )
        )
        try:
            view: View = await update.result(rpc_timeout=ANSWER_WITHIN)
        except WorkflowUpdateFailedError as error:
            raise refusal_in(error) from error
        except (WorkflowUpdateRPCTimeoutOrCancelledError, RPCError):
            # It was accepted, so it will be carried out; only its outcome is not known yet.
            return Accepted(workflow_id=workflow_id, outcome=None)
        return Accepted(workflow_id=workflow_id, outcome=view)

    async def _update_with_start(
        self,
        workflow_id: str,
        update: str,
        update_id: str,
        result_type: type[T],
        start: WithStartWorkflowOperation[Any, Any],
    ) -> Accepted[T]:
        try:
            outcome: T = await self._client.execute_update_with_start_workflow(
                update,
                id=update_id,
                start_workflow_operation=start,
                result_type=result_type,
                rpc_timeout=ANSWER_WITHIN,
            )
        except WorkflowUpdateFailedError as error:
            raise refusal_in(error) from error
        except (WorkflowUpdateRPCTimeoutOrCancelledError, WorkflowAlreadyStartedError):
            await _forget(start)
            return await self._started(workflow_id)
        except RPCError as error:
            await _forget(start)
            if error.status in (RPCStatusCode.DEADLINE_EXCEEDED, RPCStatusCode.CANCELLED):
                return await self._started(workflow_id)
            raise _translated(error) from error
        return Accepted(workflow_id=workflow_id, outcome=outcome)

    async def _started(self, workflow_id: str) -> Accepted[Any]:
        """Say accepted only when the server says that the start is there."""
        handle = self._client.get_workflow_handle(workflow_id)
        try:
            await _bounded(handle.describe(rpc_timeout=timedelta(seconds=1)))
        except NotRunning as error:
            raise Unavailable from error
        return Accepted(workflow_id=workflow_id, outcome=None)

    async def _run(
        self, workflow: str, order: object, workflow_id: str, result_type: type[T], organization_id: str
    ) -> T:
        handle: Any = self._client.get_workflow_handle(workflow_id, result_type=result_type)
        # It ran and ended before: the handle has its outcome.
        with contextlib.suppress(WorkflowAlreadyStartedError):
            handle = await _bounded(
                self._client.start_workflow(
                    workflow,
                    order,
                    id=workflow_id,
                    task_queue=names.PLATFORM,
                    id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
                    id_reuse_policy=WorkflowIDReusePolicy.ALLOW_DUPLICATE_FAILED_ONLY,
                    search_attributes=names.attributes(organization_id, workflow.lower()),
                    result_type=result_type,
                    rpc_timeout=ANSWER_WITHIN,
                )
            )
        try:
            # Asking for the result looks again until it is there: only a bound around it ends that.
            async with asyncio.timeout(DONE_WITHIN.total_seconds()):
                result: T = await _bounded(handle.result())
        except TimeoutError as error:
            raise Unavailable from error
        except WorkflowFailureError as error:
            raise refusal_in(error) from error
        return result


async def _forget(start: WithStartWorkflowOperation[Any, Any]) -> None:
    """Collect the error that the SDK keeps for whoever asks for the handle; nobody else will."""
    with contextlib.suppress(Exception):
        async with asyncio.timeout(0.05):
            await start.workflow_handle()


async def _bounded(call: Awaitable[T]) -> T:
    try:
        return await call
    except WorkflowUpdateFailedError as error:
        raise refusal_in(error) from error
    except WorkflowUpdateRPCTimeoutOrCancelledError as error:
        raise Unavailable from error
    except RPCError as error:
        raise _translated(error) from error


def _translated(error: RPCError) -> Exception:
    if error.status is RPCStatusCode.NOT_FOUND:
        return NotRunning(error.message)
    if error.status is RPCStatusCode.FAILED_PRECONDITION:
        return NotSeenYet(error.message)
    if error.status in _AWAY:
        return Unavailable(error.message)
    return error


_AWAY = (
    RPCStatusCode.UNAVAILABLE,
    RPCStatusCode.DEADLINE_EXCEEDED,
    RPCStatusCode.CANCELLED,
    RPCStatusCode.RESOURCE_EXHAUSTED,
)
