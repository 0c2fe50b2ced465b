"""Telling subscriptions that a debt may be collectable now."""

from __future__ import annotations

from collections.abc import Iterable

from temporalio import workflow
from temporalio.exceptions import FailureError

from workflows import names
from workflows.ports.subscription import FundsArrived


async def tell_indebted(subscriptions: Iterable[str], source: str) -> None:
    """Signal each subscription, the oldest debt first; one that has ended meanwhile needs no funds."""
    for subscription_id in subscriptions:
        handle: workflow.ExternalWorkflowHandle[object] = workflow.get_external_workflow_handle(
            names.subscription_workflow(subscription_id)
        )
        try:
            await handle.signal("funds_arrived", FundsArrived(source=source))
        except FailureError as ended:
            workflow.logger.info("%s does not hear of funds any more: %s", subscription_id, ended)
