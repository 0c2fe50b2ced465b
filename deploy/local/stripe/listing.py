"""List and search answers with Stripe's cursors."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from deploy.local.stripe.errors import StripeError, invalid_parameter
from deploy.local.stripe.params import Params
from deploy.local.stripe.request_context import Json, RequestContext, public_fields

_CLAUSE = re.compile(r"""-?(metadata\[["']([^"']+)["']\]|[a-z_]+)\s*[:=]\s*["']?(.*?)["']?""")
_BOUNDS: dict[str, Callable[[int, int], bool]] = {
    "gt": lambda at, bound: at > bound,
    "gte": lambda at, bound: at >= bound,
    "lt": lambda at, bound: at < bound,
    "lte": lambda at, bound: at <= bound,
}


def list_page(
    ctx: RequestContext,
    kind: str,
    url: str,
    *,
    customer: str | None = None,
    parent: str | None = None,
    predicate: Callable[[Json], bool] = lambda body: True,
) -> Json:
    """One page, newest first: `{"object": "list", "data": […], "has_more": …, "url": …}`."""
    params = ctx.params
    limit = _limit(params)
    after, before = params.text("starting_after"), params.text("ending_before")
    created = params.pop_raw("created")
    params.reject_unknown()
    objects = [
        body
        for body in ctx.store.find(kind, customer=customer, parent=parent, after=after, before=before)
        if predicate(body) and _in_range(body, created)
    ]
    page = objects[-limit:] if before is not None else objects[:limit]
    return {
        "object": "list",
        "data": [public_fields(body) for body in page],
        "has_more": len(objects) > len(page),
        "url": url,
    }


def _limit(params: Params) -> int:
    limit = params.integer("limit")
    if limit is None:
        return 10
    if not 1 <= limit <= 100:
        raise invalid_parameter("limit", "This value must be between 1 and 100.")
    return limit


def _in_range(body: Json, created: Any) -> bool:
    if created is None:
        return True
    at = int(body.get("created", 0))
    bounds = created.items() if isinstance(created, dict) else [("gte", created), ("lte", created)]
    for name, bound in bounds:
        if name not in _BOUNDS or not str(bound).isdigit():
            raise invalid_parameter("created", "Invalid timestamp range")
        if not _BOUNDS[name](at, int(bound)):
            return False
    return True


def search(ctx: RequestContext, kind: str, url: str) -> Json:
    """`field:"value"` and `metadata["key"]:"value"`, joined by AND. Unlike Stripe's own index it is never behind."""
    query = ctx.params.required_text("query")
    limit = _limit(ctx.params)
    ctx.params.ignore("page")
    ctx.params.reject_unknown()
    clauses: list[tuple[str, str | None, str]] = []
    for clause in re.split(r"\s+AND\s+", query.strip()):
        match = _CLAUSE.fullmatch(clause)
        if match is None or clause.startswith("-"):
            raise StripeError(400, f"We were unable to parse your search query: {clause}", param="query")
        clauses.append((match[1], match[2], match[3]))
    objects = [body for body in ctx.store.find(kind) if all(_matches(body, *clause) for clause in clauses)]
    return {
        "object": "search_result",
        "data": [public_fields(body) for body in objects[:limit]],
        "has_more": len(objects) > limit,
        "next_page": None,
        "url": url,
    }


def _matches(body: Json, field: str, key: str | None, value: str) -> bool:
    held = body.get("metadata", {}).get(key) if key is not None else body.get(field)
    return held is not None and str(held) == value
