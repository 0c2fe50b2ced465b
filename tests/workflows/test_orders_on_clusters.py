"""An order of every service becomes ready, on the simulated cluster and on the real control plane where it is built."""

from __future__ import annotations

from datetime import timedelta

import pytest

from tests.support.databases import DatabaseFixture
from tests.support.instance_fixture import TEMPLATES, create_instance_fixture
from tests.support.instance_workers import run_operation, start_provisioning, workers
from tests.support.sandboxes import ClusterEndpoint
from tests.support.temporal import TemporalFixture
from workflows.ports.instances import OperationKind, OperationStatus, ProvisioningOutcome


@pytest.mark.scenario("P1")
@pytest.mark.parametrize("slug", sorted(TEMPLATES.services))
async def test_an_order_becomes_ready_is_operated_and_deleted(
    slug: str, temporal: TemporalFixture, database: DatabaseFixture, each_cluster: ClusterEndpoint
) -> None:
    async with (
        create_instance_fixture(
            database, each_cluster, failure_threshold=timedelta(seconds=60), deletion_timeout=timedelta(seconds=40)
        ) as instances,
        workers(temporal, instances),
    ):
        instance_id = await instances.insert_instance(slug)
        assert await (await start_provisioning(temporal, instances, instance_id)).result() == ProvisioningOutcome(
            ready=True
        )
        row = await instances.row(instance_id)
        assert (row["status"], row["url"]) == ("ready", f"https://{row['hostname']}")
        for kind, status in (
            (OperationKind.RESTART, "ready"),
            (OperationKind.SUSPEND, "suspended"),
            (OperationKind.RESUME, "ready"),
            (OperationKind.DELETE, "deleted"),
        ):
            outcome = await run_operation(temporal, instances.operate(instance_id, kind))
            assert (kind, outcome.status) == (kind, OperationStatus.SUCCEEDED)
            assert (await instances.row(instance_id))["status"] == status
        assert await instances.get_live_object("Namespace", instance_id, instances.namespace(instance_id)) is None
