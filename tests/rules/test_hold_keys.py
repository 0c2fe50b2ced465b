"""Keys of holds: what is stored, and what is read from it."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from workflows.rules.hold_keys import (
    ORDER_HOLD,
    HoldKey,
    collection_hold,
    invoice_key_prefix,
    parse_hold_key,
    period_hold,
    plan_change_hold,
)

CASES = [
    (ORDER_HOLD, "order", None),
    (period_hold("inv_1"), "inv_1/renewal", "inv_1"),
    (plan_change_hold("inv_1"), "inv_1/change", "inv_1"),
    (collection_hold("inv_1", datetime(2027, 3, 1, 9, tzinfo=UTC)), "inv_1/2027-03-01T09:00:00+00:00", "inv_1"),
]


@pytest.mark.parametrize(("key", "stored", "invoice_id"), CASES)
def test_a_stored_key_names_the_invoice_that_the_hold_pays(key: HoldKey, stored: str, invoice_id: str | None) -> None:
    assert str(key) == stored
    assert parse_hold_key(stored) == key
    assert key.invoice_id == invoice_id


@pytest.mark.parametrize(("key", "stored", "invoice_id"), CASES)
def test_the_keys_of_an_invoice_begin_as_no_other_key_does(key: HoldKey, stored: str, invoice_id: str | None) -> None:
    assert stored.startswith(invoice_key_prefix("inv_1")) is (invoice_id == "inv_1")
    assert not stored.startswith(invoice_key_prefix("inv_10"))
    assert not stored.startswith(invoice_key_prefix("order"))
    assert not str(period_hold("inv_12")).startswith(invoice_key_prefix("inv_1"))
