"""Which handler answers which method and path of the Stripe API."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase

from deploy.local.stripe import charges, customers, disputes, payment_intents, setup_intents
from deploy.local.stripe.listing import list_page, search
from deploy.local.stripe.request_context import Handler, Json, RequestContext


def retrieve_event(ctx: RequestContext, identifier: str) -> Json:
    return ctx.get_or_404("event", identifier)


def list_events(ctx: RequestContext) -> Json:
    kind, kinds = ctx.params.text("type"), ctx.params.texts("types")
    patterns = [kind] if kind else kinds
    ctx.params.ignore("delivery_success")
    return list_page(
        ctx,
        "event",
        "/v1/events",
        predicate=lambda body: not patterns or any(fnmatchcase(body["type"], pattern) for pattern in patterns),
    )


def search_customers(ctx: RequestContext) -> Json:
    return search(ctx, "customer", "/v1/customers/search")


def search_intents(ctx: RequestContext) -> Json:
    return search(ctx, "payment_intent", "/v1/payment_intents/search")


def search_charges(ctx: RequestContext) -> Json:
    return search(ctx, "charge", "/v1/charges/search")


ROUTES: tuple[tuple[str, str, Handler], ...] = (
    ("POST", "customers", customers.create_customer),
    ("GET", "customers", customers.list_customers),
    ("GET", "customers/search", search_customers),
    ("GET", "customers/{}", customers.retrieve_customer),
    ("POST", "customers/{}", customers.update_customer),
    ("DELETE", "customers/{}", customers.delete_customer),
    ("GET", "customers/{}/payment_methods", customers.list_customer_methods),
    ("GET", "customers/{}/payment_methods/{}", customers.retrieve_customer_method),
    ("POST", "payment_methods", customers.create_method),
    ("GET", "payment_methods", customers.list_methods),
    ("GET", "payment_methods/{}", customers.retrieve_method),
    ("POST", "payment_methods/{}", customers.update_method),
    ("POST", "payment_methods/{}/attach", customers.attach_method),
    ("POST", "payment_methods/{}/detach", customers.detach_method),
    ("POST", "setup_intents", setup_intents.create),
    ("GET", "setup_intents/{}", setup_intents.retrieve),
    ("POST", "setup_intents/{}/confirm", setup_intents.confirm),
    ("POST", "setup_intents/{}/cancel", setup_intents.cancel),
    ("POST", "payment_intents", payment_intents.create),
    ("GET", "payment_intents", payment_intents.list_all),
    ("GET", "payment_intents/search", search_intents),
    ("GET", "payment_intents/{}", payment_intents.retrieve),
    ("POST", "payment_intents/{}", payment_intents.update),
    ("POST", "payment_intents/{}/confirm", payment_intents.confirm),
    ("POST", "payment_intents/{}/capture", payment_intents.capture),
    ("POST", "payment_intents/{}/cancel", payment_intents.cancel),
    ("GET", "charges", charges.list_all),
    ("GET", "charges/search", search_charges),
    ("GET", "charges/{}", charges.retrieve),
    ("POST", "charges", charges.reject_direct_charge),
    ("POST", "refunds", charges.refund),
    ("GET", "refunds", charges.list_refunds),
    ("GET", "refunds/{}", charges.retrieve_refund),
    ("POST", "refunds/{}", charges.update_refund),
    ("GET", "disputes", disputes.list_all),
    ("GET", "disputes/{}", disputes.retrieve),
    ("POST", "disputes/{}", disputes.update),
    ("POST", "disputes/{}/close", disputes.close),
    ("GET", "events", list_events),
    ("GET", "events/{}", retrieve_event),
    ("GET", "balance", charges.balance),
    ("GET", "balance_transactions", charges.list_transactions),
    ("GET", "balance_transactions/{}", charges.retrieve_transaction),
)
_COMPILED = tuple(
    (method, re.compile("/v1/" + path.replace("{}", r"([A-Za-z0-9_]+)")), handler) for method, path, handler in ROUTES
)


def match(method: str, path: str) -> tuple[Handler, tuple[str, ...]] | None:
    """The handler and the ids in the path; literal paths are listed before the ones with ids."""
    for route_method, pattern, handler in _COMPILED:
        path_match = pattern.fullmatch(path) if route_method == method else None
        if path_match is not None:
            return handler, path_match.groups()
    return None
