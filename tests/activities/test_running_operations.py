"""What operations that run an instance change in the cluster, and what they leave as it is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
import pytest_asyncio
from temporalio.exceptions import ApplicationError

from activities.adapters.kubernetes import operations, storage
from activities.service_templates.manifests import Manifest
from tests.support.databases import DatabaseFixture
from tests.support.instance_fixture import LARGE, SMALL, InstanceFixture, create_instance_fixture
from tests.support.sandboxes import ClusterEndpoint
from tests.support.wait import wait_until
from workflows.ports.instances import OperationKind
from workflows.ports.subscription import Resources


@pytest_asyncio.fixture
async def instances(database: DatabaseFixture, cluster: ClusterEndpoint) -> AsyncIterator[InstanceFixture]:
    async with create_instance_fixture(database, cluster) as fixture:
        yield fixture


async def generations(instances: InstanceFixture, instance_id: str) -> list[int]:
    stored = [
        await instances.get_live_object("Deployment", instance_id, "app"),
        await instances.get_live_object("StatefulSet", instance_id, "database"),
    ]
    return [manifest["metadata"]["generation"] for manifest in stored if manifest is not None]


async def _insert_ready_instance(instances: InstanceFixture) -> str:
    """Provision an instance in the cluster, mark it as ready, and return its id."""
    instance_id = await instances.insert_instance()
    await instances.provision(instance_id)
    await instances.update_instance(instance_id, status="ready")
    return instance_id


async def test_a_restart_restarts_the_pods_once_and_no_later_operation_restarts_them_again(
    instances: InstanceFixture,
) -> None:
    instance_id = await _insert_ready_instance(instances)
    cluster = instances.cluster_activities
    restart = instances.operate(instance_id, OperationKind.RESTART)
    for _ in range(2):
        await instances.run_activity(cluster.restart, restart)
    assert await generations(instances, instance_id) == [2, 2]
    await instances.run_activity(cluster.scale_up, instances.operate(instance_id, OperationKind.START))
    await instances.run_activity(cluster.resize, instances.operate(instance_id, OperationKind.RESIZE, SMALL))
    assert await generations(instances, instance_id) == [2, 2]


async def test_a_running_workload_keeps_the_replicas_that_an_operator_set(instances: InstanceFixture) -> None:
    instance_id = await _insert_ready_instance(instances)
    namespace = instances.namespace(instance_id)
    await instances.gateway.patch("Deployment", namespace, "app", {"spec": {"replicas": 2}})
    cluster = instances.cluster_activities
    for step, kind in (
        (cluster.restart, OperationKind.RESTART),
        (cluster.scale_down, OperationKind.STOP),
        (cluster.scale_up, OperationKind.START),
    ):
        await instances.run_activity(step, instances.operate(instance_id, kind))
    app = await instances.get_live_object("Deployment", instance_id, "app")
    assert app is not None
    assert app["spec"]["replicas"] == 2


async def test_a_claim_that_is_not_bound_is_replaced_by_a_larger_one(instances: InstanceFixture) -> None:
    instance_id = await _insert_ready_instance(instances)
    cluster, namespace = instances.cluster_activities, instances.namespace(instance_id)
    await instances.run_activity(cluster.scale_down, instances.operate(instance_id, OperationKind.STOP))
    await instances.update_instance(instance_id, status="stopped")
    claim = await instances.get_live_object("PersistentVolumeClaim", instance_id, "backups")
    assert claim is not None
    await instances.gateway.delete("PersistentVolumeClaim", namespace, "backups")
    unbound = {key: claim["metadata"][key] for key in ("name", "namespace", "labels")}
    # As Kubernetes protects every claim: what is deleted is gone a while later.
    unbound["finalizers"] = ["kubernetes.io/pvc-protection"]
    spec = {**{key: claim["spec"][key] for key in ("accessModes", "resources")}, "storageClassName": "missing"}
    body = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": unbound, "spec": spec}
    await instances.gateway.create(body)
    larger = Resources(cpu_millicores=SMALL.cpu_millicores, memory_mib=SMALL.memory_mib, storage_gib=40)
    resize = instances.operate(instance_id, OperationKind.RESIZE, larger)

    async def end_protection() -> None:
        while "deletionTimestamp" not in (await get_claim())["metadata"]:
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.5)
        await instances.gateway.patch("PersistentVolumeClaim", namespace, "backups", {"metadata": {"finalizers": None}})

    async def get_claim() -> Manifest:
        stored = await instances.get_live_object("PersistentVolumeClaim", instance_id, "backups")
        assert stored is not None
        return stored

    await asyncio.wait_for(asyncio.gather(instances.run_activity(cluster.resize, resize), end_protection()), 60)
    for name, size in (("backups", "12Gi"), ("data", "12Gi"), ("database", "16Gi")):
        claim = await instances.get_live_object("PersistentVolumeClaim", instance_id, name)
        assert claim is not None
        assert (name, claim["spec"]["resources"]["requests"]["storage"]) == (name, size)
        assert claim["spec"].get("storageClassName") != "missing"
    # A volume does not shrink: the quota of the former plan allows for what there is.
    await instances.run_activity(cluster.resize, replace(resize, resources=None))
    quota = await instances.get_live_object("ResourceQuota", instance_id, "instance-quota")
    assert quota is not None
    assert quota["spec"]["hard"]["requests.storage"] == str(40 * 2**30)


async def test_a_backup_of_an_instance_that_predates_the_backups_says_what_to_do(instances: InstanceFixture) -> None:
    instance_id = await _insert_ready_instance(instances)
    await instances.gateway.delete("CronJob", instances.namespace(instance_id), "backup")
    backup = instances.operate(instance_id, OperationKind.BACKUP)
    with pytest.raises(ApplicationError, match="Restart it, then back it up"):
        await instances.run_activity(instances.cluster_activities.run_backup, backup)


async def test_a_pod_that_was_evicted_does_not_keep_an_instance_from_being_stopped(
    instances: InstanceFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operations, "POD_SHUTDOWN_TIMEOUT_SECONDS", 5.0)
    instance_id = await _insert_ready_instance(instances)
    namespace = instances.namespace(instance_id)
    (pod, *_) = await instances.gateway.list("Pod", namespace, labels="app.kubernetes.io/name=app")
    # Stands for a pod of the Deployment that its node evicted: it has ended, and no controller deletes it.
    ended: Manifest = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "evicted", "namespace": namespace, "labels": pod["metadata"]["labels"]},
        "spec": {key: value for key, value in pod["spec"].items() if key != "nodeName"} | {"restartPolicy": "Never"},
    }
    amounts = {"cpu": "25m", "memory": "64Mi"}
    for container in (*ended["spec"].get("initContainers", ()), *ended["spec"]["containers"]):
        container["resources"] = {"requests": amounts, "limits": amounts}
    ended["metadata"]["labels"].pop("pod-template-hash", None)
    await instances.gateway.create(ended)

    async def has_ended() -> bool:
        stored = await instances.gateway.get("Pod", namespace, "evicted")
        return stored is not None and stored["status"]["phase"] == "Succeeded"

    await wait_until(has_ended)
    stop = instances.operate(instance_id, OperationKind.STOP)
    await instances.run_activity(instances.cluster_activities.scale_down, stop)
    pods = await instances.gateway.list("Pod", namespace)
    assert [stored["metadata"]["name"] for stored in pods] == ["evicted"]


async def test_a_claim_whose_replacement_was_interrupted_is_replaced_by_the_next_operation(
    instances: InstanceFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "CLAIM_DELETION_TIMEOUT_SECONDS", 0.5)
    instance_id = await _insert_ready_instance(instances)
    namespace, cluster = instances.namespace(instance_id), instances.cluster_activities
    held = {"metadata": {"finalizers": ["example.com/keep"]}}
    await instances.gateway.patch("PersistentVolumeClaim", namespace, "backups", held)
    for resources in (LARGE, None):
        resize = instances.operate(instance_id, OperationKind.RESIZE, resources)
        with pytest.raises(ApplicationError, match="still being deleted"):
            await instances.run_activity(cluster.resize, resize)
    await instances.gateway.patch("PersistentVolumeClaim", namespace, "backups", {"metadata": {"finalizers": None}})
    await instances.run_activity(cluster.resize, instances.operate(instance_id, OperationKind.RESIZE))
    claim = await instances.get_live_object("PersistentVolumeClaim", instance_id, "backups")
    assert claim is not None
    assert "deletionTimestamp" not in claim["metadata"]
