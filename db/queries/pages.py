"""Pages of lists that show the newest row first, for statements that are built once."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, bindparam, tuple_
from sqlalchemy.orm import InstrumentedAttribute


def follows_bound_place(
    created_at: InstrumentedAttribute[datetime], identifier: InstrumentedAttribute[str]
) -> ColumnElement[bool]:
    """Return the condition that a row follows the place that `bind_place` gives."""
    place = tuple_(bindparam("after_created_at", type_=created_at.type), bindparam("after_id", type_=identifier.type))
    return tuple_(created_at, identifier) < place


def bind_place(after: tuple[datetime, str] | None) -> dict[str, Any]:
    """Return the values for `follows_bound_place`.

    Args:
        after: ``(created_at, id)`` of the last row of the previous page; None for the first page.
    """
    created_at, identifier = after or (None, None)
    return {"after_created_at": created_at, "after_id": identifier}
