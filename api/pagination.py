"""Lists by keyset: an opaque cursor says where the last page ended, so that pages neither skip nor repeat rows."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, TypeVar

import orjson
from fastapi import Depends, Query

from api.envelope import Meta
from api.errors import invalid

T = TypeVar("T")

LARGEST = 100
USUAL = 20


def encode_cursor(*place: str | int) -> str:
    return base64.urlsafe_b64encode(orjson.dumps(place)).decode().rstrip("=")


def decode_cursor(cursor: str) -> tuple[str | int, ...]:
    """Raises 422 for what we did not issue."""
    try:
        place = orjson.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    except (binascii.Error, ValueError) as error:
        raise invalid("cursor", "This is not one of our cursors.") from error
    if not isinstance(place, list) or not all(isinstance(part, str | int) for part in place):
        raise invalid("cursor", "This is not one of our cursors.")
    if any(isinstance(part, str) and "\x00" in part for part in place):
        raise invalid("cursor", "This is not one of our cursors.")
    return tuple(place)


@dataclass(frozen=True, slots=True, kw_only=True)
class Paging:
    """Which page. Ask the database for ``limit + 1`` rows after ``after`` and give them to ``cut``.

    Attributes:
        after: The parts of the cursor (for instance creation instant as text, id); None for the first page.
        fields: The members of each item that are wanted; None for all.
    """

    limit: int
    after: tuple[str | int, ...] | None
    fields: frozenset[str] | None

    def place(self, *kinds: type[Any]) -> tuple[Any, ...] | None:
        """Return ``after``, its parts read as these types (``str``, ``int``, ``datetime``). Raises 422."""
        if self.after is None:
            return None
        if len(self.after) != len(kinds):
            raise invalid("cursor", "This cursor belongs to another list.")
        return tuple(_read(part, kind) for part, kind in zip(self.after, kinds, strict=True))

    def cut(self, rows: Sequence[T], *key: str) -> tuple[Sequence[T], Meta]:
        """Return this page's rows and its ``meta``; ``key`` names the attributes that make the cursor."""
        page = rows[: self.limit]
        following = None
        if len(rows) > self.limit:
            following = encode_cursor(*(_part(getattr(page[-1], name)) for name in key))
        return page, Meta(next_cursor=following, limit=self.limit)


def _read(part: str | int, kind: type[Any]) -> Any:
    try:
        if kind is datetime and isinstance(part, str):
            at = datetime.fromisoformat(part)
            if at.tzinfo is not None:
                return at
        elif type(part) is kind:
            return part
    except ValueError:
        pass
    raise invalid("cursor", "This cursor belongs to another list.")


def _part(value: Any) -> str | int:
    if isinstance(value, str | int):
        return value
    return str(value.isoformat())


async def paging(
    limit: Annotated[int, Query(ge=1, le=LARGEST)] = USUAL,
    cursor: Annotated[str | None, Query(max_length=512, description="`meta.next_cursor` of the page before")] = None,
    fields: Annotated[str | None, Query(max_length=512, examples=["id,status"])] = None,
) -> Paging:
    wanted = frozenset(name.strip() for name in fields.split(",") if name.strip()) if fields else None
    return Paging(limit=limit, after=decode_cursor(cursor) if cursor else None, fields=wanted)


PageOf = Annotated[Paging, Depends(paging)]
