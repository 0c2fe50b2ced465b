"""What the handlers of one API request share: the store, the parameters, the instant, and the events they cause."""

from __future__ import annotations

import json
import secrets
import string
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from deploy.local.stripe.errors import resource_missing
from deploy.local.stripe.params import Params
from deploy.local.stripe.store import SandboxStore

API_VERSION = "2026-10-28.endive"
_ALPHABET = string.ascii_letters + string.digits

Json = dict[str, Any]
Handler = Callable[..., Json]
"""`handler(ctx, *ids)` → the object that the answer shows; raises StripeError."""

KINDS_BY_PREFIX: Mapping[str, str] = {
    "cus_": "customer",
    "pm_": "payment_method",
    "pi_": "payment_intent",
    "seti_": "setup_intent",
    "ch_": "charge",
    "re_": "refund",
    "dp_": "dispute",
    "txn_": "balance_transaction",
    "evt_": "event",
}


def generate_id(prefix: str) -> str:
    return prefix + "".join(secrets.choice(_ALPHABET) for _ in range(24))


def public_fields(body: Mapping[str, Any]) -> Json:
    """What callers see: keys with a leading underscore are the sandbox's own notes."""
    return {key: value for key, value in body.items() if not key.startswith("_")}


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestContext:
    """`now` is Unix seconds; `deliver` the event type patterns that the webhook endpoint subscribes to."""

    store: SandboxStore
    params: Params
    now: int
    subscribed_events: tuple[str, ...]
    key: str | None = None
    request_id: str | None = None
    base_url: str = ""

    def get_or_404(self, kind: str, identifier: str, param: str = "id") -> Json:
        body = self.store.get(kind, identifier)
        if body is None:
            raise resource_missing(kind, identifier, param)
        return body

    def save(self, body: Json, *, parent: str | None = None) -> Json:
        self.store.put(body, parent=parent)
        return body

    def emit(self, kind: str, subject: Mapping[str, Any], previous: Mapping[str, Any] | None = None) -> None:
        """Store an event with a snapshot of its subject, and queue it when the endpoint subscribes to its type."""
        data: Json = {"object": public_fields(subject)}
        if previous is not None:
            data["previous_attributes"] = dict(previous)
        subscribed = any(fnmatchcase(kind, pattern) for pattern in self.subscribed_events)
        event = {
            "id": generate_id("evt_"),
            "object": "event",
            "api_version": API_VERSION,
            "created": self.now,
            "data": data,
            "livemode": False,
            "pending_webhooks": 1 if subscribed else 0,
            "request": {"id": self.request_id, "idempotency_key": self.key},
            "type": kind,
        }
        ordering_key = str(subject.get("payment_intent") or subject["id"])
        self.store.put(event, parent=ordering_key)
        if subscribed:
            self.store.execute(
                "INSERT INTO deliveries (event, lane, place, due) SELECT id, ?, seq, 0 FROM objects WHERE id = ?",
                (ordering_key, event["id"]),
            )


def expand(ctx: RequestContext, body: Json, paths: Iterable[str]) -> Json:
    """Replace ids by their objects along dotted paths, like `latest_charge.balance_transaction`."""
    expanded: Json = json.loads(json.dumps(public_fields(body)))
    for path in paths:
        _expand(ctx, expanded, path.split("."))
    return expanded


def _expand(ctx: RequestContext, node: Any, path: list[str]) -> None:
    if isinstance(node, list):
        for entry in node:
            _expand(ctx, entry, path)
        return
    if not isinstance(node, dict) or not path or path[0] not in node:
        return
    value = node[path[0]]
    if isinstance(value, str):
        kind = next((kind for prefix, kind in KINDS_BY_PREFIX.items() if value.startswith(prefix)), None)
        body = ctx.store.get(kind, value) if kind else None
        if body is not None:
            node[path[0]] = value = public_fields(body)
    _expand(ctx, value, path[1:])
