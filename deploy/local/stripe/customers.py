"""Customers and their saved payment methods."""

from __future__ import annotations

import hashlib

from deploy.local.stripe.cards import TOKENS, TestCard, decline
from deploy.local.stripe.context import Context, Json, new_id
from deploy.local.stripe.errors import StripeError, invalid_parameter, missing_parameter
from deploy.local.stripe.listing import listing

_PASSED_OVER = ("address", "shipping", "tax", "tax_exempt", "tax_id_data", "cash_balance", "preferred_locales")
_TEXTS = ("email", "name", "phone", "description")


# customers -----------------------------------------------------------------------------------------------------------


def create_customer(ctx: Context) -> Json:
    body: Json = {
        "id": new_id("cus_"),
        "object": "customer",
        "address": None,
        "balance": 0,
        "created": ctx.now,
        "currency": None,
        "default_source": None,
        "delinquent": False,
        "description": None,
        "email": None,
        "invoice_prefix": new_id("")[:8].upper(),
        "invoice_settings": {"custom_fields": None, "default_payment_method": None, "footer": None},
        "livemode": False,
        "metadata": {},
        "name": None,
        "phone": None,
        "preferred_locales": [],
        "shipping": None,
        "tax_exempt": "none",
        "test_clock": None,
    }
    wanted = ctx.params.text("payment_method")
    _apply_customer(ctx, body)
    ctx.save(body)
    if wanted is not None:
        _attach(ctx, resolve_method(ctx, wanted), body["id"])
    ctx.emit("customer.created", body)
    return body


def _apply_customer(ctx: Context, body: Json) -> None:
    for name in _TEXTS:
        if ctx.params.has(name):
            body[name] = ctx.params.text(name)
    body["metadata"] = ctx.params.metadata(body["metadata"])
    settings = ctx.params.group("invoice_settings")
    if settings is not None:
        default = settings.text("default_payment_method")
        if default is not None:
            method = ctx.load("payment_method", default, "invoice_settings[default_payment_method]")
            if method["customer"] != body["id"]:
                raise invalid_parameter(
                    "invoice_settings[default_payment_method]",
                    "The customer does not have a payment method with the ID " + default,
                )
        body["invoice_settings"] = {**body["invoice_settings"], "default_payment_method": default}
        settings.pass_over("custom_fields", "footer", "rendering_options")
        settings.finish()
    ctx.params.pass_over(*_PASSED_OVER)
    ctx.params.finish()


def retrieve_customer(ctx: Context, identifier: str) -> Json:
    return ctx.load("customer", identifier)


def update_customer(ctx: Context, identifier: str) -> Json:
    body = _living_customer(ctx, identifier, "id")
    _apply_customer(ctx, body)
    ctx.save(body)
    ctx.emit("customer.updated", body)
    return body


def delete_customer(ctx: Context, identifier: str) -> Json:
    body = _living_customer(ctx, identifier, "id")
    for method in ctx.store.find("payment_method", customer=identifier):
        _detach(ctx, method)
    ctx.emit("customer.deleted", body)
    # Stripe goes on answering for a deleted customer, with this stub.
    return ctx.save({"id": identifier, "object": "customer", "deleted": True})


def list_customers(ctx: Context) -> Json:
    email = ctx.params.text("email")
    return listing(
        ctx,
        "customer",
        "/v1/customers",
        keep=lambda body: not body.get("deleted") and (email is None or body["email"] == email),
    )


def _living_customer(ctx: Context, identifier: str, param: str) -> Json:
    body = ctx.load("customer", identifier, param)
    if body.get("deleted"):
        raise StripeError(404, f"No such customer: '{identifier}'", code="resource_missing", param=param)
    return body


def require_customer(ctx: Context, identifier: str | None) -> str | None:
    return None if identifier is None else str(_living_customer(ctx, identifier, "customer")["id"])


# payment methods -----------------------------------------------------------------------------------------------------


def card_of(method: Json) -> TestCard:
    return TOKENS[method["_token"]]


def declines(method: Json) -> str | None:
    """The decline code this method meets when charged: what the sandbox was told, else the card's own."""
    if "_declines" in method:
        told: str | None = method["_declines"]
        return told
    return card_of(method).declines


def resolve_method(ctx: Context, identifier: str, param: str = "payment_method") -> Json:
    """A stored method, or a new one for a test token: every use of a token gives a method of its own."""
    if identifier in TOKENS:
        return _new_method(ctx, identifier)
    return ctx.load("payment_method", identifier, param)


def _new_method(ctx: Context, token: str) -> Json:
    card = TOKENS[token]
    body: Json = {
        "id": new_id("pm_"),
        "object": "payment_method",
        "allow_redisplay": "unspecified",
        "billing_details": {
            "address": dict.fromkeys(("city", "country", "line1", "line2", "postal_code", "state")),
            "email": None,
            "name": None,
            "phone": None,
            "tax_id": None,
        },
        "card": {
            "brand": card.brand,
            "checks": {"address_line1_check": None, "address_postal_code_check": None, "cvc_check": "unchecked"},
            "country": "US",
            "display_brand": card.brand,
            "exp_month": 12,
            "exp_year": 2040,
            "fingerprint": hashlib.sha256(card.last4.encode()).hexdigest()[:16],
            "funding": "credit",
            "generated_from": None,
            "last4": card.last4,
            "networks": {"available": [card.brand], "preferred": None},
            "three_d_secure_usage": {"supported": True},
            "wallet": None,
        },
        "created": ctx.now,
        "customer": None,
        "livemode": False,
        "metadata": {},
        "type": "card",
        "_token": token,
    }
    return ctx.save(body)


def create_method(ctx: Context) -> Json:
    ctx.params.one_of("type", ("card",))
    card = ctx.params.group("card")
    if card is None:
        raise missing_parameter("card")
    token = card.text("token")
    if token is None:
        raise StripeError(
            402,
            "Sending credit card numbers directly to the Stripe API is generally unsafe. "
            "Use the test tokens, such as tok_visa, or the pm_card_ payment methods.",
            kind="card_error",
        )
    name = "pm_card_" + token.removeprefix("tok_")
    if name not in TOKENS:
        raise StripeError(400, f"No such token: '{token}'", code="resource_missing", param="card[token]")
    body = _new_method(ctx, name)
    body["metadata"] = ctx.params.metadata()
    ctx.params.pass_over("billing_details", "allow_redisplay")
    ctx.params.finish()
    return ctx.save(body)


def retrieve_method(ctx: Context, identifier: str) -> Json:
    return resolve_method(ctx, identifier, "id")


def update_method(ctx: Context, identifier: str) -> Json:
    body = ctx.load("payment_method", identifier)
    body["metadata"] = ctx.params.metadata(body["metadata"])
    ctx.params.pass_over("billing_details", "allow_redisplay", "card")
    ctx.params.finish()
    return ctx.save(body)


def attach_method(ctx: Context, identifier: str) -> Json:
    customer = ctx.params.required_text("customer")
    ctx.params.finish()
    _living_customer(ctx, customer, "customer")
    return _attach(ctx, resolve_method(ctx, identifier, "id"), customer)


def _attach(ctx: Context, method: Json, customer: str) -> Json:
    if method["customer"] == customer:
        return method
    if method["customer"] is not None:
        raise invalid_parameter(
            "payment_method", "The payment method you provided has already been attached to a customer."
        )
    require_usable(method)
    if not card_of(method).attaches:
        refusal = decline(declines(method) or "generic_decline")
        message = refusal.pop("message")
        raise StripeError(
            402,
            message,
            kind="card_error",
            code=refusal["code"],
            keep=True,
            extra={"decline_code": refusal["decline_code"]},
        )
    method["customer"] = customer
    ctx.save(method)
    ctx.emit("payment_method.attached", method)
    return method


def attach_after_payment(ctx: Context, method: Json, customer: str) -> None:
    """What `setup_future_usage` does once the payment stands."""
    if method["customer"] is None:
        _attach(ctx, method, customer)


def require_usable(method: Json) -> None:
    if method.get("_spent") and method["customer"] is None:
        raise StripeError(
            400,
            "The provided PaymentMethod was previously used with a PaymentIntent without Customer attachment, "
            "or was detached from a Customer. It may not be used again. "
            "To use a PaymentMethod multiple times, you must attach it to a Customer first.",
            param="payment_method",
        )


def detach_method(ctx: Context, identifier: str) -> Json:
    ctx.params.finish()
    method = ctx.load("payment_method", identifier)
    if method["customer"] is None:
        raise StripeError(
            400, "The payment method you provided is not attached to a customer so detachment is impossible."
        )
    return _detach(ctx, method)


def _detach(ctx: Context, method: Json) -> Json:
    before = method["customer"]
    method["customer"] = None
    method["_spent"] = True
    ctx.save(method)
    ctx.emit("payment_method.detached", method, {"customer": before})
    return method


def list_methods(ctx: Context) -> Json:
    customer = ctx.params.text("customer")
    if customer is None:
        raise missing_parameter("customer")
    return list_customer_methods(ctx, customer, "/v1/payment_methods")


def list_customer_methods(ctx: Context, customer: str, url: str | None = None) -> Json:
    ctx.load("customer", customer, "customer")
    kind = ctx.params.text("type")
    ctx.params.pass_over("allow_redisplay")
    return listing(
        ctx,
        "payment_method",
        url or f"/v1/customers/{customer}/payment_methods",
        customer=customer,
        keep=lambda body: kind is None or body["type"] == kind,
    )


def retrieve_customer_method(ctx: Context, customer: str, identifier: str) -> Json:
    method = ctx.load("payment_method", identifier)
    if method["customer"] != customer:
        raise StripeError(
            404, f"No such PaymentMethod: '{identifier}'", code="resource_missing", param="payment_method"
        )
    return method


def authentication(ctx: Context, identifier: str, return_url: str | None) -> Json:
    """The `next_action` of a 3-D Secure card: a page of the sandbox where the card holder decides."""
    if return_url is None:
        return {"type": "use_stripe_sdk", "use_stripe_sdk": {"type": "three_d_secure_redirect"}}
    page = f"{ctx.base_url}/sandbox/authenticate/{identifier}"
    return {"type": "redirect_to_url", "redirect_to_url": {"return_url": return_url, "url": page}}
