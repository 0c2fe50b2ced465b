"""``INSERT`` statements that read their rows from one JSON parameter, with the columns that the models declare."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

from sqlalchemy import Column, Table, inspect

from db.base import Base


class JsonInsert:
    """Inserts the rows of one list in the array ``written.rows``.

    It inserts every column of the model, except those that the database fills: identities and columns with a default.
    """

    def __init__(
        self,
        model: type[Base],
        *,
        without: tuple[str, ...] = (),
        expressions: Mapping[str, str] | None = None,
        on_conflict_do_nothing: bool = False,
    ) -> None:
        """Describe the statement.

        Args:
            model: The table and its columns.
            without: Columns that a trigger or a later statement fills.
            expressions: SQL of columns whose value is not the row's own; also names columns whose default is not used.
            on_conflict_do_nothing: Skip rows that exist.
        """
        table = inspect(model).local_table
        assert isinstance(table, Table)
        self.table = table
        self._without = without
        self._expressions = dict(expressions or {})
        self._on_conflict_do_nothing = on_conflict_do_nothing

    @cached_property
    def columns(self) -> frozenset[str]:
        """The columns that a row may give."""
        return frozenset(name for name in self._inserted if self._expressions.get(name, name) == name)

    def sql(self, place: int) -> str:
        """Return the statement; its rows are the list at ``place``."""
        table, names = self.table.name, self._inserted
        values = [self._expressions.get(name, name) for name in names]
        conflict = " ON CONFLICT DO NOTHING" if self._on_conflict_do_nothing else ""
        return (
            f"INSERT INTO {table}({','.join(names)}) SELECT {','.join(values)}"
            f" FROM written,jsonb_populate_recordset(NULL::{table},rows->{place}){conflict}"
        )

    @property
    def _inserted(self) -> list[str]:
        return [column.name for column in self.table.columns if self._is_inserted(column)]

    def _is_inserted(self, column: Column[Any]) -> bool:
        if column.name in self._without:
            return False
        return column.name in self._expressions or (column.identity is None and column.server_default is None)
