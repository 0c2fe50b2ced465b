"""Payments by card: start the ``Payment`` workflow, wait for its outcome, record it on the invoice.

A declined card is followed by the next one on file, the default before the backups.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

from temporalio import workflow
from temporalio.exceptions import ChildWorkflowError, FailureError, TerminatedError
from temporalio.workflow import ParentClosePolicy

from workflows import names, policies
from workflows.errors import non_retryable_error
from workflows.ports.billing import ApplyCardPayment, BillingActivities, BillingOutcome, RecordPaymentFailure
from workflows.ports.payments import PaymentInput, PaymentOutcome, Purpose
from workflows.ports.subscription import PLATFORM_ACTOR, CardCharge, PlanTerms
from workflows.rules import dunning, ids
from workflows.rules.dunning import FundsKind
from workflows.rules.errors import ErrorCode
from workflows.rules.funding import PaymentMethodReference
from workflows.rules.money import Money
from workflows.rules.payment import PAID_STATUSES, PaymentStatus
from workflows.rules.subscription import LIVE_STATUSES
from workflows.subscription.context import SubscriptionContext

PaymentHandle = workflow.ChildWorkflowHandle[object, PaymentOutcome]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChargeResult:
    """How the charge of an amount ended.

    Attributes:
        payment: The payment that succeeded, or the last one that did not.
        hard_declined: Every card that may pay has had a hard decline, or this one was declined for suspected fraud. No
            card is then charged automatically; a command of the customer still charges.
    """

    payment: PaymentOutcome
    hard_declined: bool


def build_payment(
    context: SubscriptionContext, amount: Money, method: PaymentMethodReference, invoice_id: str | None
) -> PaymentInput:
    """Return the next payment's command; without ``invoice_id`` it authorizes the order's first period."""
    state, command = context.require_state(), context.command
    state.payment_count += 1
    return PaymentInput(
        payment_id=ids.derive_id("pay", command.subscription_id, f"{state.recovery_id}{state.payment_count}"),
        organization_id=command.organization_id,
        amount=amount,
        gateway=method.gateway,
        purpose=Purpose.INVOICE if invoice_id else Purpose.ORDER,
        payment_method_id=method.payment_method_id,
        subscription_id=command.subscription_id,
        invoice_id=invoice_id,
        business_time=workflow.now(),
        manual_capture=invoice_id is None,
        actor=PLATFORM_ACTOR,
        request_id=command.request_id,
    )


async def start_payment(payment: PaymentInput) -> PaymentHandle:
    """Start the ``Payment`` workflow, which outlives this one; one that a lost run started is taken over."""
    handle: PaymentHandle = await workflow.start_child_workflow(
        names.PAYMENT,
        payment,
        id=names.payment_workflow_id(payment.payment_id),
        id_reuse_policy=policies.TAKE_OVER,
        parent_close_policy=ParentClosePolicy.ABANDON,
        result_type=PaymentOutcome,
        search_attributes=names.search_attributes(
            payment.organization_id, "payment", subscription=payment.subscription_id
        ),
    )
    return handle


async def await_payment(context: SubscriptionContext, handle: PaymentHandle, payment: PaymentInput) -> PaymentOutcome:
    """Wait until the outcome of a payment is certain, which can take days. The caller holds ``collection_lock``.

    A payment whose workflow is terminated is started again: its last request may have taken the money.
    """
    context.payment_started_at = workflow.now()
    try:
        while True:
            try:
                return await handle
            except ChildWorkflowError as error:
                if not isinstance(error.cause, TerminatedError):
                    return PaymentOutcome(payment_id=payment.payment_id, status=PaymentStatus.CANCELLED)
            handle = await start_payment(payment)
            if payment.manual_capture:
                await signal_payment(handle, "capture")
    finally:
        context.payment_started_at = None


async def signal_payment(handle: PaymentHandle, decision: str) -> None:
    """Signal ``capture`` or ``cancel_authorization``, unless the payment has ended."""
    if not handle.done():
        with contextlib.suppress(FailureError):
            await handle.signal(decision)


async def charge(context: SubscriptionContext, card: CardCharge, invoice_id: str) -> ChargeResult:
    """Charge the cards in order until one pays, and wait for the outcome.

    The caller holds ``collection_lock``, not ``state_lock``.
    """
    method_ids = [method.payment_method_id for method in card.payment_methods]
    results = list[ChargeResult]()
    for method in card.payment_methods:
        payment_input = build_payment(context, card.amount, method, invoice_id)
        payment = await await_payment(context, await start_payment(payment_input), payment_input)
        results.append(judge_payment(context, payment, method.payment_method_id, method_ids))
        if not dunning.may_charge_backup(payment.status, payment.decline_code):
            break
    return results[-1]


def judge_payment(
    context: SubscriptionContext, payment: PaymentOutcome, payment_method_id: str | None, method_ids: Sequence[str]
) -> ChargeResult:
    """Record whether a card had a hard decline, and return the result of its charge.

    Args:
        method_ids: The cards that may pay the same amount.
    """
    context.record_decline(payment_method_id or "", is_hard_decline=dunning.is_hard_decline(payment.decline_code))
    excluded = context.require_state().hard_declined_payment_method_ids
    return ChargeResult(
        payment=payment, hard_declined=dunning.all_hard_declined(payment.decline_code, excluded, method_ids)
    )


async def charge_invoice(
    context: SubscriptionContext, outcome: BillingOutcome, terms: PlanTerms | None = None
) -> tuple[BillingOutcome, str | None]:
    """Charge the cards that have to pay what credit does not cover of a period's invoice, if any have to.

    Args:
        context: The subscription.
        outcome: The invoice and the card charge.
        terms: Terms of the period that a draft starts; None for an open invoice, whose period has started.

    Returns:
        The recorded outcome and the decline code, None when a card paid. ``outcome`` and None without a card charge.
    """
    if outcome.card_charge is None or outcome.invoice_id is None:
        return outcome, None
    charged = await charge(context, outcome.card_charge, outcome.invoice_id)
    async with context.state_lock:
        recorded = await record_payment(context, outcome.invoice_id, charged, terms)
    return recorded, decline_code_or_status(charged.payment)


async def record_payment(
    context: SubscriptionContext, invoice_id: str, charged: ChargeResult, terms: PlanTerms | None = None
) -> BillingOutcome:
    """Record how the payment of an invoice ended. The caller holds ``state_lock``."""
    payment = charged.payment
    if payment.status not in PAID_STATUSES:
        return await record_failure(context, invoice_id, charged, terms)
    return await apply_payment(context, invoice_id, payment.payment_id, terms)


async def apply_payment(
    context: SubscriptionContext, invoice_id: str | None, payment_id: str, terms: PlanTerms | None = None
) -> BillingOutcome:
    """Apply a succeeded payment to an invoice, or credit it to the wallet. The caller holds ``state_lock``."""
    outcome = await workflow.execute_activity_method(
        BillingActivities.apply_card_payment,
        ApplyCardPayment(
            subscription_id=context.command.subscription_id,
            invoice_id=invoice_id,
            payment_id=payment_id,
            now=workflow.now(),
            terms=terms,
        ),
        **policies.DATABASE,
    )
    context.store_committed(outcome.state, terms)
    await context.signal_past_due(outcome.past_due_subscription_ids)
    return outcome


async def record_failure(
    context: SubscriptionContext, invoice_id: str, charged: ChargeResult, terms: PlanTerms | None = None
) -> BillingOutcome:
    """Record that no card paid an invoice. The caller holds ``state_lock``."""
    payment = charged.payment
    if charged.hard_declined:
        context.require_state().hard_declined = True
    else:
        context.clear_hard_decline()
    outcome = await workflow.execute_activity_method(
        BillingActivities.record_payment_failure,
        RecordPaymentFailure(
            subscription_id=context.command.subscription_id,
            invoice_id=invoice_id,
            payment_id=payment.payment_id,
            decline_code=payment.decline_code,
            next_retry_at=context.next_retry_at(),
            suspends_at=context.suspends_at(),
            now=workflow.now(),
            terms=terms,
        ),
        **policies.DATABASE,
    )
    context.store_committed(outcome.state, terms)
    await context.signal_past_due(outcome.past_due_subscription_ids, FundsKind.RELEASED_CREDIT)
    return outcome


def decline_code_or_status(payment: PaymentOutcome) -> str | None:
    """Return why a card did not pay, None when it did."""
    return None if payment.status in PAID_STATUSES else payment.decline_code or payment.status.value


def unpaid_error(context: SubscriptionContext, decline_code: str | None) -> Exception:
    """Return the error of a command whose invoice stays unpaid."""
    if context.status not in LIVE_STATUSES:
        return non_retryable_error(
            ErrorCode.ILLEGAL_MOVE,
            f"The subscription became {context.status} before it was paid. The amount paid is wallet credit.",
        )
    if decline_code is not None:
        return non_retryable_error(ErrorCode.PAYMENT_DECLINED, "The card was declined.", {"decline_code": decline_code})
    return non_retryable_error(ErrorCode.INSUFFICIENT_FUNDS, "Neither the wallet nor a card covers the amount due.")
