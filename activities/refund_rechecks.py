"""Refunds that their banks rejected after the gateway had sent them, and whose webhook never arrived."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta

from temporalio import activity

from activities.gateways.protocol import GatewayRejected, GatewayUnavailable, PaymentGateway
from db.queries import workflow_recovery
from db.session import SessionFactory
from workflows.client import WorkflowClient
from workflows.ports.reconciliation import RecheckOutcome, RecheckRefunds
from workflows.ports.refunds import refund_input_from_record
from workflows.rules.payment import RefundStatus

REJECTION_WINDOW = timedelta(days=30)
"""How long after a refund was sent a bank may return it. Stripe names 30 days at most."""


async def recheck_refunds(
    sessions: SessionFactory,
    gateways: Mapping[str, PaymentGateway],
    workflows: WorkflowClient,
    command: RecheckRefunds,
) -> RecheckOutcome:
    """Read one page of sent refunds at their gateways, and start the workflow of each that was rejected.

    The workflow reads the refund at the gateway itself, as it does after a webhook.
    """
    async with sessions() as session:
        page = await workflow_recovery.list_sent_refunds(
            session, sent_after=command.now - REJECTION_WINDOW, after=command.after, limit=command.limit
        )
    rejected, unavailable = 0, set[str]()
    for sent in page:
        gateway = gateways.get(sent.gateway)
        if gateway is None or sent.gateway in unavailable:
            continue
        refund_id = sent.refund.refund_id
        try:
            status = (await gateway.retrieve_refund(sent.gateway_reference)).status
        except GatewayRejected as error:
            activity.logger.error("refund %s could not be read at the gateway: %s", refund_id, error.code)
            continue
        except GatewayUnavailable as error:
            # The next day reads them again; the other gateways of the page go on.
            activity.logger.warning("%s is unavailable, its refunds are not read: %s", sent.gateway, error)
            unavailable.add(sent.gateway)
            continue
        if status is RefundStatus.FAILED:
            rejected += 1
            await workflows.deliver_refund_event("reconciliation", refund_input_from_record(sent.refund))
    is_last = len(page) < command.limit
    return RecheckOutcome(rejected=rejected, last_id=None if is_last else page[-1].refund.refund_id)
