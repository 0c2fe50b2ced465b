"""Instances that were provisioned under another revision of their template than the one that the worker runs."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest

from activities.adapters.kubernetes.ownership import Owner
from activities.service_templates.registry import ServiceTemplateRegistry
from tests.support.databases import DatabaseFixture
from tests.support.instance_fixture import LARGE, TEMPLATES, InstanceFixture, create_instance_fixture
from tests.support.instance_workers import run_operation, start_provisioning, workers
from tests.support.sandboxes import ClusterEndpoint
from tests.support.template_revisions import ADDED_OBJECTS, later_revision
from tests.support.temporal import TemporalFixture
from workflows.ports.instances import OperationKind, OperationStatus


@dataclass(frozen=True)
class Releases:
    """Runs workers of one release after the other on the same instances."""

    temporal: TemporalFixture
    database: DatabaseFixture
    cluster: ClusterEndpoint

    @asynccontextmanager
    async def run(
        self, templates: ServiceTemplateRegistry, before: InstanceFixture | None = None
    ) -> AsyncIterator[InstanceFixture]:
        async with create_instance_fixture(
            self.database,
            self.cluster,
            failure_threshold=timedelta(seconds=20),
            deletion_timeout=timedelta(seconds=40),
            templates=templates,
        ) as instances:
            if before is not None:
                instances.provisioning_inputs = before.provisioning_inputs
            async with workers(self.temporal, instances):
                yield instances

    async def provision(self, templates: ServiceTemplateRegistry) -> tuple[InstanceFixture, str]:
        """Provision an instance with the workers of a release that has these templates."""
        async with self.run(templates) as instances:
            instance_id = await instances.insert_instance()
            assert (await (await start_provisioning(self.temporal, instances, instance_id)).result()).ready
            return instances, instance_id


@pytest.fixture
def releases(temporal: TemporalFixture, database: DatabaseFixture, each_cluster: ClusterEndpoint) -> Releases:
    return Releases(temporal, database, each_cluster)


async def operate(
    releases: Releases, instances: InstanceFixture, instance_id: str, kind: OperationKind, status: str
) -> None:
    """Run an operation; it succeeds, and the instance has the status afterwards."""
    resources = LARGE if kind is OperationKind.RESIZE else None
    outcome = await run_operation(releases.temporal, instances.operate(instance_id, kind, resources))
    assert (kind, outcome.status, outcome.reason) == (kind, OperationStatus.SUCCEEDED, None)
    assert (await instances.row(instance_id))["status"] == status


async def added_objects(instances: InstanceFixture, instance_id: str) -> set[tuple[str, str]]:
    """Return which objects of the later revision the instance has."""
    owner = Owner(installation_id=instances.installation_id, instance_id=instance_id)
    return ADDED_OBJECTS & {
        (kind, item["metadata"]["name"])
        for kind in {kind for kind, _ in ADDED_OBJECTS}
        for item in await instances.gateway.list(kind, instances.namespace(instance_id), labels=owner.selector)
    }


async def available(instances: InstanceFixture, instance_id: str) -> dict[str, int]:
    """Return the available replicas of the Deployments."""
    stored = await instances.gateway.list("Deployment", instances.namespace(instance_id))
    return {item["metadata"]["name"]: (item.get("status") or {}).get("availableReplicas", 0) for item in stored}


@pytest.mark.parametrize("kind", [OperationKind.RESIZE, OperationKind.RESTART])
async def test_an_operation_on_a_running_instance_applies_the_objects_that_a_release_added(
    releases: Releases, tmp_path: Path, kind: OperationKind
) -> None:
    provisioned, instance_id = await releases.provision(TEMPLATES)
    async with releases.run(later_revision(tmp_path), provisioned) as instances:
        assert await added_objects(instances, instance_id) == set()
        await operate(releases, instances, instance_id, kind, "ready")
        assert await added_objects(instances, instance_id) == ADDED_OBJECTS
        assert await available(instances, instance_id) == {"app": 1, "worker": 1}


async def test_an_instance_that_predates_a_release_is_suspended_and_resumed(releases: Releases, tmp_path: Path) -> None:
    provisioned, instance_id = await releases.provision(TEMPLATES)
    async with releases.run(later_revision(tmp_path), provisioned) as instances:
        await operate(releases, instances, instance_id, OperationKind.SUSPEND, "suspended")
        assert await added_objects(instances, instance_id) == set()
        assert await instances.gateway.list("Pod", instances.namespace(instance_id)) == []
        await operate(releases, instances, instance_id, OperationKind.RESUME, "ready")
        assert await added_objects(instances, instance_id) == ADDED_OBJECTS
        assert await available(instances, instance_id) == {"app": 1, "worker": 1}


async def test_a_stopped_instance_that_predates_a_release_is_resized_and_started(
    releases: Releases, tmp_path: Path
) -> None:
    provisioned, instance_id = await releases.provision(TEMPLATES)
    async with releases.run(later_revision(tmp_path), provisioned) as instances:
        await operate(releases, instances, instance_id, OperationKind.STOP, "stopped")
        await operate(releases, instances, instance_id, OperationKind.RESIZE, "stopped")
        assert await instances.gateway.list("Pod", instances.namespace(instance_id)) == []
        await operate(releases, instances, instance_id, OperationKind.START, "ready")
        assert await available(instances, instance_id) == {"app": 1, "worker": 1}


@pytest.mark.parametrize("kind", [OperationKind.RESIZE, OperationKind.RESTART])
async def test_an_operation_deletes_what_a_release_removed_and_keeps_volumes_secrets_and_others_objects(
    releases: Releases, tmp_path: Path, kind: OperationKind
) -> None:
    provisioned, instance_id = await releases.provision(later_revision(tmp_path))
    async with releases.run(TEMPLATES, provisioned) as instances:
        namespace = instances.namespace(instance_id)
        labels = (await instances.get_live_object("Deployment", instance_id, "app") or {})["metadata"]["labels"]
        # An operator's copy of an object of the instance, with its labels.
        metadata = {"name": "notes", "namespace": namespace, "labels": labels}
        await asyncio.to_thread(
            instances.gateway.request,
            "POST",
            f"/api/v1/namespaces/{namespace}/configmaps",
            query={"fieldManager": "kubectl"},
            body=json.dumps({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata}).encode(),
            headers={"Content-Type": "application/json"},
        )
        await operate(releases, instances, instance_id, kind, "ready")
        assert await added_objects(instances, instance_id) == {("PersistentVolumeClaim", "queue"), ("Secret", "worker")}
        assert await available(instances, instance_id) == {"app": 1}
        assert await instances.get_live_object("ConfigMap", instance_id, "notes") is not None


async def test_a_workload_that_a_release_removed_is_stopped_with_the_others_and_not_started_again(
    releases: Releases, tmp_path: Path
) -> None:
    provisioned, instance_id = await releases.provision(later_revision(tmp_path))
    async with releases.run(TEMPLATES, provisioned) as instances:
        await operate(releases, instances, instance_id, OperationKind.SUSPEND, "suspended")
        assert await instances.gateway.list("Pod", instances.namespace(instance_id)) == []
        cron_jobs = await instances.gateway.list("CronJob", instances.namespace(instance_id))
        assert {item["metadata"]["name"]: item["spec"]["suspend"] for item in cron_jobs} == {
            "backup": True,
            "compact": True,
        }
        await operate(releases, instances, instance_id, OperationKind.RESUME, "ready")
        assert await available(instances, instance_id) == {"app": 1}
        await operate(releases, instances, instance_id, OperationKind.DELETE, "deleted")
        assert await instances.get_live_object("Namespace", instance_id, instances.namespace(instance_id)) is None


async def test_an_instance_whose_version_a_release_removed_is_suspended(releases: Releases) -> None:
    provisioned, instance_id = await releases.provision(TEMPLATES)
    await provisioned.update_instance(instance_id, version="0.0.1")
    async with releases.run(TEMPLATES, provisioned) as instances:
        await operate(releases, instances, instance_id, OperationKind.SUSPEND, "suspended")
        assert await instances.gateway.list("Pod", instances.namespace(instance_id)) == []
