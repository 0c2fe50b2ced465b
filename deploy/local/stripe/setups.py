"""Setup intents: a card is saved without a payment."""

from __future__ import annotations

from deploy.local.stripe.cards import decline
from deploy.local.stripe.context import Context, Json, new_id, public
from deploy.local.stripe.customers import (
    attach_after_payment,
    authentication,
    card_of,
    declines,
    require_customer,
    resolve_method,
)
from deploy.local.stripe.errors import StripeError, missing_parameter, unexpected_state


def create(ctx: Context) -> Json:
    params = ctx.params
    customer = require_customer(ctx, params.text("customer"))
    wanted = params.text("payment_method")
    confirm = params.flag("confirm")
    identifier = new_id("seti_")
    method = resolve_method(ctx, wanted) if wanted else None
    body: Json = {
        "id": identifier,
        "object": "setup_intent",
        "cancellation_reason": None,
        "client_secret": f"{identifier}_secret_{new_id('')}",
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
    params.pass_over(
        "automatic_payment_methods", "payment_method_options", "mandate_data", "single_use", "use_stripe_sdk"
    )
    params.finish()
    ctx.save(body)
    ctx.emit("setup_intent.created", body)
    return _confirm(ctx, body, return_url) if confirm else body


def retrieve(ctx: Context, identifier: str) -> Json:
    return ctx.load("setup_intent", identifier)


def confirm(ctx: Context, identifier: str) -> Json:
    body = ctx.load("setup_intent", identifier)
    wanted = ctx.params.text("payment_method")
    return_url = ctx.params.text("return_url")
    ctx.params.pass_over("payment_method_options", "mandate_data", "use_stripe_sdk")
    ctx.params.finish()
    if body["status"] not in ("requires_confirmation", "requires_payment_method"):
        raise _state(body, "confirmed")
    if wanted is not None:
        body["payment_method"] = resolve_method(ctx, wanted)["id"]
    return _confirm(ctx, body, return_url)


def _confirm(ctx: Context, body: Json, return_url: str | None) -> Json:
    if body["payment_method"] is None:
        raise missing_parameter("payment_method")
    method = ctx.load("payment_method", body["payment_method"])
    if card_of(method).authenticates:
        body.update(status="requires_action", next_action=authentication(ctx, body["id"], return_url))
        ctx.emit("setup_intent.requires_action", body)
        return ctx.save(body)
    return settle(ctx, body)


def settle(ctx: Context, body: Json) -> Json:
    method = ctx.load("payment_method", body["payment_method"])
    if not card_of(method).attaches:
        refusal = decline(declines(method) or "generic_decline")
        error = {**refusal, "type": "card_error", "payment_method": public(method)}
        body.update(status="requires_payment_method", payment_method=None, last_setup_error=error, next_action=None)
        ctx.save(body)
        ctx.emit("setup_intent.setup_failed", body)
        extra = {**error, "setup_intent": public(body)}
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


def cancel(ctx: Context, identifier: str) -> Json:
    body = ctx.load("setup_intent", identifier)
    reason = ctx.params.text("cancellation_reason")
    ctx.params.finish()
    if body["status"] in ("succeeded", "canceled"):
        raise _state(body, "canceled")
    body.update(status="canceled", cancellation_reason=reason, next_action=None)
    ctx.save(body)
    ctx.emit("setup_intent.canceled", body)
    return body


def _state(body: Json, verb: str) -> StripeError:
    return unexpected_state(
        "setup_intent_unexpected_state",
        f"This SetupIntent cannot be {verb} because it has a status of {body['status']}.",
        setup_intent=public(body),
    )
