"""A card comes on file, or leaves it."""

from __future__ import annotations

from temporalio import workflow
from temporalio.exceptions import ActivityError

with workflow.unsafe.imports_passed_through():
    from workflows import names, policies
    from workflows.errors import from_activity_error
    from workflows.past_due_signals import signal_past_due_subscriptions
    from workflows.ports.payments import (
        AddPaymentMethod,
        AttachPaymentMethod,
        DetachPaymentMethod,
        MakePaymentMethodDefault,
        PaymentMethodActivities,
        PaymentMethodAdded,
        RemovePaymentMethod,
        SetDefault,
    )
    from workflows.rules.dunning import FundsKind


@workflow.defn(name=names.PAYMENT_METHOD_SETUP)
class PaymentMethodSetup:
    @workflow.run
    async def run(self, command: AddPaymentMethod) -> PaymentMethodAdded:
        """Save the card and let open debts try it at once.

        Raises:
            ApplicationError: ``PAYMENT_DECLINED``, ``VALIDATION_ERROR``; nothing was written.
        """
        try:
            outcome = await workflow.execute_activity_method(
                PaymentMethodActivities.attach,
                AttachPaymentMethod(command=command, now=workflow.now()),
                **policies.GATEWAY,
            )
        except ActivityError as error:
            raise from_activity_error(error) from error
        await signal_past_due_subscriptions(
            outcome.past_due_subscription_ids, command.payment_method_id, FundsKind.PAYMENT_METHOD
        )
        return outcome.added


@workflow.defn(name=names.PAYMENT_METHOD_DEFAULT)
class PaymentMethodDefault:
    @workflow.run
    async def run(self, command: MakePaymentMethodDefault) -> None:
        """Charge this card first from now on, and let open debts try it at once.

        Raises:
            ApplicationError: ``NOT_FOUND``; nothing was written.
        """
        try:
            past_due_subscription_ids = await workflow.execute_activity_method(
                PaymentMethodActivities.set_default,
                SetDefault(command=command, now=workflow.now()),
                **policies.DATABASE,
            )
        except ActivityError as error:
            raise from_activity_error(error) from error
        await signal_past_due_subscriptions(
            past_due_subscription_ids, command.payment_method_id, FundsKind.PAYMENT_METHOD
        )


@workflow.defn(name=names.PAYMENT_METHOD_REMOVAL)
class PaymentMethodRemoval:
    @workflow.run
    async def run(self, command: RemovePaymentMethod) -> None:
        """Take the card off file, let open debts try the backup that becomes the default, and forget it at its gateway.

        Two activities: while the gateway is unavailable the card may be saved again, and a removal that was repeated
        as a whole would take it off file once more.

        Raises:
            ApplicationError: ``NOT_FOUND``, ``PAYMENT_METHOD_IN_USE``; nothing was written.
        """
        detach = DetachPaymentMethod(command=command, now=workflow.now())
        try:
            if not command.only_at_gateway:
                past_due_subscription_ids = await workflow.execute_activity_method(
                    PaymentMethodActivities.remove, detach, **policies.DATABASE
                )
                await signal_past_due_subscriptions(
                    past_due_subscription_ids, command.payment_method_id, FundsKind.PROMOTED_PAYMENT_METHOD
                )
            await workflow.execute_activity_method(PaymentMethodActivities.detach, detach, **policies.GATEWAY)
        except ActivityError as error:
            raise from_activity_error(error) from error
