"""What a fact may change of its subscription."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from db.models.billing import Subscription
from db.queries.journal import CHANGEABLE, Journal


def test_what_stands_as_it_was_ordered_is_not_updated() -> None:
    journal = Journal(
        organization_id="org", subscription_id="sub", at=datetime(2026, 1, 1, tzinfo=UTC), actor="platform", run_id=""
    )
    with pytest.raises(ValueError, match="currency"):
        journal.update(status="active", currency="EUR")


def test_every_changeable_column_is_one_of_the_table() -> None:
    assert set(CHANGEABLE) <= set(Subscription.__table__.columns.keys())
