"""The cluster's refusals, lapses and habits: what is repeated, what is given up, and what is never touched."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import sqlalchemy.exc
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment

from activities.adapters.kubernetes import errors
from activities.adapters.kubernetes.gateway import KubernetesGateway
from activities.adapters.kubernetes.observer import Observer
from tests.support.databases import Database
from tests.support.instances import Fleet, fleet_of
from tests.support.sandboxes import Cluster
from tests.support.wait import eventually
from workflows.ports.instances import AwaitReady, Collected, CollectOrphans, InstanceRef, OperationKind, Removed


@pytest_asyncio.fixture
async def fleet(database: Database, cluster: Cluster) -> AsyncIterator[Fleet]:
    async with fleet_of(database, cluster, patience=timedelta(seconds=3), removal=timedelta(seconds=3)) as made:
        yield made


def foreign(kind: str, name: str, namespace: str | None = None, **more: Any) -> dict[str, Any]:
    versions = {"Deployment": "apps/v1"}
    metadata = {"name": name, **({"namespace": namespace} if namespace else {}), **more.pop("metadata", {})}
    return {"apiVersion": versions.get(kind, "v1"), "kind": kind, "metadata": metadata, **more}


async def applied(fleet: Fleet, instance_id: str) -> None:
    await fleet.run(fleet.activities.apply, InstanceRef(instance_id=instance_id))


@pytest.mark.scenario("P3")
async def test_lost_replies_converge(fleet: Fleet) -> None:
    instance_id = await fleet.order()
    await fleet.fault("lost_reply", instance_id, count=6)
    await fleet.up(instance_id)
    assert await fleet.faults() == []
    deployments = await fleet.gateway.list("Deployment", fleet.namespace(instance_id))
    assert [found["metadata"]["generation"] for found in deployments] == [1]
    secrets = await fleet.gateway.list("Secret", fleet.namespace(instance_id), labels="berth/instance")
    assert sorted(found["metadata"]["name"] for found in secrets) == ["app", "database"]


@pytest.mark.scenario("P33")
async def test_keys_are_made_once_and_only_missing_ones_are_added(fleet: Fleet) -> None:
    instance_id = await fleet.order()
    await applied(fleet, instance_id)
    before = await fleet.live("Secret", instance_id, "database")
    key = await fleet.live("Secret", instance_id, "app")
    assert before is not None
    assert key is not None
    assert len(key["data"]["encryption-key"]) == 64  # 48 characters in base 64
    await fleet.gateway.patch("Secret", fleet.namespace(instance_id), "app", {"data": {"encryption-key": None}})
    # Two workers at once, each believing that it is the first; the one that comes second looks again.
    command = InstanceRef(instance_id=instance_id)
    await asyncio.gather(*(fleet.persist(fleet.activities.apply, command) for _ in range(2)))
    after = await fleet.live("Secret", instance_id, "database")
    added = await fleet.live("Secret", instance_id, "app")
    assert after is not None
    assert added is not None
    assert after["data"] == before["data"]
    assert added["data"]["encryption-key"] != key["data"]["encryption-key"]


@pytest.mark.scenario("P4")
async def test_fields_of_ours_are_taken_back_and_fields_of_others_left(fleet: Fleet) -> None:
    instance_id = await fleet.order()
    await applied(fleet, instance_id)
    namespace = fleet.namespace(instance_id)
    meddled = foreign(
        "Deployment", "app", namespace, metadata={"annotations": {"note": "theirs"}}, spec={"replicas": 3}
    )
    await asyncio.to_thread(
        fleet.gateway.request,
        "PATCH",
        f"/apis/apps/v1/namespaces/{namespace}/deployments/app",
        query={"fieldManager": "kubectl", "force": "true"},
        body=json.dumps(meddled).encode(),
        headers={"Content-Type": "application/apply-patch+yaml"},
    )
    assert ((await fleet.live("Deployment", instance_id, "app")) or {})["spec"]["replicas"] == 3
    await applied(fleet, instance_id)
    found = await fleet.live("Deployment", instance_id, "app")
    assert found is not None
    assert found["spec"]["replicas"] == 1
    assert found["metadata"]["annotations"]["note"] == "theirs"


@pytest.mark.scenario("P4")
@pytest.mark.parametrize("kind", ["Namespace", "ServiceAccount", "Secret"])
async def test_what_is_somebody_elses_is_never_adopted_nor_removed(fleet: Fleet, kind: str) -> None:
    instance_id = await fleet.order()
    namespace = fleet.namespace(instance_id)
    if kind == "Namespace":
        theirs = await fleet.gateway.create(foreign("Namespace", namespace))
    else:
        labels = {"app.kubernetes.io/managed-by": "berth", "berth/instance": instance_id}
        await fleet.gateway.create(foreign("Namespace", namespace, metadata={"labels": labels}))
        name = "instance" if kind == "ServiceAccount" else "database"
        theirs = await fleet.gateway.create(foreign(kind, name, namespace))
    with pytest.raises(ApplicationError) as refusal:
        await applied(fleet, instance_id)
    assert (refusal.value.type, refusal.value.non_retryable) == ("ForeignOwner", True)
    found = await fleet.live(kind, instance_id, theirs["metadata"]["name"])
    assert found is not None
    assert found["metadata"]["resourceVersion"] == theirs["metadata"]["resourceVersion"]
    if kind == "Namespace":
        removed = await fleet.run(fleet.activities.remove, InstanceRef(instance_id=instance_id))
        assert removed == Removed(clean=True)
        assert await fleet.live("Namespace", instance_id, namespace) is not None


@pytest.mark.scenario("P4")
async def test_conflicts_that_pass_are_borne(fleet: Fleet) -> None:
    instance_id = await fleet.order()
    await applied(fleet, instance_id)
    await fleet.fault("conflict", instance_id, count=2)

    await fleet.persist(fleet.activities.apply, InstanceRef(instance_id=instance_id))
    assert await fleet.faults() == []


@pytest.mark.scenario("P5")
async def test_a_busy_cluster_is_given_the_time_it_asks_for(fleet: Fleet) -> None:
    instance_id = await fleet.order()
    await fleet.fault("throttle", instance_id, count=3)
    await fleet.fault("server_error", instance_id, count=3)
    before = time.monotonic()
    await fleet.up(instance_id)
    # The simulated cluster asks for a second.
    assert time.monotonic() - before >= 1.0


@pytest.mark.scenario("P5")
async def test_a_refused_object_fails_at_once_with_the_field(fleet: Fleet) -> None:
    instance_id = await fleet.order(hostname="Not A Host Name")
    with pytest.raises(ApplicationError) as refusal:
        await applied(fleet, instance_id)
    assert (refusal.value.type, refusal.value.non_retryable) == ("Invalid", True)
    assert "spec.rules[0].host" in refusal.value.message


@pytest.mark.scenario("P5")
async def test_a_field_of_the_wrong_type_is_a_mistake_though_the_api_says_500(cluster: Cluster) -> None:
    gateway = KubernetesGateway.from_kubeconfig(cluster.kubeconfig)
    broken = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "broken", "namespace": "default"},
        "data": {"number": 1},
    }
    try:
        with pytest.raises(errors.ClusterError) as refusal:
            await gateway.apply(broken)
    finally:
        gateway.close()
    assert refusal.value.permanent
    assert "number" in refusal.value.message


@pytest.mark.scenario("P6")
async def test_a_full_quota_is_no_matter_of_trying_again(fleet: Fleet) -> None:
    instance_id = await fleet.order()
    await fleet.fault("quota", instance_id)
    with pytest.raises(ApplicationError) as refusal:
        await applied(fleet, instance_id)
    assert (refusal.value.type, refusal.value.non_retryable) == ("QuotaExceeded", True)
    assert fleet.namespace(instance_id) not in (refusal.value.type or "")
    assert '"' in refusal.value.message  # it names what was refused
    assert "exceeded quota" in refusal.value.message


@pytest.mark.scenario("P8")
async def test_an_image_that_comes_late_is_waited_for(fleet: Fleet) -> None:
    instance_id = await fleet.order()
    await fleet.fault("image_pull", instance_id, seconds=1.5)
    await fleet.up(instance_id)
    row = await fleet.row(instance_id)
    assert row["reason"] in (None, "ImagePull")


@pytest.mark.scenario("P37")
@pytest.mark.parametrize("fault", ["watch_close", "gone"])
async def test_a_watch_that_ends_is_taken_up_again(fleet: Fleet, fault: str) -> None:
    instance_id = await fleet.order()
    observer = Observer(fleet.gateway)
    subscription = observer.subscribe(fleet.namespace(instance_id))
    try:
        await eventually(lambda: observer.objects("Pod", "none") is not None)
        await fleet.fault(fault, seconds=1)
        await fleet.up(instance_id)

        async def seen() -> bool:
            pods = observer.objects("Pod", fleet.namespace(instance_id)) or []
            return len(pods) == 2 and all(pod["status"]["phase"] == "Running" for pod in pods)

        await eventually(seen)
        assert await subscription.wait(1)
    finally:
        observer.close()


async def test_a_watch_follows_what_is_deleted(fleet: Fleet) -> None:
    instance_id = await fleet.order()
    await fleet.up(instance_id)
    observer = Observer(fleet.gateway)
    observer.subscribe(fleet.namespace(instance_id))
    try:
        await eventually(lambda: observer.objects("Pod", fleet.namespace(instance_id)))
        await fleet.run(fleet.activities.remove, InstanceRef(instance_id=instance_id))
        await eventually(lambda: observer.objects("Pod", fleet.namespace(instance_id)) == [])
    finally:
        observer.close()


@pytest.mark.scenario("P18")
async def test_a_namespace_that_does_not_go_names_what_holds_it(fleet: Fleet) -> None:
    instance_id = await fleet.order()
    await applied(fleet, instance_id)
    await fleet.gateway.patch(
        "PersistentVolumeClaim",
        fleet.namespace(instance_id),
        "data",
        {"metadata": {"finalizers": ["example.com/keep"]}},
    )
    removed = await fleet.run(fleet.activities.remove, InstanceRef(instance_id=instance_id))
    assert not removed.clean
    assert "PersistentVolumeClaim/data (held by example.com/keep)" in removed.blocking
    held = await fleet.live("PersistentVolumeClaim", instance_id, "data")
    assert held is not None
    assert held["metadata"]["finalizers"] == ["example.com/keep"]
    await fleet.gateway.patch(
        "PersistentVolumeClaim", fleet.namespace(instance_id), "data", {"metadata": {"finalizers": None}}
    )
    again = await fleet.run(fleet.activities.remove, InstanceRef(instance_id=instance_id))
    assert again == Removed(clean=True)


async def test_removing_what_never_was_is_clean(fleet: Fleet) -> None:
    instance_id = await fleet.order()
    assert await fleet.run(fleet.activities.remove, InstanceRef(instance_id=instance_id)) == Removed(clean=True)


@pytest.mark.scenario("P20")
async def test_only_what_is_ours_and_nobodys_is_collected(fleet: Fleet) -> None:
    stopped, running, failed, unknown = [await fleet.order() for _ in range(4)]
    for instance_id in (stopped, running, failed, unknown):
        await applied(fleet, instance_id)
    await fleet.set(stopped, status="stopped")
    await fleet.set(failed, status="failed")
    await fleet.gateway.create(foreign("Namespace", f"other-{fleet.namespace(unknown)}"))
    async with fleet.database.worker.begin() as connection:
        await connection.exec_driver_sql("DELETE FROM instances WHERE id = %s", (unknown,))

    young = await fleet.run(fleet.activities.collect_orphans, CollectOrphans(grace_seconds=3600))
    assert young == Collected(removed=(), pending=())

    mine = {fleet.namespace(one) for one in (stopped, running, failed, unknown)}
    old = await fleet.run(fleet.activities.collect_orphans, CollectOrphans(grace_seconds=0, limit=100))
    assert set(old.removed) & mine == {fleet.namespace(failed), fleet.namespace(unknown)}
    assert await fleet.live("Namespace", stopped, fleet.namespace(stopped)) is not None
    assert await fleet.live("Namespace", running, fleet.namespace(running)) is not None
    assert await fleet.gateway.get("Namespace", None, f"other-{fleet.namespace(unknown)}") is not None


@pytest.mark.scenario("P21")
async def test_a_host_name_is_one_instances_before_anything_is_applied(fleet: Fleet) -> None:
    first = await fleet.order()
    host = (await fleet.row(first))["hostname"]
    with pytest.raises(sqlalchemy.exc.IntegrityError, match="uq_instances_hostname"):
        await fleet.order(hostname=host)
    namespaces = await fleet.gateway.list("Namespace", labels=f"berth/instance={first}")
    assert namespaces == []


@pytest.mark.scenario("P16")
@pytest.mark.parametrize("status", ["deleting", "deleted", "failed", "cleanup_pending"])
async def test_what_is_being_deleted_is_not_applied(fleet: Fleet, status: str) -> None:
    instance_id = await fleet.order(status=status)
    with pytest.raises(ApplicationError) as refusal:
        await applied(fleet, instance_id)
    assert (refusal.value.type, refusal.value.non_retryable) == ("ILLEGAL_MOVE", True)
    assert await fleet.live("Namespace", instance_id, fleet.namespace(instance_id)) is None


async def test_a_stop_that_is_repeated_remembers_what_ran(fleet: Fleet) -> None:
    instance_id = await fleet.order()
    await fleet.up(instance_id)
    await fleet.set(instance_id, status="ready")
    stop = fleet.operate(instance_id, OperationKind.STOP)
    for _ in range(2):
        await fleet.run(fleet.activities.scale_down, stop)
    assert (await fleet.row(instance_id))["restore_replicas"] == {"Deployment/app": 1, "StatefulSet/database": 1}
    assert await fleet.gateway.list("Pod", fleet.namespace(instance_id)) == []


async def test_a_backup_that_fails_is_a_failure_with_its_last_words(fleet: Fleet) -> None:
    instance_id = await fleet.order()
    await fleet.up(instance_id)
    await fleet.set(instance_id, status="ready")
    await fleet.fault("crash_loop", instance_id)
    backup = fleet.operate(instance_id, OperationKind.BACKUP)
    with pytest.raises(ApplicationError) as refusal:
        await asyncio.wait_for(fleet.run(fleet.activities.backup, backup), timeout=60)
    assert (refusal.value.type, refusal.value.non_retryable) == ("JobFailed", True)


async def test_nobody_at_home_is_tried_again_later(cluster: Cluster, tmp_path: Path) -> None:
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(re.sub(r"https://[\w.:]+", "https://127.0.0.1:1", cluster.kubeconfig.read_text()))
    gateway = KubernetesGateway.from_kubeconfig(kubeconfig, timeout_seconds=0.2)
    with pytest.raises(errors.Unavailable) as refusal:
        await gateway.list("Pod", "x")
    assert not refusal.value.permanent
    gateway.close()


async def test_waiting_for_an_instance_that_is_stopped_is_over_at_once(fleet: Fleet) -> None:
    instance_id = await fleet.order(status="stopped")
    await fleet.run(fleet.activities.await_ready, AwaitReady(instance_id=instance_id))


async def test_a_long_step_beats(fleet: Fleet) -> None:
    instance_id = await fleet.order()
    beats: list[tuple[Any, ...]] = []
    environment = ActivityEnvironment()
    environment.on_heartbeat = lambda *details: beats.append(details)
    await environment.run(fleet.activities.apply, InstanceRef(instance_id=instance_id))
    assert beats
