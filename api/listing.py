"""Lists of an account's own records: a whole page unless less is asked for, and cursors that carry instants."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Annotated

from fastapi import Depends, Query

from api.errors import invalid
from api.pagination import LARGEST, Paging, decode_cursor


async def long_paging(
    limit: Annotated[int, Query(ge=1, le=LARGEST)] = LARGEST,
    cursor: Annotated[str | None, Query(max_length=512, description="`meta.next_cursor` of the page before")] = None,
    fields: Annotated[str | None, Query(max_length=512, examples=["id,status"])] = None,
) -> Paging:
    wanted = frozenset(name.strip() for name in fields.split(",") if name.strip()) if fields else None
    return Paging(limit=limit, after=decode_cursor(cursor) if cursor else None, fields=wanted)


LongPageOf = Annotated[Paging, Depends(long_paging)]

WHOLE_STORY = 1000
"""How much of a story is told where no ``limit`` is given."""


async def story_paging(
    limit: Annotated[int | None, Query(ge=1, le=LARGEST, description="Absent: the whole story")] = None,
    cursor: Annotated[str | None, Query(max_length=512, description="`meta.next_cursor` of the page before")] = None,
    fields: Annotated[str | None, Query(max_length=512, examples=["at,kind"])] = None,
) -> Paging:
    page = await long_paging(LARGEST, cursor, fields)
    return replace(page, limit=limit or WHOLE_STORY)


StoryPageOf = Annotated[Paging, Depends(story_paging)]


def instant_of(text: str) -> datetime:
    """Read a cursor's instant. Raises 422."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError as error:
        raise invalid("cursor", "This cursor belongs to another list.") from error
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)


def after_created(page: Paging) -> tuple[datetime, str] | None:
    """The place of lists that are ordered by creation and id."""
    place = page.place(str, str)
    return None if place is None else (instant_of(place[0]), place[1])
