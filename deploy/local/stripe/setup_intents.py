"""Setup intents: a card is saved without a payment."""

from __future__ import annotations

from deploy.local.stripe.cards import card_error
from deploy.local.stripe.customers import (
    attach_after_payment,
    decline_code_for,
    get_or_create_method,
    next_action,
    require_customer,
    test_card,
)
from deploy.local.stripe.errors import StripeError, missing_parameter, unexpected_state
from deploy.local.stripe.request_context import Json, RequestContext, generate_id, public_fields


def create(ctx: RequestContext) -> Json:
    params = ctx.params
    customer = require_customer(ctx, params.text("customer"))
    method_id = params.text("payment_method")
    confirm = params.flag("confirm")
    identifier = generate_id("seti_")
    method = get_or_create_method(ctx, method_id) if method_id else None
    body: Json = {
        "id": identifier,
        "object": "setup_intent",
        "cancellation_reason": None,
        "client_secret": f"{identifier}_secret_{generate_id('')}",
        "created": ctx.now,
        "customer": customer,
        "description": params.text("description"),
        "last_setup_error": None,
        "latest_attempt": None,
        "livemode": False,
        "metadata": params.metadata(),
        "next_action": None,
        "payment_method": method["id"] if method else None,
        "payment_method_types": params.texts("payment_method_types") or ["card"],
        "status": "requires_confirmation" if method else "requires_payment_method",
        "usage": params.text("usage") or "off_session",
    }
    return_url = params.text("return_url")
    params.ignore("automatic_payment_methods", "payment_method_options", "mandate_data", "single_use", "use_stripe_sdk")
    params.reject_unknown()
    ctx.save(body)
    ctx.emit("setup_intent.created", body)
    return _confirm(ctx, body, return_url) if confirm else body


def retrieve(ctx: RequestContext, identifier: str) -> Json:
    return ctx.get_or_404("setup_intent", identifier)


def confirm(ctx: RequestContext, identifier: str) -> Json:
    body = ctx.get_or_404("setup_intent", identifier)
    method_id = ctx.params.text("payment_method")
    return_url = ctx.params.text("return_url")
    ctx.params.ignore("payment_method_options", "mandate_data", "use_stripe_sdk")
    ctx.params.reject_unknown()
    if body["status"] not in ("requires_confirmation", "requires_payment_method"):
        raise _unexpected_state(body, "confirmed")
    if method_id is not None:
        body["payment_method"] = get_or_create_method(ctx, method_id)["id"]
    return _confirm(ctx, body, return_url)


def _confirm(ctx: RequestContext, body: Json, return_url: str | None) -> Json:
    if body["payment_method"] is None:
        raise missing_parameter("payment_method")
    method = ctx.get_or_404("payment_method", body["payment_method"])
    if test_card(method).requires_authentication:
        body.update(status="requires_action", next_action=next_action(ctx, body["id"], return_url))
        ctx.emit("setup_intent.requires_action", body)
        return ctx.save(body)
    return complete(ctx, body)


def complete(ctx: RequestContext, body: Json) -> Json:
    method = ctx.get_or_404("payment_method", body["payment_method"])
    if not test_card(method).can_attach:
        decline = card_error(decline_code_for(method) or "generic_decline")
        error = {**decline, "type": "card_error", "payment_method": public_fields(method)}
        body.update(status="requires_payment_method", payment_method=None, last_setup_error=error, next_action=None)
        ctx.save(body)
        ctx.emit("setup_intent.setup_failed", body)
        extra = {**error, "setup_intent": public_fields(body)}
        raise StripeError(
            402,
            str(extra.pop("message")),
            kind=str(extra.pop("type")),
            code=str(extra.pop("code")),
            keep=True,
            extra=extra,
        )
    if body["customer"] is not None:
        attach_after_payment(ctx, method, body["customer"])
    body.update(status="succeeded", next_action=None, last_setup_error=None)
    ctx.save(body)
    ctx.emit("setup_intent.succeeded", body)
    return body


def cancel(ctx: RequestContext, identifier: str) -> Json:
    body = ctx.get_or_404("setup_intent", identifier)
    reason = ctx.params.text("cancellation_reason")
    ctx.params.reject_unknown()
    if body["status"] in ("succeeded", "canceled"):
        raise _unexpected_state(body, "canceled")
    body.update(status="canceled", cancellation_reason=reason, next_action=None)
    ctx.save(body)
    ctx.emit("setup_intent.canceled", body)
    return body


def _unexpected_state(body: Json, verb: str) -> StripeError:
    return unexpected_state(
        "setup_intent_unexpected_state",
        f"This SetupIntent cannot be {verb} because it has a status of {body['status']}.",
        setup_intent=public_fields(body),
    )
