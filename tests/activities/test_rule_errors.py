"""A rule violation inside an activity ends the command; Temporal must not retry it for ever."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from temporalio.exceptions import ApplicationError

from tests.support.billing_commands import change_status_command, top_up
from tests.support.billing_fixture import create_billing_fixture
from tests.support.databases import DatabaseFixture
from workflows.ports.billing import StartFirstPeriod
from workflows.rules.subscription import SubscriptionStatus


async def test_an_illegal_status_change_is_not_retried(database: DatabaseFixture) -> None:
    billing = await create_billing_fixture(database)
    await top_up(billing, 500)
    ordered = await billing.create_active_subscription()
    with pytest.raises(ApplicationError) as raised:
        await billing.subscription_activities.change_status(
            change_status_command(ordered, SubscriptionStatus.SUSPENDED)
        )
    assert (raised.value.type, raised.value.non_retryable) == ("ILLEGAL_MOVE", True)


async def test_a_trial_ends_at_the_local_time_at_which_it_began(database: DatabaseFixture) -> None:
    """Los Angeles skips an hour on March 14, 2027."""
    billing = await create_billing_fixture(database, "America/Los_Angeles")
    command = billing.create_command("trial")
    opened = await billing.subscription_activities.record_order(command)
    begins = datetime(2027, 3, 2, 7, 30, tzinfo=UTC)
    outcome = await billing.billing_activities.start_first_period(
        StartFirstPeriod(
            subscription_id=command.order.subscription_id,
            period_start=begins,
            trial_days=opened.terms.trial_days,
            now=begins,
        )
    )
    assert outcome.state.period_end == datetime(2027, 3, 16, 6, 30, tzinfo=UTC)
