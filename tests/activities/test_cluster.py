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
from activities.adapters.kubernetes.client import KubernetesClient
from activities.adapters.kubernetes.informer import Informer
from tests.support.databases import DatabaseFixture
from tests.support.instance_fixture import InstanceFixture, create_instance_fixture
from tests.support.sandboxes import ClusterEndpoint
from tests.support.wait import wait_until
from workflows.ports.instances import (
    AwaitReady,
    DeletionOutcome,
    InstanceId,
    OperationKind,
)


@pytest_asyncio.fixture
async def instances(database: DatabaseFixture, cluster: ClusterEndpoint) -> AsyncIterator[InstanceFixture]:
    async with create_instance_fixture(
        database, cluster, failure_threshold=timedelta(seconds=3), deletion_timeout=timedelta(seconds=3)
    ) as fixture:
        yield fixture


def foreign(kind: str, name: str, namespace: str | None = None, **more: Any) -> dict[str, Any]:
    versions = {"Deployment": "apps/v1"}
    metadata = {"name": name, **({"namespace": namespace} if namespace else {}), **more.pop("metadata", {})}
    return {"apiVersion": versions.get(kind, "v1"), "kind": kind, "metadata": metadata, **more}


async def applied(instances: InstanceFixture, instance_id: str) -> None:
    await instances.run_activity(instances.cluster_activities.apply, InstanceId(instance_id=instance_id))


@pytest.mark.scenario("P3")
async def test_lost_responses_do_not_change_the_result(instances: InstanceFixture) -> None:
    instance_id = await instances.insert_instance()
    await instances.inject_fault("lost_reply", instance_id, count=6)
    await instances.provision(instance_id)
    assert await instances.faults() == []
    deployments = await instances.gateway.list("Deployment", instances.namespace(instance_id))
    assert [manifest["metadata"]["generation"] for manifest in deployments] == [1]
    secrets = await instances.gateway.list("Secret", instances.namespace(instance_id), labels="berth/instance")
    assert sorted(manifest["metadata"]["name"] for manifest in secrets) == ["app", "database"]


@pytest.mark.scenario("P33")
async def test_keys_are_made_once_and_only_missing_ones_are_added(instances: InstanceFixture) -> None:
    instance_id = await instances.insert_instance()
    await applied(instances, instance_id)
    before = await instances.get_live_object("Secret", instance_id, "database")
    key = await instances.get_live_object("Secret", instance_id, "app")
    assert before is not None
    assert key is not None
    assert len(key["data"]["encryption-key"]) == 64  # 48 characters in base 64
    await instances.gateway.patch("Secret", instances.namespace(instance_id), "app", {"data": {"encryption-key": None}})
    # Two workers at once, each believing that it is the first; the one that comes second looks again.
    command = InstanceId(instance_id=instance_id)
    await asyncio.gather(
        *(instances.run_activity_with_retries(instances.cluster_activities.apply, command) for _ in range(2))
    )
    after = await instances.get_live_object("Secret", instance_id, "database")
    added = await instances.get_live_object("Secret", instance_id, "app")
    assert after is not None
    assert added is not None
    assert after["data"] == before["data"]
    assert added["data"]["encryption-key"] != key["data"]["encryption-key"]


@pytest.mark.scenario("P4")
async def test_fields_of_ours_are_taken_back_and_fields_of_others_left(instances: InstanceFixture) -> None:
    instance_id = await instances.insert_instance()
    await applied(instances, instance_id)
    namespace = instances.namespace(instance_id)
    meddled = foreign(
        "Deployment", "app", namespace, metadata={"annotations": {"note": "theirs"}}, spec={"replicas": 3}
    )
    await asyncio.to_thread(
        instances.gateway.request,
        "PATCH",
        f"/apis/apps/v1/namespaces/{namespace}/deployments/app",
        query={"fieldManager": "kubectl", "force": "true"},
        body=json.dumps(meddled).encode(),
        headers={"Content-Type": "application/apply-patch+yaml"},
    )
    assert ((await instances.get_live_object("Deployment", instance_id, "app")) or {})["spec"]["replicas"] == 3
    await applied(instances, instance_id)
    manifest = await instances.get_live_object("Deployment", instance_id, "app")
    assert manifest is not None
    assert manifest["spec"]["replicas"] == 1
    assert manifest["metadata"]["annotations"]["note"] == "theirs"


@pytest.mark.scenario("P4")
@pytest.mark.parametrize("kind", ["Namespace", "ServiceAccount", "Secret"])
async def test_objects_of_another_owner_are_never_adopted_nor_deleted(instances: InstanceFixture, kind: str) -> None:
    instance_id = await instances.insert_instance()
    namespace = instances.namespace(instance_id)
    if kind == "Namespace":
        theirs = await instances.gateway.create(foreign("Namespace", namespace))
    else:
        labels = {
            "app.kubernetes.io/managed-by": "berth",
            "berth/installation": instances.installation_id,
            "berth/instance": instance_id,
        }
        await instances.gateway.create(foreign("Namespace", namespace, metadata={"labels": labels}))
        name = "instance" if kind == "ServiceAccount" else "database"
        theirs = await instances.gateway.create(foreign(kind, name, namespace))
    with pytest.raises(ApplicationError) as raised:
        await applied(instances, instance_id)
    assert (raised.value.type, raised.value.non_retryable) == ("NameConflict", True)
    manifest = await instances.get_live_object(kind, instance_id, theirs["metadata"]["name"])
    assert manifest is not None
    assert manifest["metadata"]["resourceVersion"] == theirs["metadata"]["resourceVersion"]
    if kind == "Namespace":
        removed = await instances.run_activity(
            instances.cluster_activities.delete_namespace, InstanceId(instance_id=instance_id)
        )
        assert removed == DeletionOutcome(is_verified=True)
        assert await instances.get_live_object("Namespace", instance_id, namespace) is not None


@pytest.mark.scenario("P4")
async def test_passing_conflicts_are_retried(instances: InstanceFixture) -> None:
    instance_id = await instances.insert_instance()
    await applied(instances, instance_id)
    await instances.inject_fault("conflict", instance_id, count=2)

    await instances.run_activity_with_retries(instances.cluster_activities.apply, InstanceId(instance_id=instance_id))
    assert await instances.faults() == []


@pytest.mark.scenario("P5")
async def test_a_throttled_request_is_repeated_after_the_requested_delay(instances: InstanceFixture) -> None:
    instance_id = await instances.insert_instance()
    await instances.inject_fault("throttle", instance_id, count=1)
    before = time.monotonic()
    assert await instances.gateway.get("ConfigMap", instances.namespace(instance_id), "missing") is None
    # The proxy answers `Retry-After: 1`. Without it the first repetition follows within 0.2 s.
    assert time.monotonic() - before >= 1.0
    assert await instances.faults() == []


@pytest.mark.scenario("P5")
async def test_a_busy_cluster_delays_an_instance_and_fails_nothing(instances: InstanceFixture) -> None:
    instance_id = await instances.insert_instance()
    await instances.inject_fault("throttle", instance_id, count=3)
    await instances.inject_fault("server_error", instance_id, count=3)
    await instances.provision(instance_id)
    assert await instances.faults() == []


@pytest.mark.scenario("P5")
async def test_a_refused_object_fails_at_once_with_the_field(instances: InstanceFixture) -> None:
    instance_id = await instances.insert_instance(hostname="Not A Host Name")
    with pytest.raises(ApplicationError) as raised:
        await applied(instances, instance_id)
    assert (raised.value.type, raised.value.non_retryable) == ("Invalid", True)
    assert "spec.rules[0].host" in raised.value.message


@pytest.mark.scenario("P5")
async def test_a_field_of_the_wrong_type_is_a_mistake_though_the_api_says_500(cluster: ClusterEndpoint) -> None:
    gateway = KubernetesClient.from_kubeconfig(cluster.kubeconfig)
    invalid = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "broken", "namespace": "default"},
        "data": {"number": 1},
    }
    try:
        with pytest.raises(errors.ClusterError) as raised:
            await gateway.apply(invalid)
    finally:
        gateway.close()
    assert raised.value.is_permanent
    assert "number" in raised.value.message


@pytest.mark.scenario("P6")
async def test_a_full_quota_is_no_matter_of_trying_again(instances: InstanceFixture) -> None:
    instance_id = await instances.insert_instance()
    await instances.inject_fault("quota", instance_id)
    with pytest.raises(ApplicationError) as raised:
        await applied(instances, instance_id)
    assert (raised.value.type, raised.value.non_retryable) == ("QuotaExceeded", True)

    assert '"' in raised.value.message  # it names what was refused
    assert "exceeded quota" in raised.value.message


@pytest.mark.scenario("P8")
async def test_an_image_that_comes_late_is_waited_for(instances: InstanceFixture) -> None:
    instance_id = await instances.insert_instance()
    await instances.inject_fault("image_pull", instance_id, seconds=1.5)
    await instances.provision(instance_id)
    deployment = await instances.get_live_object("Deployment", instance_id, "app")
    assert deployment is not None
    assert deployment["status"]["availableReplicas"] == 1


@pytest.mark.scenario("P37")
@pytest.mark.parametrize("fault", ["watch_close", "gone"])
async def test_a_watch_that_ends_is_taken_up_again(instances: InstanceFixture, fault: str) -> None:
    instance_id = await instances.insert_instance()
    observer = Informer(instances.gateway, instances.installation_id)
    subscription = observer.subscribe(instances.namespace(instance_id))
    try:
        await wait_until(lambda: observer.objects("Pod", "none") is not None)
        await instances.inject_fault(fault, seconds=1)
        await instances.provision(instance_id)

        async def has_condition() -> bool:
            pods = observer.objects("Pod", instances.namespace(instance_id)) or []
            return len(pods) == 2 and all(pod["status"]["phase"] == "Running" for pod in pods)

        await wait_until(has_condition)
        assert await subscription.wait(1)
    finally:
        observer.close()


async def test_a_watch_follows_what_is_deleted(instances: InstanceFixture) -> None:
    instance_id = await instances.insert_instance()
    await instances.provision(instance_id)
    observer = Informer(instances.gateway, instances.installation_id)
    observer.subscribe(instances.namespace(instance_id))
    try:
        await wait_until(lambda: observer.objects("Pod", instances.namespace(instance_id)))
        await instances.run_activity(instances.cluster_activities.delete_namespace, InstanceId(instance_id=instance_id))
        await wait_until(lambda: observer.objects("Pod", instances.namespace(instance_id)) == [])
    finally:
        observer.close()


@pytest.mark.scenario("P18")
async def test_a_namespace_that_does_not_go_names_what_holds_it(instances: InstanceFixture) -> None:
    instance_id = await instances.insert_instance()
    await applied(instances, instance_id)
    await instances.gateway.patch(
        "PersistentVolumeClaim",
        instances.namespace(instance_id),
        "data",
        {"metadata": {"finalizers": ["example.com/keep"]}},
    )
    removed = await instances.run_activity(
        instances.cluster_activities.delete_namespace, InstanceId(instance_id=instance_id)
    )
    assert not removed.is_verified
    assert "PersistentVolumeClaim/data (held by example.com/keep)" in removed.blockers
    held = await instances.get_live_object("PersistentVolumeClaim", instance_id, "data")
    assert held is not None
    assert held["metadata"]["finalizers"] == ["example.com/keep"]
    await instances.gateway.patch(
        "PersistentVolumeClaim", instances.namespace(instance_id), "data", {"metadata": {"finalizers": None}}
    )
    repeated = await instances.run_activity(
        instances.cluster_activities.delete_namespace, InstanceId(instance_id=instance_id)
    )
    assert repeated == DeletionOutcome(is_verified=True)


async def test_removing_what_never_was_is_clean(instances: InstanceFixture) -> None:
    instance_id = await instances.insert_instance()
    assert await instances.run_activity(
        instances.cluster_activities.delete_namespace, InstanceId(instance_id=instance_id)
    ) == DeletionOutcome(is_verified=True)


@pytest.mark.scenario("P21")
async def test_a_host_name_is_one_instances_before_anything_is_applied(instances: InstanceFixture) -> None:
    first = await instances.insert_instance()
    host = (await instances.row(first))["hostname"]
    with pytest.raises(sqlalchemy.exc.IntegrityError, match="uq_instances_hostname"):
        await instances.insert_instance(hostname=host)
    namespaces = await instances.gateway.list("Namespace", labels=f"berth/instance={first}")
    assert namespaces == []


@pytest.mark.scenario("P16")
@pytest.mark.parametrize("status", ["deleting", "deleted", "failed", "cleanup_pending"])
async def test_what_is_being_deleted_is_not_applied(instances: InstanceFixture, status: str) -> None:
    instance_id = await instances.insert_instance(status=status)
    with pytest.raises(ApplicationError) as raised:
        await applied(instances, instance_id)
    assert (raised.value.type, raised.value.non_retryable) == ("ILLEGAL_MOVE", True)
    assert await instances.get_live_object("Namespace", instance_id, instances.namespace(instance_id)) is None


async def test_a_stop_that_is_repeated_remembers_what_ran(instances: InstanceFixture) -> None:
    instance_id = await instances.insert_instance()
    await instances.provision(instance_id)
    await instances.update_instance(instance_id, status="ready")
    stop = instances.operate(instance_id, OperationKind.STOP)
    for _ in range(2):
        await instances.run_activity(instances.cluster_activities.scale_down, stop)
    assert (await instances.row(instance_id))["saved_replicas"] == {"Deployment/app": 1, "StatefulSet/database": 1}
    assert await instances.gateway.list("Pod", instances.namespace(instance_id)) == []


async def test_an_unreachable_cluster_is_retried_later(cluster: ClusterEndpoint, tmp_path: Path) -> None:
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(re.sub(r"https://[\w.:]+", "https://127.0.0.1:1", cluster.kubeconfig.read_text()))
    gateway = KubernetesClient.from_kubeconfig(kubeconfig, timeout_seconds=0.2)
    with pytest.raises(errors.ClusterUnavailable) as raised:
        await gateway.list("Pod", "x")
    assert not raised.value.is_permanent
    gateway.close()


async def test_waiting_for_an_instance_that_is_stopped_is_over_at_once(instances: InstanceFixture) -> None:
    instance_id = await instances.insert_instance(status="stopped")
    await instances.run_activity(instances.cluster_activities.await_ready, AwaitReady(instance_id=instance_id))


async def test_a_long_step_beats(instances: InstanceFixture) -> None:
    instance_id = await instances.insert_instance()
    beats: list[tuple[Any, ...]] = []
    environment = ActivityEnvironment()
    environment.on_heartbeat = lambda *details: beats.append(details)
    await environment.run(instances.cluster_activities.apply, InstanceId(instance_id=instance_id))
    assert beats
