"""Payment intents: authorise, capture, cancel, and the card holder's authentication."""

from __future__ import annotations

from typing import Any

from deploy.local.stripe import charges, disputes
from deploy.local.stripe.cards import decline
from deploy.local.stripe.context import Context, Json, new_id, public
from deploy.local.stripe.customers import (
    attach_after_payment,
    authentication,
    card_of,
    declines,
    require_customer,
    require_usable,
    resolve_method,
)
from deploy.local.stripe.errors import StripeError, invalid_parameter, missing_parameter, unexpected_state
from deploy.local.stripe.listing import listing

# Stripe's published minimum charges, in minor units.
_MINIMUM = {"usd": 50, "eur": 50, "gbp": 30, "jpy": 50, "cad": 50, "aud": 50, "chf": 50, "sgd": 50, "inr": 50}
_PASSED_OVER = (
    "automatic_payment_methods",
    "confirmation_method",
    "mandate",
    "mandate_data",
    "payment_method_options",
    "radar_options",
    "shipping",
    "use_stripe_sdk",
)
_CANCELABLE = ("requires_payment_method", "requires_capture", "requires_confirmation", "requires_action")
_OPEN = ("requires_payment_method", "requires_confirmation", "requires_action")


def create(ctx: Context) -> Json:
    params = ctx.params
    amount, currency = params.integer("amount"), params.text("currency")
    if amount is None:
        raise missing_parameter("amount")
    if currency is None:
        raise missing_parameter("currency")
    currency = currency.lower()
    _check_amount(amount, currency)
    customer = require_customer(ctx, params.text("customer"))
    wanted = params.text("payment_method")
    confirm = bool(params.flag("confirm"))
    off_session = params.text("off_session")
    error_on_action = bool(params.flag("error_on_requires_action"))
    return_url = params.text("return_url")
    if off_session not in (None, "false") and not confirm:
        raise StripeError(400, "You can only set `off_session` when `confirm` is true.", param="off_session")
    identifier = new_id("pi_")
    body: Json = {
        "id": identifier,
        "object": "payment_intent",
        "amount": amount,
        "amount_capturable": 0,
        "amount_details": {"tip": {}},
        "amount_received": 0,
        "application": None,
        "application_fee_amount": None,
        "automatic_payment_methods": None,
        "canceled_at": None,
        "cancellation_reason": None,
        "capture_method": params.one_of("capture_method", ("automatic", "automatic_async", "manual"))
        or "automatic_async",
        "client_secret": f"{identifier}_secret_{new_id('')}",
        "confirmation_method": "automatic",
        "created": ctx.now,
        "currency": currency,
        "customer": customer,
        "description": params.text("description"),
        "last_payment_error": None,
        "latest_charge": None,
        "livemode": False,
        "metadata": params.metadata(),
        "next_action": None,
        "on_behalf_of": None,
        "payment_method": None,
        "payment_method_options": {"card": {"request_three_d_secure": "automatic"}},
        "payment_method_types": params.texts("payment_method_types") or ["card"],
        "processing": None,
        "receipt_email": params.text("receipt_email"),
        "review": None,
        "setup_future_usage": params.one_of("setup_future_usage", ("on_session", "off_session")),
        "shipping": None,
        "source": None,
        "statement_descriptor": params.text("statement_descriptor"),
        "statement_descriptor_suffix": params.text("statement_descriptor_suffix"),
        "status": "requires_payment_method",
        "transfer_data": None,
        "transfer_group": params.text("transfer_group"),
    }
    params.pass_over(*_PASSED_OVER)
    params.finish()
    if wanted is not None:
        _give_method(ctx, body, wanted)
    ctx.save(body)
    ctx.emit("payment_intent.created", body)
    if not confirm:
        return body
    return _confirm(ctx, body, off_session, error_on_action, return_url)


def _check_amount(amount: int, currency: str) -> None:
    if len(currency) != 3 or not currency.isalpha():
        raise invalid_parameter("currency", f"Invalid currency: {currency}")
    if amount < 1:
        raise StripeError(
            400,
            "This value must be greater than or equal to 1.",
            code="parameter_invalid_integer",
            param="amount",
        )
    if amount < _MINIMUM.get(currency, 1):
        raise StripeError(
            400,
            f"Amount must be at least {_MINIMUM[currency]} minor units of {currency}.",
            code="amount_too_small",
            param="amount",
        )
    if amount > 99_999_999 and currency not in ("idr", "jpy", "vnd", "krw"):
        raise StripeError(400, "Amount must be no more than 99999999.", code="amount_too_large", param="amount")


def _give_method(ctx: Context, body: Json, wanted: str) -> None:
    method = resolve_method(ctx, wanted)
    owner = method["customer"]
    if owner is not None and body["customer"] is None:
        raise invalid_parameter(
            "payment_method",
            f"The PaymentMethod {method['id']} belongs to a Customer. "
            "Please include the Customer in the `customer` parameter on the PaymentIntent.",
        )
    if owner is not None and owner != body["customer"]:
        raise invalid_parameter(
            "payment_method", f"The PaymentMethod {method['id']} does not belong to the Customer you provided."
        )
    require_usable(method)
    body["payment_method"] = method["id"]
    if body["status"] in _OPEN:
        body.update(status="requires_confirmation", next_action=None)


def retrieve(ctx: Context, identifier: str) -> Json:
    return ctx.load("payment_intent", identifier)


def update(ctx: Context, identifier: str) -> Json:
    body = ctx.load("payment_intent", identifier)
    params = ctx.params
    body["metadata"] = params.metadata(body["metadata"])
    for name in ("description", "receipt_email", "statement_descriptor", "transfer_group"):
        if params.has(name):
            body[name] = params.text(name)
    amount, customer, wanted = params.integer("amount"), params.text("customer"), params.text("payment_method")
    future = params.one_of("setup_future_usage", ("on_session", "off_session"))
    params.pass_over(*_PASSED_OVER)
    params.finish()
    if any(value is not None for value in (amount, customer, wanted, future)):
        if body["status"] not in _OPEN:
            raise _state(body, "updated", _OPEN)
        if amount is not None:
            _check_amount(amount, body["currency"])
            body["amount"] = amount
        if customer is not None:
            body["customer"] = require_customer(ctx, customer)
        if future is not None:
            body["setup_future_usage"] = future
        if wanted is not None:
            _give_method(ctx, body, wanted)
    return ctx.save(body)


def list_all(ctx: Context) -> Json:
    return listing(ctx, "payment_intent", "/v1/payment_intents", customer=ctx.params.text("customer"))


def confirm(ctx: Context, identifier: str) -> Json:
    body = ctx.load("payment_intent", identifier)
    params = ctx.params
    wanted, off_session, return_url = (
        params.text("payment_method"),
        params.text("off_session"),
        params.text("return_url"),
    )
    error_on_action = bool(params.flag("error_on_requires_action"))
    future = params.one_of("setup_future_usage", ("on_session", "off_session"))
    capture = params.one_of("capture_method", ("automatic", "automatic_async", "manual"))
    params.pass_over(*_PASSED_OVER, "receipt_email")
    params.finish()
    if body["status"] not in _OPEN:
        raise _state(body, "confirmed", _OPEN)
    body["setup_future_usage"] = future or body["setup_future_usage"]
    body["capture_method"] = capture or body["capture_method"]
    if wanted is not None:
        _give_method(ctx, body, wanted)
    if body["payment_method"] is None:
        raise unexpected_state(
            "payment_intent_unexpected_state",
            "You cannot confirm this PaymentIntent because it's missing a payment method.",
            payment_intent=public(body),
        )
    return _confirm(ctx, body, off_session, error_on_action, return_url)


def _confirm(ctx: Context, body: Json, off_session: str | None, error_on_action: bool, return_url: str | None) -> Json:
    if body["payment_method"] is None:
        raise unexpected_state(
            "payment_intent_unexpected_state",
            "You cannot confirm this PaymentIntent because it's missing a payment method.",
            payment_intent=public(body),
        )
    method = ctx.load("payment_method", body["payment_method"])
    if not card_of(method).authenticates:
        return charge(ctx, body, method)
    if off_session not in (None, "false") or error_on_action:
        # Nobody is there to authenticate, so the issuer's demand is a refusal.
        return _refuse(ctx, body, method, "authentication_required")
    body.update(status="requires_action", next_action=authentication(ctx, body["id"], return_url))
    ctx.save(body)
    ctx.emit("payment_intent.requires_action", body)
    return body


def charge(ctx: Context, body: Json, method: Json) -> Json:
    """Charge the method for the intent: succeeded, requires_capture, or a 402 that leaves a failed charge."""
    refusal = declines(method)
    if refusal is not None:
        return _refuse(ctx, body, method, refusal)
    card = card_of(method)
    manual = body["capture_method"] == "manual"
    made = charges.make(ctx, body, method, captured=not manual)
    method["_spent"] = True
    ctx.save(method)
    body.update(latest_charge=made["id"], next_action=None, last_payment_error=None)
    if manual:
        body.update(status="requires_capture", amount_capturable=body["amount"])
    else:
        body.update(status="succeeded", amount_received=body["amount"])
    ctx.save(body)
    ctx.emit("charge.succeeded", made)
    ctx.emit("payment_intent.amount_capturable_updated" if manual else "payment_intent.succeeded", body)
    if body["setup_future_usage"] is not None and body["customer"] is not None:
        attach_after_payment(ctx, method, body["customer"])
    if card.disputes is not None and not manual:
        disputes.open_dispute(ctx, made, card.disputes)
    return body


def _refuse(ctx: Context, body: Json, method: Json, code: str) -> Json:
    refusal = decline(code)
    made = charges.make(ctx, body, method, captured=False, refusal=refusal)
    error: dict[str, Any] = {
        "charge": made["id"],
        "code": refusal["code"],
        "decline_code": refusal["decline_code"],
        "doc_url": "https://docs.stripe.com/error-codes/" + refusal["code"].replace("_", "-"),
        "message": refusal["message"],
        "payment_method": public(method),
        "type": "card_error",
    }
    method["_spent"] = True
    ctx.save(method)
    body.update(
        status="requires_payment_method",
        latest_charge=made["id"],
        last_payment_error=error,
        payment_method=None,
        next_action=None,
    )
    ctx.save(body)
    ctx.emit("charge.failed", made)
    ctx.emit("payment_intent.payment_failed", body)
    extra = {name: error[name] for name in ("charge", "decline_code", "payment_method")}
    raise StripeError(
        402,
        refusal["message"],
        kind="card_error",
        code=refusal["code"],
        keep=True,
        extra={**extra, "payment_intent": public(body)},
    )


def authenticated(ctx: Context, identifier: str, succeeded: bool) -> Json:
    """The card holder passed or failed 3-D Secure."""
    body = ctx.load("payment_intent", identifier)
    if body["status"] != "requires_action":
        raise _state(body, "authenticated", ("requires_action",))
    method = ctx.load("payment_method", body["payment_method"])
    if succeeded:
        return charge(ctx, body, method)
    error = {
        "code": "payment_intent_authentication_failure",
        "doc_url": "https://docs.stripe.com/error-codes/payment-intent-authentication-failure",
        "message": "We are unable to authenticate your payment method. "
        "Please choose a different payment method and try again.",
        "payment_method": public(method),
        "type": "invalid_request_error",
    }
    body.update(status="requires_payment_method", payment_method=None, next_action=None, last_payment_error=error)
    ctx.save(body)
    ctx.emit("payment_intent.payment_failed", body)
    return body


def capture(ctx: Context, identifier: str) -> Json:
    body = ctx.load("payment_intent", identifier)
    amount = ctx.params.integer("amount_to_capture")
    ctx.params.pass_over("final_capture", "statement_descriptor", "statement_descriptor_suffix")
    body["metadata"] = ctx.params.metadata(body["metadata"])
    ctx.params.finish()
    if body["status"] != "requires_capture":
        raise _state(body, "captured", ("requires_capture",))
    amount = body["amount_capturable"] if amount is None else amount
    if not 1 <= amount <= body["amount_capturable"]:
        raise StripeError(
            400,
            f"The amount to capture must be between 1 and {body['amount_capturable']}.",
            code="amount_too_large" if amount > 0 else "parameter_invalid_integer",
            param="amount_to_capture",
        )
    made = charges.capture(ctx, ctx.load("charge", body["latest_charge"]), amount)
    body.update(status="succeeded", amount_capturable=0, amount_received=amount)
    ctx.save(body)
    ctx.emit("charge.captured", made)
    ctx.emit("payment_intent.succeeded", body)
    return body


def cancel(ctx: Context, identifier: str) -> Json:
    body = ctx.load("payment_intent", identifier)
    reason = ctx.params.one_of("cancellation_reason", ("duplicate", "fraudulent", "requested_by_customer", "abandoned"))
    ctx.params.finish()
    if body["status"] not in _CANCELABLE:
        raise _state(body, "canceled", _CANCELABLE)
    released = body["status"] == "requires_capture"
    body.update(
        status="canceled", amount_capturable=0, canceled_at=ctx.now, cancellation_reason=reason, next_action=None
    )
    ctx.save(body)
    if released:
        charges.release(ctx, ctx.load("charge", body["latest_charge"]))
    ctx.emit("payment_intent.canceled", body)
    return body


def _state(body: Json, verb: str, allowed: tuple[str, ...]) -> StripeError:
    return unexpected_state(
        "payment_intent_unexpected_state",
        f"This PaymentIntent could not be {verb} because it has a status of {body['status']}. "
        f"Only a PaymentIntent with one of the following statuses may be {verb}: {', '.join(allowed)}.",
        payment_intent=public(body),
    )
