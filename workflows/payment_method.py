"""A card comes on file, or leaves it."""

from __future__ import annotations

from temporalio import workflow
from temporalio.exceptions import ActivityError

with workflow.unsafe.imports_passed_through():
    from workflows import names, policies
    from workflows.funds import tell_indebted
    from workflows.ports.payments import (
        AddPaymentMethod,
        Attach,
        Detach,
        PaymentMethodAdded,
        PaymentMethods,
        RemovePaymentMethod,
    )
    from workflows.refusals import refused_by


@workflow.defn(name=names.PAYMENT_METHOD_SETUP)
class PaymentMethodSetup:
    @workflow.run
    async def run(self, order: AddPaymentMethod) -> PaymentMethodAdded:
        """Save the card and let open debts try it at once.

        Raises:
            ApplicationError: ``PAYMENT_DECLINED``, ``VALIDATION_ERROR``; nothing was written.
        """
        try:
            attached = await workflow.execute_activity_method(
                PaymentMethods.attach, Attach(order=order, now=workflow.now()), **policies.GATEWAY
            )
        except ActivityError as error:
            raise refused_by(error) from error
        await tell_indebted(attached.indebted, order.payment_method_id)
        return attached.added


@workflow.defn(name=names.PAYMENT_METHOD_REMOVAL)
class PaymentMethodRemoval:
    @workflow.run
    async def run(self, order: RemovePaymentMethod) -> None:
        """Take the card off file.

        Raises:
            ApplicationError: ``NOT_FOUND``, ``PAYMENT_METHOD_IN_USE``; nothing was written.
        """
        try:
            await workflow.execute_activity_method(
                PaymentMethods.detach, Detach(order=order, now=workflow.now()), **policies.GATEWAY
            )
        except ActivityError as error:
            raise refused_by(error) from error
