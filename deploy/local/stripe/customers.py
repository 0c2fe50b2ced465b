"""Customers and their saved payment methods."""

from __future__ import annotations

import hashlib

from deploy.local.stripe.cards import TOKENS, TestCard, card_error
from deploy.local.stripe.errors import StripeError, invalid_parameter, missing_parameter
from deploy.local.stripe.listing import list_page
from deploy.local.stripe.request_context import Json, RequestContext, generate_id

IGNORED_PARAMETERS = ("address", "shipping", "tax", "tax_exempt", "tax_id_data", "cash_balance", "preferred_locales")
_TEXTS = ("email", "name", "phone", "description")


# customers -----------------------------------------------------------------------------------------------------------


def create_customer(ctx: RequestContext) -> Json:
    body: Json = {
        "id": generate_id("cus_"),
        "object": "customer",
        "address": None,
        "balance": 0,
        "created": ctx.now,
        "currency": None,
        "default_source": None,
        "delinquent": False,
        "description": None,
        "email": None,
        "invoice_prefix": generate_id("")[:8].upper(),
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
    method_id = ctx.params.text("payment_method")
    _apply_customer(ctx, body)
    ctx.save(body)
    if method_id is not None:
        _attach(ctx, get_or_create_method(ctx, method_id), body["id"])
    ctx.emit("customer.created", body)
    return body


def _apply_customer(ctx: RequestContext, body: Json) -> None:
    for name in _TEXTS:
        if ctx.params.has(name):
            body[name] = ctx.params.text(name)
    body["metadata"] = ctx.params.metadata(body["metadata"])
    settings = ctx.params.nested("invoice_settings")
    if settings is not None:
        default = settings.text("default_payment_method")
        if default is not None:
            method = ctx.get_or_404("payment_method", default, "invoice_settings[default_payment_method]")
            if method["customer"] != body["id"]:
                raise invalid_parameter(
                    "invoice_settings[default_payment_method]",
                    "The customer does not have a payment method with the ID " + default,
                )
        body["invoice_settings"] = {**body["invoice_settings"], "default_payment_method": default}
        settings.ignore("custom_fields", "footer", "rendering_options")
        settings.reject_unknown()
    ctx.params.ignore(*IGNORED_PARAMETERS)
    ctx.params.reject_unknown()


def retrieve_customer(ctx: RequestContext, identifier: str) -> Json:
    return ctx.get_or_404("customer", identifier)


def update_customer(ctx: RequestContext, identifier: str) -> Json:
    body = get_active_customer(ctx, identifier, "id")
    _apply_customer(ctx, body)
    ctx.save(body)
    ctx.emit("customer.updated", body)
    return body


def delete_customer(ctx: RequestContext, identifier: str) -> Json:
    body = get_active_customer(ctx, identifier, "id")
    for method in ctx.store.find("payment_method", customer=identifier):
        _detach(ctx, method)
    ctx.emit("customer.deleted", body)
    # Stripe returns this stub for a deleted customer.
    return ctx.save({"id": identifier, "object": "customer", "deleted": True})


def list_customers(ctx: RequestContext) -> Json:
    email = ctx.params.text("email")
    return list_page(
        ctx,
        "customer",
        "/v1/customers",
        predicate=lambda body: not body.get("deleted") and (email is None or body["email"] == email),
    )


def get_active_customer(ctx: RequestContext, identifier: str, param: str) -> Json:
    body = ctx.get_or_404("customer", identifier, param)
    if body.get("deleted"):
        raise StripeError(404, f"No such customer: '{identifier}'", code="resource_missing", param=param)
    return body


def require_customer(ctx: RequestContext, identifier: str | None) -> str | None:
    return None if identifier is None else str(get_active_customer(ctx, identifier, "customer")["id"])


# payment methods -----------------------------------------------------------------------------------------------------


def test_card(method: Json) -> TestCard:
    return TOKENS[method["_token"]]


def decline_code_for(method: Json) -> str | None:
    """Return the decline code of a charge of this method: the configured one, else that of the test card."""
    if "_declines" in method:
        override: str | None = method["_declines"]
        return override
    return test_card(method).decline_code


def get_or_create_method(ctx: RequestContext, identifier: str, param: str = "payment_method") -> Json:
    """Return a stored method, or a new one for a test token: every use of a token creates a method."""
    if identifier in TOKENS:
        return _new_method(ctx, identifier)
    return ctx.get_or_404("payment_method", identifier, param)


def _new_method(ctx: RequestContext, token: str) -> Json:
    card = TOKENS[token]
    body: Json = {
        "id": generate_id("pm_"),
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


def create_method(ctx: RequestContext) -> Json:
    ctx.params.one_of("type", ("card",))
    card = ctx.params.nested("card")
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
    ctx.params.ignore("billing_details", "allow_redisplay")
    ctx.params.reject_unknown()
    return ctx.save(body)


def retrieve_method(ctx: RequestContext, identifier: str) -> Json:
    return get_or_create_method(ctx, identifier, "id")


def update_method(ctx: RequestContext, identifier: str) -> Json:
    body = ctx.get_or_404("payment_method", identifier)
    body["metadata"] = ctx.params.metadata(body["metadata"])
    ctx.params.ignore("billing_details", "allow_redisplay", "card")
    ctx.params.reject_unknown()
    return ctx.save(body)


def attach_method(ctx: RequestContext, identifier: str) -> Json:
    customer = ctx.params.required_text("customer")
    ctx.params.reject_unknown()
    get_active_customer(ctx, customer, "customer")
    return _attach(ctx, get_or_create_method(ctx, identifier, "id"), customer)


def _attach(ctx: RequestContext, method: Json, customer: str) -> Json:
    if method["customer"] == customer:
        return method
    if method["customer"] is not None:
        raise invalid_parameter(
            "payment_method", "The payment method you provided has already been attached to a customer."
        )
    require_usable(method)
    if not test_card(method).can_attach:
        decline = card_error(decline_code_for(method) or "generic_decline")
        message = decline.pop("message")
        raise StripeError(
            402,
            message,
            kind="card_error",
            code=decline["code"],
            keep=True,
            extra={"decline_code": decline["decline_code"]},
        )
    method["customer"] = customer
    ctx.save(method)
    ctx.emit("payment_method.attached", method)
    return method


def attach_after_payment(ctx: RequestContext, method: Json, customer: str) -> None:
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


def detach_method(ctx: RequestContext, identifier: str) -> Json:
    ctx.params.reject_unknown()
    method = ctx.get_or_404("payment_method", identifier)
    if method["customer"] is None:
        raise StripeError(
            400, "The payment method you provided is not attached to a customer so detachment is impossible."
        )
    return _detach(ctx, method)


def _detach(ctx: RequestContext, method: Json) -> Json:
    before = method["customer"]
    method["customer"] = None
    method["_spent"] = True
    ctx.save(method)
    ctx.emit("payment_method.detached", method, {"customer": before})
    return method


def list_methods(ctx: RequestContext) -> Json:
    customer = ctx.params.text("customer")
    if customer is None:
        raise missing_parameter("customer")
    return list_customer_methods(ctx, customer, "/v1/payment_methods")


def list_customer_methods(ctx: RequestContext, customer: str, url: str | None = None) -> Json:
    ctx.get_or_404("customer", customer, "customer")
    kind = ctx.params.text("type")
    ctx.params.ignore("allow_redisplay")
    return list_page(
        ctx,
        "payment_method",
        url or f"/v1/customers/{customer}/payment_methods",
        customer=customer,
        predicate=lambda body: kind is None or body["type"] == kind,
    )


def retrieve_customer_method(ctx: RequestContext, customer: str, identifier: str) -> Json:
    method = ctx.get_or_404("payment_method", identifier)
    if method["customer"] != customer:
        raise StripeError(
            404, f"No such PaymentMethod: '{identifier}'", code="resource_missing", param="payment_method"
        )
    return method


def next_action(ctx: RequestContext, identifier: str, return_url: str | None) -> Json:
    """The `next_action` of a 3-D Secure card: a page of the sandbox where the card holder decides."""
    if return_url is None:
        return {"type": "use_stripe_sdk", "use_stripe_sdk": {"type": "three_d_secure_redirect"}}
    page = f"{ctx.base_url}/sandbox/authenticate/{identifier}"
    return {"type": "redirect_to_url", "redirect_to_url": {"return_url": return_url, "url": page}}
