"""What activities that a customer waits for ask the database, counted on the wire: each waits as seldom as it can."""

from __future__ import annotations

from datetime import timedelta

from activities.billing import PostgresBillingActivities
from activities.cluster import KubernetesClusterActivities
from activities.instances import PostgresInstanceActivities
from activities.subscriptions import PostgresSubscriptionActivities
from tests.support import inserts
from tests.support.billing_commands import top_up
from tests.support.billing_fixture import BillingFixture
from tests.support.databases import DatabaseFixture
from tests.support.instance_fixture import FIELD_ENCRYPTION, TEMPLATES, create_instance_fixture
from tests.support.postgres_proxy import WireCost, counted_sessions
from tests.support.sandboxes import ClusterEndpoint
from workflows.ports.instances import InstanceId, RecordReady
from workflows.rules.funding import GatewayTerms

GATEWAYS = {"stripe": GatewayTerms(name="stripe")}


async def test_an_order_is_one_transaction_of_two_round_trips(
    billing: BillingFixture, database: DatabaseFixture
) -> None:
    await top_up(billing, 600)
    async with counted_sessions(database.worker_url) as (sessions, proxy):
        await PostgresSubscriptionActivities(sessions, "apps.test", GATEWAYS).record_order(billing.create_command())
        # BEGIN and the facts; both rows, the hold, the change set, COMMIT.
        assert proxy.cost() == WireCost(statements=6, transactions=1, round_trips=2)


async def test_a_renewal_is_one_transaction_of_two_round_trips(
    billing: BillingFixture, database: DatabaseFixture
) -> None:
    await top_up(billing, 5000)
    ordered = await billing.create_active_subscription()
    async with counted_sessions(database.worker_url) as (sessions, proxy):
        outcome = await PostgresBillingActivities(sessions, GATEWAYS).start_period(
            billing.start_period_command(ordered)
        )
        # BEGIN and the locked subscription; the change set, its invoice, COMMIT.
        assert proxy.cost() == WireCost(statements=5, transactions=1, round_trips=2)
    assert outcome.paid
    await billing.assert_ledger_balanced()
    await billing.assert_allocations_match_invoices()


async def test_provisioning_waits_five_times(database: DatabaseFixture, cluster: ClusterEndpoint) -> None:
    async with (
        create_instance_fixture(database, cluster) as instances,
        counted_sessions(database.worker_url, FIELD_ENCRYPTION) as (sessions, proxy),
    ):
        instance_id = await instances.insert_instance(entitlements={"executions": 5})
        applying = KubernetesClusterActivities(
            instances.gateway, TEMPLATES, sessions, failure_threshold=timedelta(seconds=5)
        )
        # The first one also reads the installation's id.
        await instances.run_activity(applying.apply, InstanceId(instance_id=instance_id))
        proxy.reset()
        await instances.run_activity(applying.apply, InstanceId(instance_id=instance_id))
        # BEGIN and the locked instance; its status, COMMIT; the credentials, which commit by themselves.
        assert proxy.cost() == WireCost(statements=5, transactions=2, round_trips=3)
        row = await instances.row(instance_id)
        assert (row["status"], row["entitlements"]) == ("provisioning", {"executions": 5})
        await instances.set_column(instance_id, "failure_reason", "IMAGE_PULL")
        proxy.reset()
        ready = RecordReady(instance_id=instance_id, conditions=(), now=inserts.NOW)
        await instances.run_activity(PostgresInstanceActivities(sessions).record_ready, ready)
        # BEGIN and the locked instance; what is known of it, COMMIT.
        assert proxy.cost() == WireCost(statements=4, transactions=1, round_trips=2)
        row = await instances.row(instance_id)
        assert (row["status"], row["ready_at"], row["failure_reason"]) == ("ready", inserts.NOW, None)
        assert [condition["type"] for condition in row["conditions"]] == ["Ready"]
