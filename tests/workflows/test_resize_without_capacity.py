"""A resize to resources that no node has is undone: the instance runs again with its former ones."""

from __future__ import annotations

from datetime import timedelta

from tests.support.databases import DatabaseFixture
from tests.support.instance_fixture import SMALL, InstanceFixture, create_instance_fixture
from tests.support.instance_workers import run_operation, start_provisioning, workers
from tests.support.sandboxes import ClusterEndpoint
from tests.support.temporal import TemporalFixture
from workflows.ports.instances import OperationKind, OperationStatus
from workflows.ports.subscription import Resources

HUGE = Resources(cpu_millicores=20_000_000, memory_mib=4096, storage_gib=40)


async def test_a_resize_that_does_not_become_ready_is_rolled_back(
    temporal: TemporalFixture, database: DatabaseFixture, each_cluster: ClusterEndpoint
) -> None:
    async with create_instance_fixture(
        database, each_cluster, failure_threshold=timedelta(seconds=8), deletion_timeout=timedelta(seconds=20)
    ) as instances:
        instance_id = await instances.insert_instance()
        async with workers(temporal, instances):
            assert (await (await start_provisioning(temporal, instances, instance_id)).result()).ready
            before = await _pod_limits(instances, instance_id)
            outcome = await run_operation(temporal, instances.operate(instance_id, OperationKind.RESIZE, HUGE))
        assert (outcome.status, outcome.reason) == (OperationStatus.FAILED, "Unschedulable")
        assert outcome.has_known_resources
        row = await instances.row(instance_id)
        assert (row["status"], row["cpu_millicores"]) == ("ready", SMALL.cpu_millicores)
        assert row["failure_reason"] is None
        assert {c["type"]: c["status"] for c in row["conditions"]}["Ready"] == "True"
        assert await _pod_limits(instances, instance_id) == before


async def _pod_limits(instances: InstanceFixture, instance_id: str) -> dict[str, str]:
    """Return the CPU limits of the workloads' pods by the name of the workload."""
    pods = await instances.gateway.list("Pod", instances.namespace(instance_id), labels="app.kubernetes.io/name")
    return {
        pod["metadata"]["labels"]["app.kubernetes.io/name"]: pod["spec"]["containers"][0]["resources"]["limits"]["cpu"]
        for pod in pods
        if "deletionTimestamp" not in pod["metadata"]
    }
