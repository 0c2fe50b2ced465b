"""Which method and path of the Stripe API is answered by what; the rest of `/v1` belongs to localstripe."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase

from deploy.local.stripe import charges, customers, disputes, intents, setups
from deploy.local.stripe.context import Context, Handler, Json
from deploy.local.stripe.listing import listing, search


def retrieve_event(ctx: Context, identifier: str) -> Json:
    return ctx.load("event", identifier)


def list_events(ctx: Context) -> Json:
    kind, kinds = ctx.params.text("type"), ctx.params.texts("types")
    patterns = [kind] if kind else kinds
    ctx.params.pass_over("delivery_success")
    return listing(
        ctx,
        "event",
        "/v1/events",
        keep=lambda body: not patterns or any(fnmatchcase(body["type"], pattern) for pattern in patterns),
    )


def search_customers(ctx: Context) -> Json:
    return search(ctx, "customer", "/v1/customers/search")


def search_intents(ctx: Context) -> Json:
    return search(ctx, "payment_intent", "/v1/payment_intents/search")


def search_charges(ctx: Context) -> Json:
    return search(ctx, "charge", "/v1/charges/search")


_TABLE: tuple[tuple[str, str, Handler], ...] = (
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
    ("POST", "setup_intents", setups.create),
    ("GET", "setup_intents/{}", setups.retrieve),
    ("POST", "setup_intents/{}/confirm", setups.confirm),
    ("POST", "setup_intents/{}/cancel", setups.cancel),
    ("POST", "payment_intents", intents.create),
    ("GET", "payment_intents", intents.list_all),
    ("GET", "payment_intents/search", search_intents),
    ("GET", "payment_intents/{}", intents.retrieve),
    ("POST", "payment_intents/{}", intents.update),
    ("POST", "payment_intents/{}/confirm", intents.confirm),
    ("POST", "payment_intents/{}/capture", intents.capture),
    ("POST", "payment_intents/{}/cancel", intents.cancel),
    ("GET", "charges", charges.list_all),
    ("GET", "charges/search", search_charges),
    ("GET", "charges/{}", charges.retrieve),
    ("POST", "charges", charges.refuse_direct),
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
    (method, re.compile("/v1/" + path.replace("{}", r"([A-Za-z0-9_]+)")), handler) for method, path, handler in _TABLE
)
_OWNED = frozenset(path.split("/")[0] for _, path, _ in _TABLE)


def match(method: str, path: str) -> tuple[Handler, tuple[str, ...]] | None:
    """The handler and the ids in the path; literal paths are listed before the ones with ids."""
    for wanted, pattern, handler in _COMPILED:
        found = pattern.fullmatch(path) if wanted == method else None
        if found is not None:
            return handler, found.groups()
    return None


def owned(path: str) -> bool:
    """Whether this path's resource is kept here, so that localstripe must never see it."""
    parts = path.split("/")
    return len(parts) > 2 and parts[2] in _OWNED
