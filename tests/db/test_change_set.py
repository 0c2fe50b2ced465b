"""The columns that a change set may update, and the statement that it writes."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from psycopg._queries import MAX_CACHED_STATEMENT_LENGTH

from db.models.invoices import Invoice
from db.models.ledger import LedgerEntryRow
from db.models.subscriptions import Subscription
from db.queries import change_set_sql
from db.queries.change_set import ChangeSet
from db.queries.change_set_sql import UPDATABLE_COLUMNS
from db.queries.json_inserts import JsonInsert
from workflows.rules.ledger import promotional_credit_transaction
from workflows.rules.money import Money


def test_a_column_that_is_fixed_at_the_order_is_not_updated() -> None:
    changes = _change_set()
    with pytest.raises(ValueError, match="currency"):
        changes.update_subscription(status="active", currency="EUR")


def test_every_updatable_column_exists() -> None:
    assert set(UPDATABLE_COLUMNS) <= set(Subscription.__table__.columns.keys())


def test_an_insert_names_the_columns_of_the_model_that_the_database_does_not_fill() -> None:
    insert = JsonInsert(Invoice, expressions={"number": "(SELECT number FROM numbered)"}, without=("voided_at",))
    filled = {"refunded_minor", "explanation"}
    assert insert.columns == set(Invoice.__table__.columns.keys()) - filled - {"number", "voided_at"}
    assert "(SELECT number FROM numbered)" in insert.sql(0)
    assert "id" not in JsonInsert(LedgerEntryRow).columns


def test_a_column_that_the_statement_does_not_write_is_refused_and_not_dropped() -> None:
    with pytest.raises(ValueError, match="invoices has no column voided_at"):
        _change_set().add_invoice({"id": "inv", "voided_at": "2026-01-01T00:00:00Z"}, [], assign_number=False)


def test_a_change_set_takes_a_ledger_key_once() -> None:
    changes = _change_set()
    credit = promotional_credit_transaction(Money(amount_minor=100, currency="USD"))
    changes.add_ledger_transaction(credit, key="grant", description="credit")
    with pytest.raises(ValueError, match="grant already"):
        changes.add_ledger_transaction(credit, key="grant", description="credit")


@pytest.mark.parametrize("statement", ["WRITE", "WRITE_INVOICE", "WRITE_CREDITS"])
def test_the_driver_keeps_the_statements_of_a_change_set(statement: str) -> None:
    assert len(getattr(change_set_sql, statement).encode()) <= MAX_CACHED_STATEMENT_LENGTH


def _change_set() -> ChangeSet:
    return ChangeSet(
        organization_id="org",
        subscription_id="sub",
        occurred_at=datetime(2026, 1, 1, tzinfo=UTC),
        keyed_at=datetime(2026, 1, 1, tzinfo=UTC),
        actor="platform",
        run_id="",
    )
