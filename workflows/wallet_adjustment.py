"""An administrator's correction of a wallet: durable, posted once, and known to every debt that it may pay."""

from __future__ import annotations

from temporalio import workflow
from temporalio.exceptions import ActivityError

with workflow.unsafe.imports_passed_through():
    from workflows import names, policies
    from workflows.errors import from_activity_error
    from workflows.past_due_signals import signal_past_due_subscriptions
    from workflows.ports.billing import AdjustWallet, BillingActivities
    from workflows.rules.dunning import FundsKind


@workflow.defn(name=names.WALLET_ADJUSTMENT)
class WalletAdjustment:
    @workflow.run
    async def run(self, command: AdjustWallet) -> str:
        """Return the ledger transaction's id.

        Raises:
            ApplicationError: ``INSUFFICIENT_FUNDS``, ``NOT_FOUND``; nothing was written.
        """
        try:
            adjusted = await workflow.execute_activity_method(
                BillingActivities.adjust_wallet, command, **policies.DATABASE
            )
        except ActivityError as error:
            raise from_activity_error(error) from error
        await signal_past_due_subscriptions(adjusted.past_due_subscription_ids, command.adjustment_id, FundsKind.CREDIT)
        return adjusted.transaction_id
