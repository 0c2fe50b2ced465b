"""Signals to past-due subscriptions: credit or a payment method has arrived, so that each collects its debt now."""

from __future__ import annotations

from collections.abc import Iterable

from temporalio import workflow
from temporalio.exceptions import FailureError

from workflows import names
from workflows.ports.subscription import FundsArrived
from workflows.rules.dunning import FundsKind


async def signal_past_due_subscriptions(subscriptions: Iterable[str], source: str, kind: FundsKind) -> None:
    """Signal each subscription, oldest debt first.

    The subscriptions collect in any order: credit that an older debt needs is not available to a younger one
    (``activities.funding.reserve_older_debts``), and the lock on the balances lets one collect at a time.

    Args:
        subscriptions: As an activity returned them. A subscription that has ended needs no funds and is left out.
        source: Id of the payment, adjustment, refund or payment method that arrived.
        kind: What arrived.
    """
    for subscription_id in subscriptions:
        handle: workflow.ExternalWorkflowHandle[object] = workflow.get_external_workflow_handle(
            names.subscription_workflow_id(subscription_id)
        )
        try:
            await handle.signal("funds_arrived", FundsArrived(source=source, kind=kind))
        except FailureError as ended:
            workflow.logger.info("subscription %s has ended and was not signaled: %s", subscription_id, ended)
