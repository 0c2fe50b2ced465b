"""What a renewal asks the database."""

from __future__ import annotations

from activities.billing import PostgresBillingActivities
from db.session import create_database_engine, session_factory
from tests.support.billing_commands import top_up
from tests.support.billing_fixture import BillingFixture
from tests.support.databases import DatabaseFixture
from tests.support.postgres_proxy import WireCost, proxy_to
from workflows.rules.funding import GatewayTerms

GATEWAYS = {"stripe": GatewayTerms(name="stripe")}


async def test_a_renewal_is_one_transaction_of_two_round_trips(
    billing: BillingFixture, database: DatabaseFixture
) -> None:
    await top_up(billing, 5000)
    ordered = await billing.create_active_subscription()
    async with proxy_to(database.worker_url) as proxy:
        engine = create_database_engine(proxy.url, pool_size=1, pre_ping=False)
        try:
            async with engine.connect():
                pass
            proxy.reset()
            activities = PostgresBillingActivities(session_factory(engine), GATEWAYS)
            outcome = await activities.start_period(billing.start_period_command(ordered))
            # BEGIN and the locked subscription; the change set, COMMIT.
            assert proxy.cost() == WireCost(statements=4, transactions=1, round_trips=2)
        finally:
            await engine.dispose()
    assert outcome.paid
    await billing.assert_ledger_balanced()
    await billing.assert_allocations_match_invoices()
