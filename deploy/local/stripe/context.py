"""What the handlers of one API request share: the store, the parameters, the instant, and the events they cause."""

from __future__ import annotations

import json
import secrets
import string
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from deploy.local.stripe.errors import no_such
from deploy.local.stripe.params import Params
from deploy.local.stripe.store import Store

API_VERSION = "2026-10-28.endive"
_ALPHABET = string.ascii_letters + string.digits

Json = dict[str, Any]
Handler = Callable[..., Json]
"""`handler(ctx, *ids)` → the object that the answer shows; raises StripeError."""

KINDS: Mapping[str, str] = {
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


def new_id(prefix: str) -> str:
    return prefix + "".join(secrets.choice(_ALPHABET) for _ in range(24))


def public(body: Mapping[str, Any]) -> Json:
    """What callers see: keys with a leading underscore are the sandbox's own notes."""
    return {key: value for key, value in body.items() if not key.startswith("_")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """`now` is Unix seconds; `deliver` the event type patterns that the webhook endpoint subscribes to."""

    store: Store
    params: Params
    now: int
    deliver: tuple[str, ...]
    key: str | None = None
    request_id: str | None = None
    base_url: str = ""

    def load(self, kind: str, identifier: str, param: str = "id") -> Json:
        found = self.store.get(kind, identifier)
        if found is None:
            raise no_such(kind, identifier, param)
        return found

    def save(self, body: Json, *, parent: str | None = None) -> Json:
        self.store.put(body, parent=parent)
        return body

    def emit(self, kind: str, subject: Mapping[str, Any], previous: Mapping[str, Any] | None = None) -> None:
        """Store an event with a snapshot of its subject, and queue it when the endpoint subscribes to its type."""
        data: Json = {"object": public(subject)}
        if previous is not None:
            data["previous_attributes"] = dict(previous)
        subscribed = any(fnmatchcase(kind, pattern) for pattern in self.deliver)
        event = {
            "id": new_id("evt_"),
            "object": "event",
            "api_version": API_VERSION,
            "created": self.now,
            "data": data,
            "livemode": False,
            "pending_webhooks": 1 if subscribed else 0,
            "request": {"id": self.request_id, "idempotency_key": self.key},
            "type": kind,
        }
        lane = str(subject.get("payment_intent") or subject["id"])
        self.store.put(event, parent=lane)
        if subscribed:
            self.store.execute(
                "INSERT INTO deliveries (event, lane, place, due) SELECT id, ?, seq, 0 FROM objects WHERE id = ?",
                (lane, event["id"]),
            )


def expand(ctx: Context, body: Json, paths: Iterable[str]) -> Json:
    """Replace ids by their objects along dotted paths, like `latest_charge.balance_transaction`."""
    shown: Json = json.loads(json.dumps(public(body)))
    for path in paths:
        _expand(ctx, shown, path.split("."))
    return shown


def _expand(ctx: Context, node: Any, path: list[str]) -> None:
    if isinstance(node, list):
        for entry in node:
            _expand(ctx, entry, path)
        return
    if not isinstance(node, dict) or not path or path[0] not in node:
        return
    value = node[path[0]]
    if isinstance(value, str):
        kind = next((kind for prefix, kind in KINDS.items() if value.startswith(prefix)), None)
        found = ctx.store.get(kind, value) if kind else None
        if found is not None:
            node[path[0]] = value = public(found)
    _expand(ctx, value, path[1:])
