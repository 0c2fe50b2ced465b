"""Keyset pagination: an opaque cursor names the last row of a page, so that pages neither skip nor repeat rows."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Annotated, Any, TypeVar

import orjson
from fastapi import Depends, Query

from api.errors import validation_error
from api.response_envelope import Meta

T = TypeVar("T")

INVALID_CURSOR = "Invalid cursor. Use `meta.next_cursor` of the previous page."
OTHER_LIST = "The cursor was issued for a different list or filter."
MAX_LIMIT = 100
TIMELINE_DEFAULT_LIMIT = 1000
"""Events returned if the request has no `limit`."""


def encode_cursor(*place: str | int) -> str:
    return base64.urlsafe_b64encode(orjson.dumps(place)).decode().rstrip("=")


def decode_cursor(cursor: str) -> tuple[str | int, ...]:
    """Return the parts of a cursor. Raises 422 if ``encode_cursor`` did not make it."""
    try:
        place = orjson.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    except (binascii.Error, ValueError) as error:
        raise validation_error("cursor", INVALID_CURSOR) from error
    if not isinstance(place, list) or not all(isinstance(part, str | int) for part in place):
        raise validation_error("cursor", INVALID_CURSOR)
    if any(isinstance(part, str) and "\x00" in part for part in place):
        raise validation_error("cursor", INVALID_CURSOR)
    return tuple(place)


@dataclass(frozen=True, slots=True, kw_only=True)
class PageRequest:
    """The page that a request asks for. Load ``limit + 1`` rows after ``after`` and pass them to ``split_page``.

    Attributes:
        after: The parts of the cursor (for instance creation instant as text, id); None for the first page.
        fields: The members of each item to return; None for all.
    """

    limit: int
    after: tuple[str | int, ...] | None
    fields: frozenset[str] | None

    def cursor_as(self, *kinds: type[Any]) -> tuple[Any, ...] | None:
        """Return ``after``, its parts read as these types (``str``, ``int``, ``datetime``). Raises 422."""
        if self.after is None:
            return None
        if len(self.after) != len(kinds):
            raise validation_error("cursor", OTHER_LIST)
        return tuple(_parse_cursor_part(part, kind) for part, kind in zip(self.after, kinds, strict=True))

    def split_page(self, rows: Sequence[T], *key: str) -> tuple[Sequence[T], Meta]:
        """Return this page's rows and its ``meta``; ``key`` names the attributes that make the cursor."""
        page = rows[: self.limit]
        next_cursor = None
        if len(rows) > self.limit:
            next_cursor = encode_cursor(*(_encode_cursor_part(getattr(page[-1], name)) for name in key))
        return page, Meta(next_cursor=next_cursor, limit=self.limit)


def _parse_cursor_part(part: str | int, kind: type[Any]) -> Any:
    try:
        if kind is datetime and isinstance(part, str):
            at = datetime.fromisoformat(part)
            if at.tzinfo is not None:
                return at
        elif type(part) is kind:
            return part
    except ValueError:
        pass
    raise validation_error("cursor", OTHER_LIST)


def _encode_cursor_part(value: Any) -> str | int:
    if isinstance(value, str | int):
        return value
    return str(value.isoformat())


async def full_page_paging(
    limit: Annotated[int, Query(ge=1, le=MAX_LIMIT)] = MAX_LIMIT,
    cursor: Annotated[str | None, Query(max_length=512, description="`meta.next_cursor` of the previous page")] = None,
    fields: Annotated[str | None, Query(max_length=512, examples=["id,status"])] = None,
) -> PageRequest:
    return PageRequest(
        limit=limit, after=decode_cursor(cursor) if cursor else None, fields=parse_fields(fields) if fields else None
    )


def parse_fields(fields: str | None) -> frozenset[str]:
    """Return the names in ``fields=``."""
    return frozenset(name.strip() for name in (fields or "").split(",") if name.strip())


FullPage = Annotated[PageRequest, Depends(full_page_paging)]
"""A page of ``MAX_LIMIT`` items unless the request has a smaller `limit`."""


async def timeline_paging(
    limit: Annotated[
        int | None, Query(ge=1, le=MAX_LIMIT, description="Page size; if omitted, all timeline events are returned")
    ] = None,
    cursor: Annotated[str | None, Query(max_length=512, description="`meta.next_cursor` of the previous page")] = None,
    fields: Annotated[str | None, Query(max_length=512, examples=["at,kind"])] = None,
) -> PageRequest:
    page = await full_page_paging(MAX_LIMIT, cursor, fields)
    return replace(page, limit=limit or TIMELINE_DEFAULT_LIMIT)


TimelinePage = Annotated[PageRequest, Depends(timeline_paging)]


def parse_cursor_instant(text: str) -> datetime:
    """Return the instant in a cursor; one without a zone is UTC. Raises 422."""
    try:
        instant = datetime.fromisoformat(text)
    except ValueError as error:
        raise validation_error("cursor", OTHER_LIST) from error
    return instant if instant.tzinfo is not None else instant.replace(tzinfo=UTC)


def created_cursor(page: PageRequest) -> tuple[datetime, str] | None:
    """Return ``(created_at, id)`` of the last row of the previous page, or None for the first page."""
    parts = page.cursor_as(str, str)
    return None if parts is None else (parse_cursor_instant(parts[0]), parts[1])
