"""A start or a stop that failed may have done a part of its work: the instance is degraded until it succeeds."""

from __future__ import annotations

from datetime import timedelta

import pytest

import activities.cluster
from activities.adapters.kubernetes import client, operations
from tests.support.instance_fixture import InstanceFixture
from tests.support.instance_workers import run_operation, start_provisioning, workers
from tests.support.temporal import TemporalFixture
from workflows.ports.instances import OperationKind, OperationStatus

K = OperationKind


@pytest.fixture(autouse=True)
def _short_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "MAX_ATTEMPTS", 1)
    monkeypatch.setattr(activities.cluster, "OPERATION_GIVE_UP_AFTER", timedelta(seconds=2))
    monkeypatch.setattr(operations, "POD_SHUTDOWN_TIMEOUT_SECONDS", 2.0)


@pytest.mark.parametrize(("down", "up"), [(K.STOP, K.START), (K.SUSPEND, K.RESUME)])
async def test_an_instance_whose_start_failed_is_degraded(
    temporal: TemporalFixture, instances: InstanceFixture, down: OperationKind, up: OperationKind
) -> None:
    """Its row would say that it is stopped, and a suspension after a lost workflow believes that."""
    instance_id = await instances.insert_instance()
    async with workers(temporal, instances):
        assert (await (await start_provisioning(temporal, instances, instance_id)).result()).ready
        await run_operation(temporal, instances.operate(instance_id, down))
        await instances.inject_fault("server_error", instance_id, count=100_000)
        failed = await run_operation(temporal, instances.operate(instance_id, up))
        assert failed.status is OperationStatus.FAILED
        assert (await instances.row(instance_id))["status"] == "degraded"
        await instances.clear_faults()
        assert (await run_operation(temporal, instances.operate(instance_id, up))).status is OperationStatus.SUCCEEDED
        row = await instances.row(instance_id)
        assert (row["status"], row["failure_reason"]) == ("ready", None)


async def test_a_start_that_is_refused_leaves_the_instance_suspended(
    temporal: TemporalFixture, instances: InstanceFixture
) -> None:
    instance_id = await instances.insert_instance()
    async with workers(temporal, instances):
        assert (await (await start_provisioning(temporal, instances, instance_id)).result()).ready
        await run_operation(temporal, instances.operate(instance_id, OperationKind.SUSPEND))
        refused = await run_operation(temporal, instances.operate(instance_id, OperationKind.START))
        assert (refused.status, refused.reason) == (OperationStatus.FAILED, "ILLEGAL_MOVE")
        assert (await instances.row(instance_id))["status"] == "suspended"


@pytest.mark.parametrize("down", [OperationKind.STOP, OperationKind.SUSPEND])
async def test_an_instance_whose_stop_failed_is_degraded_until_it_is_resumed(
    temporal: TemporalFixture, instances: InstanceFixture, down: OperationKind
) -> None:
    instance_id = await instances.insert_instance()
    namespace = instances.namespace(instance_id)
    async with workers(temporal, instances):
        assert (await (await start_provisioning(temporal, instances, instance_id)).result()).ready
        (pod, *_) = await instances.gateway.list("Pod", namespace, labels="app.kubernetes.io/name=app")
        name = pod["metadata"]["name"]
        # The pod does not end.
        await instances.gateway.patch("Pod", namespace, name, {"metadata": {"finalizers": ["example.com/keep"]}})
        failed = await run_operation(temporal, instances.operate(instance_id, down))
        assert failed.status is OperationStatus.FAILED
        assert (await instances.row(instance_id))["status"] == "degraded"
        await instances.gateway.patch("Pod", namespace, name, {"metadata": {"finalizers": None}})
        resumed = await run_operation(temporal, instances.operate(instance_id, OperationKind.RESUME))
        assert resumed.status is OperationStatus.SUCCEEDED
        assert (await instances.row(instance_id))["status"] == "ready"
        app = await instances.get_live_object("Deployment", instance_id, "app")
        backup = await instances.get_live_object("CronJob", instance_id, "backup")
        assert app is not None
        assert backup is not None
        assert (app["spec"]["replicas"], backup["spec"]["suspend"]) == (1, False)
