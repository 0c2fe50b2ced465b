"""What gateways tell us. Verified, recorded once, handed to the payment; 2xx only when all of that is done.

A redelivery does the same and changes nothing, so whatever fails on the way is answered 503 and comes again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any

import orjson
import structlog
from fastapi import Header, Request
from pydantic import SecretStr

from api.context import Context
from api.deps import Ctx, Orders, gateway_work
from api.envelope import Envelope, Schema, now, ok
from api.errors import ApiError, documented
from api.families import family
from db.queries import webhooks
from workflows.client import Orchestrator
from workflows.ports.payments import event_of, pay_of
from workflows.rules import gateway_events, signatures
from workflows.rules.gateway_events import GatewayMessage, Malformed, PaymentFact

router = family("webhooks", responses=documented(400, 413, 503))

log = structlog.get_logger("api.webhooks")

Read = Callable[[Mapping[str, Any]], GatewayMessage]
Signature = Annotated[str, Header(max_length=2000)]
_SIGNED_BY_MIDTRANS = ("order_id", "status_code", "gross_amount", "signature_key")


class Taken(Schema):
    """``ignored`` says nothing about a payment of ours; ``known`` was dealt with before."""

    outcome: str


@router.post("/webhooks/stripe", response_model=Envelope[Taken])
async def stripe(request: Request, ctx: Ctx, orders: Orders, stripe_signature: Signature = "") -> Envelope[Taken]:
    payload = await request.body()
    secret = _secret(ctx.settings.stripe_webhook_secret)
    if not signatures.verify_stripe(payload, stripe_signature, secret, now()):
        raise _refused(ctx, "stripe")
    return await _take(ctx, orders, "stripe", payload, gateway_events.stripe)


@router.post("/webhooks/midtrans", response_model=Envelope[Taken])
async def midtrans(request: Request, ctx: Ctx, orders: Orders) -> Envelope[Taken]:
    payload = await request.body()
    body = _mapping(ctx, "midtrans", payload)
    secret = _secret(ctx.settings.midtrans_server_key)
    order, code, amount, signed = (body.get(name) for name in _SIGNED_BY_MIDTRANS)
    texts = isinstance(order, str) and isinstance(code, str) and isinstance(amount, str) and isinstance(signed, str)
    if not texts or not signatures.verify_midtrans(str(order), str(code), str(amount), str(signed), secret):
        raise _refused(ctx, "midtrans")
    return await _take(ctx, orders, "midtrans", payload, gateway_events.midtrans)


@router.post("/webhooks/razorpay", response_model=Envelope[Taken])
async def razorpay(
    request: Request,
    ctx: Ctx,
    orders: Orders,
    x_razorpay_signature: Signature = "",
    x_razorpay_event_id: Signature = "",
) -> Envelope[Taken]:
    payload = await request.body()
    if not signatures.verify_razorpay(payload, x_razorpay_signature, _secret(ctx.settings.razorpay_webhook_secret)):
        raise _refused(ctx, "razorpay")
    return await _take(
        ctx, orders, "razorpay", payload, lambda body: gateway_events.razorpay(body, x_razorpay_event_id)
    )


@router.post("/payments/webhook", response_model=Envelope[Taken])
async def any_gateway(request: Request, ctx: Ctx, orders: Orders) -> Envelope[Taken]:
    """One address for all: the headers tell the gateway."""
    if "stripe-signature" in request.headers:
        return await stripe(request, ctx, orders, request.headers["stripe-signature"])
    if "x-razorpay-signature" in request.headers:
        return await razorpay(
            request,
            ctx,
            orders,
            request.headers["x-razorpay-signature"],
            request.headers.get("x-razorpay-event-id", ""),
        )
    return await midtrans(request, ctx, orders)


async def _take(ctx: Context, orders: Orchestrator, gateway: str, payload: bytes, read: Read) -> Envelope[Taken]:
    """Record, tell the payment, note that it was told: no transaction is open while Temporal is asked."""
    try:
        message = read(_mapping(ctx, gateway, payload))
    except Malformed as error:
        raise _malformed(ctx, gateway, str(error)) from error
    async with gateway_work(ctx) as session:
        received = await webhooks.receive(session, message, payload, at=now())
    if received.payment is None or not isinstance(message, PaymentFact):
        return _done(ctx, gateway, "ignored", message)
    if received.settled:
        return _done(ctx, gateway, "known", message)
    await orders.payment_event(event_of(message), pay_of(received.payment))
    async with gateway_work(ctx) as session:
        await webhooks.delivered(session, gateway, message.event_id, at=now())
    return _done(ctx, gateway, "delivered", message)


def _done(ctx: Context, gateway: str, outcome: str, message: GatewayMessage) -> Envelope[Taken]:
    ctx.metrics.webhook(gateway, outcome)
    log.info("webhook", gateway=gateway, outcome=outcome, event_id=message.event_id, kind=message.kind)
    return ok(Taken(outcome=outcome))


def _refused(ctx: Context, gateway: str) -> ApiError:
    ctx.metrics.webhook(gateway, "refused")
    log.warning("webhook refused", gateway=gateway)
    return ApiError(400, "BAD_SIGNATURE", "The signature does not hold, or is too old.")


def _malformed(ctx: Context, gateway: str, what: str) -> ApiError:
    ctx.metrics.webhook(gateway, "malformed")
    log.warning("webhook malformed", gateway=gateway, what=what)
    return ApiError(400, "MALFORMED_REQUEST", "This is not what the gateway documents.", {"field": what})


def _mapping(ctx: Context, gateway: str, payload: bytes) -> Mapping[str, Any]:
    try:
        body = orjson.loads(payload)
    except orjson.JSONDecodeError as error:
        raise _malformed(ctx, gateway, "body") from error
    if not isinstance(body, dict):
        raise _malformed(ctx, gateway, "body")
    return body


def _secret(value: SecretStr | None) -> str:
    """Empty without one, and then no signature holds."""
    return value.get_secret_value() if value is not None else ""
