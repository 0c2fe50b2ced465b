"""Webhooks of payment gateways: verified, recorded once, and delivered to the workflow of the payment or refund.

The response is 2xx only when all of that is done. After a 503 the gateway sends the webhook again, which changes
nothing that was done.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any

import orjson
import structlog
from fastapi import Header, Request
from fastapi.routing import APIRoute
from pydantic import SecretStr

from api.app_context import AppContext
from api.dependencies.context import AppContextDep, Workflows
from api.dependencies.transactions import gateway_transaction
from api.errors import ApiError, error_responses
from api.response_envelope import Envelope, JsonResponse, ResponseModel, now, success
from api.router_factory import api_router
from db.queries import webhooks
from workflows.client import WorkflowClient
from workflows.ports.payments import payment_input_from_record, to_gateway_event
from workflows.ports.refunds import refund_input_from_record
from workflows.rules import webhook_events, webhook_signatures
from workflows.rules.webhook_events import MalformedWebhook, PaymentEvent, WebhookEvent

router = api_router("webhooks", responses=error_responses(400, 413, 503), route_class=APIRoute)

log = structlog.get_logger("api.webhooks")

WebhookParser = Callable[[Mapping[str, Any]], WebhookEvent]
Signature = Annotated[str, Header(max_length=2000)]
_MIDTRANS_SIGNED_FIELDS = ("order_id", "status_code", "gross_amount", "signature_key")


class WebhookResult(ResponseModel):
    """``outcome``: ``delivered``; ``ignored`` if it is about no payment or refund of ours; ``known`` if it was
    delivered before.
    """

    outcome: str


@router.post("/webhooks/stripe", response_model=Envelope[WebhookResult])
async def stripe(
    request: Request, ctx: AppContextDep, workflows: Workflows, stripe_signature: Signature = ""
) -> JsonResponse:
    payload = await request.body()
    secret = _secret(ctx.settings.stripe_webhook_secret)
    if not webhook_signatures.verify_stripe(payload, stripe_signature, secret, now()):
        raise _bad_signature_error(ctx, "stripe")
    return await _process(ctx, workflows, "stripe", payload, webhook_events.parse_stripe_event)


@router.post("/webhooks/midtrans", response_model=Envelope[WebhookResult])
async def midtrans(request: Request, ctx: AppContextDep, workflows: Workflows) -> JsonResponse:
    payload = await request.body()
    body = _parse_body(ctx, "midtrans", payload)
    secret = _secret(ctx.settings.midtrans_server_key)
    signed = [value for name in _MIDTRANS_SIGNED_FIELDS if isinstance(value := body.get(name), str)]
    if len(signed) < len(_MIDTRANS_SIGNED_FIELDS):
        raise _bad_signature_error(ctx, "midtrans")
    midtrans_order_id, status_code, gross_amount, signature_key = signed
    if not webhook_signatures.verify_midtrans(midtrans_order_id, status_code, gross_amount, signature_key, secret):
        raise _bad_signature_error(ctx, "midtrans")
    return await _process(ctx, workflows, "midtrans", payload, webhook_events.parse_midtrans_notification)


@router.post("/webhooks/razorpay", response_model=Envelope[WebhookResult])
async def razorpay(
    request: Request,
    ctx: AppContextDep,
    workflows: Workflows,
    x_razorpay_signature: Signature = "",
    x_razorpay_event_id: Signature = "",
) -> JsonResponse:
    payload = await request.body()
    if not webhook_signatures.verify_razorpay(
        payload, x_razorpay_signature, _secret(ctx.settings.razorpay_webhook_secret)
    ):
        raise _bad_signature_error(ctx, "razorpay")
    return await _process(
        ctx, workflows, "razorpay", payload, lambda body: webhook_events.parse_razorpay_event(body, x_razorpay_event_id)
    )


@router.post("/payments/webhook", response_model=Envelope[WebhookResult])
async def receive_any(request: Request, ctx: AppContextDep, workflows: Workflows) -> JsonResponse:
    """One address for all gateways: the headers say which one sends."""
    if "stripe-signature" in request.headers:
        return await stripe(request, ctx, workflows, request.headers["stripe-signature"])
    if "x-razorpay-signature" in request.headers:
        return await razorpay(
            request,
            ctx,
            workflows,
            request.headers["x-razorpay-signature"],
            request.headers.get("x-razorpay-event-id", ""),
        )
    return await midtrans(request, ctx, workflows)


async def _process(
    ctx: AppContext, workflows: WorkflowClient, gateway: str, payload: bytes, parse: WebhookParser
) -> JsonResponse:
    """Record the event, signal its payment or refund, record the delivery. No transaction is open meanwhile."""
    try:
        event = parse(_parse_body(ctx, gateway, payload))
    except MalformedWebhook as error:
        raise _malformed_error(ctx, gateway, str(error)) from error
    async with gateway_transaction(ctx) as session:
        received = await webhooks.record_webhook(session, event, payload, at=now())
    if received.needs_no_delivery:
        return _result(ctx, gateway, "known", event)
    if received.payment is not None and isinstance(event, PaymentEvent):
        await workflows.deliver_gateway_event(to_gateway_event(event), payment_input_from_record(received.payment))
    elif received.refund is not None:
        await workflows.deliver_refund_event(event.event_id, refund_input_from_record(received.refund))
    else:
        return _result(ctx, gateway, "ignored", event)
    async with gateway_transaction(ctx) as session:
        await webhooks.mark_delivered(session, gateway, event.event_id, at=now())
    return _result(ctx, gateway, "delivered", event)


def _result(ctx: AppContext, gateway: str, outcome: str, event: WebhookEvent) -> JsonResponse:
    ctx.metrics.record_webhook(gateway, outcome)
    log.info("webhook.processed", gateway=gateway, outcome=outcome, event_id=event.event_id, kind=event.event_type)
    return success(WebhookResult(outcome=outcome))


def _bad_signature_error(ctx: AppContext, gateway: str) -> ApiError:
    ctx.metrics.record_webhook(gateway, "refused")
    log.warning("webhook.signature_invalid", gateway=gateway)
    return ApiError(400, "BAD_SIGNATURE", "Webhook signature invalid or outside the timestamp tolerance.")


def _malformed_error(ctx: AppContext, gateway: str, field: str) -> ApiError:
    ctx.metrics.record_webhook(gateway, "malformed")
    log.warning("webhook.malformed", gateway=gateway, field=field)
    return ApiError(
        400, "MALFORMED_REQUEST", f"Webhook payload is missing or has an invalid {field}.", {"field": field}
    )


def _parse_body(ctx: AppContext, gateway: str, payload: bytes) -> Mapping[str, Any]:
    try:
        body = orjson.loads(payload)
    except orjson.JSONDecodeError as error:
        raise _malformed_error(ctx, gateway, "body") from error
    if not isinstance(body, dict):
        raise _malformed_error(ctx, gateway, "body")
    return body


def _secret(value: SecretStr | None) -> str:
    """Return the secret; empty if none is set, with which no signature is valid."""
    return value.get_secret_value() if value is not None else ""
