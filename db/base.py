"""The declarative base: names of constraints, and the types that every table uses."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, DateTime, ForeignKeyConstraint, MetaData, Text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase

NAMING_CONVENTION = {
    "ix": "ix_%(column_0_N_label)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}


class Base(DeclarativeBase):
    """Strings are ``text``, instants ``timestamptz``, whole numbers ``bigint``, dicts ``jsonb``."""

    metadata = MetaData(naming_convention=NAMING_CONVENTION)
    type_annotation_map = {  # noqa: RUF012 - SQLAlchemy reads this class attribute
        str: Text(),
        int: BigInteger(),
        datetime: DateTime(timezone=True),
        dict[str, Any]: JSONB(),
        list[str]: JSONB(),
    }


def same_organization(
    table: str, column: str, target: str, *, with_currency: bool = False, **options: Any
) -> ForeignKeyConstraint:
    """Return a foreign key that accepts only a row of the same organization.

    Args:
        table, column: What refers, e.g. ``payments`` and ``subscription_id``.
        target: The table that is referred to by its ``id``.
        with_currency: The currency has to be the same as well.
        options: More arguments of the constraint, e.g. ``ondelete``.
    """
    shared = ["currency"] if with_currency else []
    return ForeignKeyConstraint(
        ["organization_id", column, *shared],
        [f"{target}.organization_id", f"{target}.id", *(f"{target}.{name}" for name in shared)],
        name=f"fk_{table}_{column.removesuffix('_id')}",
        **options,
    )
