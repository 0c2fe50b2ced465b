"""An administrator's correction of a wallet: durable, and posted once."""

from __future__ import annotations

from temporalio import workflow
from temporalio.exceptions import ActivityError

with workflow.unsafe.imports_passed_through():
    from workflows import names, policies
    from workflows.ports.billing import AccountAdjustment, Billing
    from workflows.refusals import refused_by


@workflow.defn(name=names.ADJUSTMENT)
class Adjustment:
    @workflow.run
    async def run(self, order: AccountAdjustment) -> str:
        """Return the ledger transaction's id.

        Raises:
            ApplicationError: ``INSUFFICIENT_FUNDS``, ``NOT_FOUND``; nothing was written.
        """
        try:
            return await workflow.execute_activity_method(Billing.adjust, order, **policies.DATABASE)
        except ActivityError as error:
            raise refused_by(error) from error
