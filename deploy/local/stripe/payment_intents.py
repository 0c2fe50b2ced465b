"""Payment intents: authorize, capture, cancel, and the card holder's authentication."""

from __future__ import annotations

from typing import Any

from deploy.local.stripe import charges, disputes
from deploy.local.stripe.cards import card_error
from deploy.local.stripe.customers import (
    attach_after_payment,
    decline_code_for,
    get_or_create_method,
    next_action,
    require_customer,
    require_usable,
    test_card,
)
from deploy.local.stripe.errors import StripeError, invalid_parameter, missing_parameter, unexpected_state
from deploy.local.stripe.listing import list_page
from deploy.local.stripe.request_context import Json, RequestContext, generate_id, public_fields

# Stripe's published minimum charges, in minor units.
_MINIMUM_CHARGE = {"usd": 50, "eur": 50, "gbp": 30, "jpy": 50, "cad": 50, "aud": 50, "chf": 50, "sgd": 50, "inr": 50}
_IGNORED_PARAMETERS = (
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
UPDATABLE_STATUSES = ("requires_payment_method", "requires_confirmation", "requires_action")


def create(ctx: RequestContext) -> Json:
    params = ctx.params
    amount, currency = params.integer("amount"), params.text("currency")
    if amount is None:
        raise missing_parameter("amount")
    if currency is None:
        raise missing_parameter("currency")
    currency = currency.lower()
    _check_amount(amount, currency)
    customer = require_customer(ctx, params.text("customer"))
    payment_method_id = params.text("payment_method")
    confirm = bool(params.flag("confirm"))
    off_session = params.text("off_session")
    error_on_action = bool(params.flag("error_on_requires_action"))
    return_url = params.text("return_url")
    if off_session not in (None, "false") and not confirm:
        raise StripeError(400, "You can only set `off_session` when `confirm` is true.", param="off_session")
    identifier = generate_id("pi_")
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
        "client_secret": f"{identifier}_secret_{generate_id('')}",
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
    params.ignore(*_IGNORED_PARAMETERS)
    params.reject_unknown()
    if payment_method_id is not None:
        _set_payment_method(ctx, body, payment_method_id)
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
    if amount < _MINIMUM_CHARGE.get(currency, 1):
        raise StripeError(
            400,
            f"Amount must be at least {_MINIMUM_CHARGE[currency]} minor units of {currency}.",
            code="amount_too_small",
            param="amount",
        )
    if amount > 99_999_999 and currency not in ("idr", "jpy", "vnd", "krw"):
        raise StripeError(400, "Amount must be no more than 99999999.", code="amount_too_large", param="amount")


def _set_payment_method(ctx: RequestContext, body: Json, method_id: str) -> None:
    method = get_or_create_method(ctx, method_id)
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
    if body["status"] in UPDATABLE_STATUSES:
        body.update(status="requires_confirmation", next_action=None)


def retrieve(ctx: RequestContext, identifier: str) -> Json:
    return ctx.get_or_404("payment_intent", identifier)


def update(ctx: RequestContext, identifier: str) -> Json:
    body = ctx.get_or_404("payment_intent", identifier)
    params = ctx.params
    body["metadata"] = params.metadata(body["metadata"])
    for name in ("description", "receipt_email", "statement_descriptor", "transfer_group"):
        if params.has(name):
            body[name] = params.text(name)
    amount, customer, method_id = params.integer("amount"), params.text("customer"), params.text("payment_method")
    future = params.one_of("setup_future_usage", ("on_session", "off_session"))
    params.ignore(*_IGNORED_PARAMETERS)
    params.reject_unknown()
    if any(value is not None for value in (amount, customer, method_id, future)):
        if body["status"] not in UPDATABLE_STATUSES:
            raise _unexpected_state(body, "updated", UPDATABLE_STATUSES)
        if amount is not None:
            _check_amount(amount, body["currency"])
            body["amount"] = amount
        if customer is not None:
            body["customer"] = require_customer(ctx, customer)
        if future is not None:
            body["setup_future_usage"] = future
        if method_id is not None:
            _set_payment_method(ctx, body, method_id)
    return ctx.save(body)


def list_all(ctx: RequestContext) -> Json:
    return list_page(ctx, "payment_intent", "/v1/payment_intents", customer=ctx.params.text("customer"))


def confirm(ctx: RequestContext, identifier: str) -> Json:
    body = ctx.get_or_404("payment_intent", identifier)
    params = ctx.params
    method_id, off_session, return_url = (
        params.text("payment_method"),
        params.text("off_session"),
        params.text("return_url"),
    )
    error_on_action = bool(params.flag("error_on_requires_action"))
    future = params.one_of("setup_future_usage", ("on_session", "off_session"))
    capture = params.one_of("capture_method", ("automatic", "automatic_async", "manual"))
    params.ignore(*_IGNORED_PARAMETERS, "receipt_email")
    params.reject_unknown()
    if body["status"] not in UPDATABLE_STATUSES:
        raise _unexpected_state(body, "confirmed", UPDATABLE_STATUSES)
    body["setup_future_usage"] = future or body["setup_future_usage"]
    body["capture_method"] = capture or body["capture_method"]
    if method_id is not None:
        _set_payment_method(ctx, body, method_id)
    if body["payment_method"] is None:
        raise unexpected_state(
            "payment_intent_unexpected_state",
            "You cannot confirm this PaymentIntent because it's missing a payment method.",
            payment_intent=public_fields(body),
        )
    return _confirm(ctx, body, off_session, error_on_action, return_url)


def _confirm(
    ctx: RequestContext, body: Json, off_session: str | None, error_on_action: bool, return_url: str | None
) -> Json:
    if body["payment_method"] is None:
        raise unexpected_state(
            "payment_intent_unexpected_state",
            "You cannot confirm this PaymentIntent because it's missing a payment method.",
            payment_intent=public_fields(body),
        )
    method = ctx.get_or_404("payment_method", body["payment_method"])
    if not test_card(method).requires_authentication:
        return charge_intent(ctx, body, method)
    if off_session not in (None, "false") or error_on_action:
        # The card holder is not present to authenticate, so the issuer declines.
        return _decline(ctx, body, method, "authentication_required")
    body.update(status="requires_action", next_action=next_action(ctx, body["id"], return_url))
    ctx.save(body)
    ctx.emit("payment_intent.requires_action", body)
    return body


def charge_intent(ctx: RequestContext, body: Json, method: Json) -> Json:
    """Charge the method for the intent: succeeded, requires_capture, or a 402 that leaves a failed charge."""
    decline_code = decline_code_for(method)
    if decline_code is not None:
        return _decline(ctx, body, method, decline_code)
    card = test_card(method)
    manual = body["capture_method"] == "manual"
    charge = charges.create_charge(ctx, body, method, captured=not manual)
    method["_spent"] = True
    ctx.save(method)
    body.update(latest_charge=charge["id"], next_action=None, last_payment_error=None)
    if manual:
        body.update(status="requires_capture", amount_capturable=body["amount"])
    else:
        body.update(status="succeeded", amount_received=body["amount"])
    ctx.save(body)
    ctx.emit("charge.succeeded", charge)
    ctx.emit("payment_intent.amount_capturable_updated" if manual else "payment_intent.succeeded", body)
    if body["setup_future_usage"] is not None and body["customer"] is not None:
        attach_after_payment(ctx, method, body["customer"])
    if card.dispute_reason is not None and not manual:
        disputes.open_dispute(ctx, charge, card.dispute_reason)
    return body


def _decline(ctx: RequestContext, body: Json, method: Json, code: str) -> Json:
    decline = card_error(code)
    charge = charges.create_charge(ctx, body, method, captured=False, decline=decline)
    error: dict[str, Any] = {
        "charge": charge["id"],
        "code": decline["code"],
        "decline_code": decline["decline_code"],
        "doc_url": "https://docs.stripe.com/error-codes/" + decline["code"].replace("_", "-"),
        "message": decline["message"],
        "payment_method": public_fields(method),
        "type": "card_error",
    }
    method["_spent"] = True
    ctx.save(method)
    body.update(
        status="requires_payment_method",
        latest_charge=charge["id"],
        last_payment_error=error,
        payment_method=None,
        next_action=None,
    )
    ctx.save(body)
    ctx.emit("charge.failed", charge)
    ctx.emit("payment_intent.payment_failed", body)
    extra = {name: error[name] for name in ("charge", "decline_code", "payment_method")}
    raise StripeError(
        402,
        decline["message"],
        kind="card_error",
        code=decline["code"],
        keep=True,
        extra={**extra, "payment_intent": public_fields(body)},
    )


def complete_authentication(ctx: RequestContext, identifier: str, succeeded: bool) -> Json:
    """The card holder passed or failed 3-D Secure."""
    body = ctx.get_or_404("payment_intent", identifier)
    if body["status"] != "requires_action":
        raise _unexpected_state(body, "authenticated", ("requires_action",))
    method = ctx.get_or_404("payment_method", body["payment_method"])
    if succeeded:
        return charge_intent(ctx, body, method)
    error = {
        "code": "payment_intent_authentication_failure",
        "doc_url": "https://docs.stripe.com/error-codes/payment-intent-authentication-failure",
        "message": "We are unable to authenticate your payment method. "
        "Please choose a different payment method and try again.",
        "payment_method": public_fields(method),
        "type": "invalid_request_error",
    }
    body.update(status="requires_payment_method", payment_method=None, next_action=None, last_payment_error=error)
    ctx.save(body)
    ctx.emit("payment_intent.payment_failed", body)
    return body


def capture(ctx: RequestContext, identifier: str) -> Json:
    body = ctx.get_or_404("payment_intent", identifier)
    amount = ctx.params.integer("amount_to_capture")
    ctx.params.ignore("final_capture", "statement_descriptor", "statement_descriptor_suffix")
    body["metadata"] = ctx.params.metadata(body["metadata"])
    ctx.params.reject_unknown()
    if body["status"] != "requires_capture":
        raise _unexpected_state(body, "captured", ("requires_capture",))
    amount = body["amount_capturable"] if amount is None else amount
    if not 1 <= amount <= body["amount_capturable"]:
        raise StripeError(
            400,
            f"The amount to capture must be between 1 and {body['amount_capturable']}.",
            code="amount_too_large" if amount > 0 else "parameter_invalid_integer",
            param="amount_to_capture",
        )
    charge = charges.capture(ctx, ctx.get_or_404("charge", body["latest_charge"]), amount)
    body.update(status="succeeded", amount_capturable=0, amount_received=amount)
    ctx.save(body)
    ctx.emit("charge.captured", charge)
    ctx.emit("payment_intent.succeeded", body)
    return body


def cancel(ctx: RequestContext, identifier: str) -> Json:
    body = ctx.get_or_404("payment_intent", identifier)
    reason = ctx.params.one_of("cancellation_reason", ("duplicate", "fraudulent", "requested_by_customer", "abandoned"))
    ctx.params.reject_unknown()
    if body["status"] not in _CANCELABLE:
        raise _unexpected_state(body, "canceled", _CANCELABLE)
    released = body["status"] == "requires_capture"
    body.update(
        status="canceled", amount_capturable=0, canceled_at=ctx.now, cancellation_reason=reason, next_action=None
    )
    ctx.save(body)
    if released:
        charges.cancel_authorization(ctx, ctx.get_or_404("charge", body["latest_charge"]))
    ctx.emit("payment_intent.canceled", body)
    return body


def _unexpected_state(body: Json, verb: str, allowed: tuple[str, ...]) -> StripeError:
    return unexpected_state(
        "payment_intent_unexpected_state",
        f"This PaymentIntent could not be {verb} because it has a status of {body['status']}. "
        f"Only a PaymentIntent with one of the following statuses may be {verb}: {', '.join(allowed)}.",
        payment_intent=public_fields(body),
    )
