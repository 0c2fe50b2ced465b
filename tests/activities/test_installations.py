"""Several installations on one cluster, a database from yesterday, and what the orphan cleanup does with them."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

import psycopg
import pytest
import pytest_asyncio
from temporalio.exceptions import ApplicationError

from activities.adapters.kubernetes.informer import Informer
from activities.adapters.kubernetes.resources import KINDS, NAMESPACED_KINDS
from deploy.local.postgres import Postgres
from tests.support.databases import DatabaseFixture, fresh_database
from tests.support.instance_fixture import InstanceFixture, create_instance_fixture
from tests.support.sandboxes import ClusterEndpoint
from tests.support.wait import wait_until
from workflows import names
from workflows.ports.instances import CleanUpOrphans, DeletionOutcome, InstanceId, OperationKind, OrphanCleanupOutcome

DELETION_TIMEOUT = timedelta(seconds=20)
"""The real control plane takes some ten seconds for a namespace."""


@asynccontextmanager
async def installed(server: Postgres, cluster: ClusterEndpoint) -> AsyncIterator[InstanceFixture]:
    """Run an installation with a separate database and installation id."""
    async with fresh_database(server) as database:
        renew(database)
        async with create_instance_fixture(database, cluster, deletion_timeout=DELETION_TIMEOUT) as fixture:
            yield fixture


def renew(database: DatabaseFixture) -> None:
    """Give a database a new installation id, as an operator does after copying one."""
    with psycopg.connect(database.superuser_dsn()) as connection:
        connection.execute("UPDATE installation SET id = gen_random_uuid()")


@pytest_asyncio.fixture
async def production(postgres_server: Postgres, each_cluster: ClusterEndpoint) -> AsyncIterator[InstanceFixture]:
    async with installed(postgres_server, each_cluster) as fixture:
        yield fixture


@pytest_asyncio.fixture
async def staging(postgres_server: Postgres, each_cluster: ClusterEndpoint) -> AsyncIterator[InstanceFixture]:
    async with installed(postgres_server, each_cluster) as fixture:
        yield fixture


async def applied(instances: InstanceFixture) -> str:
    instance_id = await instances.insert_instance()
    await instances.run_activity_with_retries(instances.cluster_activities.apply, InstanceId(instance_id=instance_id))
    return instance_id


async def clean_up_orphans(instances: InstanceFixture, **order: int) -> OrphanCleanupOutcome:
    collected: OrphanCleanupOutcome = await instances.run_activity(
        instances.cluster_activities.clean_up_orphans, CleanUpOrphans(grace_seconds=0, **order)
    )
    return collected


async def stays(instances: InstanceFixture, instance_id: str) -> bool:
    namespace = await instances.get_live_object("Namespace", instance_id, instances.namespace(instance_id))
    return namespace is not None and "deletionTimestamp" not in namespace["metadata"]


async def test_an_installation_has_one_id_that_its_roles_cannot_change(database: DatabaseFixture) -> None:
    with psycopg.connect(database.superuser_dsn()) as connection:
        rows = connection.execute("SELECT id FROM installation").fetchall()
        assert [type(installation_id) for (installation_id,) in rows] == [uuid.UUID]
        with pytest.raises(psycopg.errors.UniqueViolation):
            connection.execute("INSERT INTO installation DEFAULT VALUES")
    for url in (database.worker_url, database.api_url):
        with (
            psycopg.connect(url.replace("+psycopg", "")) as connection,
            pytest.raises(psycopg.errors.InsufficientPrivilege),
        ):
            connection.execute("UPDATE installation SET id = gen_random_uuid()")


@pytest.mark.scenario("P4")
async def test_every_object_carries_the_installation(production: InstanceFixture) -> None:
    instance_id = await applied(production)
    namespace = production.namespace(instance_id)
    await wait_until(lambda: production.gateway.list("Pod", namespace), timeout=30)
    # Kubernetes makes the first two in every namespace, cert-manager the last.
    made_by_others = {("ConfigMap", "kube-root-ca.crt"), ("ServiceAccount", "default"), ("Secret", "app-tls")}
    unlabelled = set()
    for kind in NAMESPACED_KINDS:
        for manifest in await production.gateway.list(kind, namespace):
            if manifest["metadata"].get("labels", {}).get("berth/installation") != production.installation_id:
                unlabelled.add((kind, manifest["metadata"]["name"]))
    assert unlabelled <= made_by_others


@pytest.mark.scenario("P20")
async def test_only_what_the_database_knows_as_failed_or_deleted_is_collected(production: InstanceFixture) -> None:
    stopped, running, failed, unknown = [await applied(production) for _ in range(4)]
    await production.update_instance(stopped, status="stopped")
    await production.update_instance(failed, status="failed")
    await production.forget(unknown)

    young = await production.run_activity(
        production.cluster_activities.clean_up_orphans, CleanUpOrphans(grace_seconds=3600)
    )
    assert young == OrphanCleanupOutcome()
    assert await production.alerts() == []

    old = await clean_up_orphans(production)
    assert old == OrphanCleanupOutcome(
        removed=(production.namespace(failed),), unknown=(production.namespace(unknown),)
    )
    assert [await stays(production, instance_id) for instance_id in (stopped, running, unknown)] == [True, True, True]


@pytest.mark.scenario("P20")
async def test_the_instances_of_another_installation_are_not_touched(
    production: InstanceFixture, staging: InstanceFixture
) -> None:
    theirs = await applied(production)
    await production.update_instance(theirs, status="failed")
    before = await production.get_live_object("Namespace", theirs, production.namespace(theirs))

    # The other database knows the very same instance as deleted, as a copy of it may.
    await staging.insert_instance(id=theirs, namespace=production.namespace(theirs), status="deleted")
    assert await clean_up_orphans(staging) == OrphanCleanupOutcome()
    assert await staging.alerts() == []

    await staging.update_instance(theirs, status="ready")
    removed = await staging.run_activity(staging.cluster_activities.delete_namespace, InstanceId(instance_id=theirs))
    assert removed == DeletionOutcome(is_verified=True)
    for step, kind in (
        (staging.cluster_activities.scale_down, OperationKind.STOP),
        (staging.cluster_activities.restart, OperationKind.RESTART),
        (staging.cluster_activities.run_backup, OperationKind.BACKUP),
    ):
        order = staging.operate(theirs, kind)
        with pytest.raises(ApplicationError) as raised:
            await staging.run_activity(step, order)
        assert (raised.value.type, raised.value.non_retryable) == ("NameConflict", True)
    await staging.update_instance(theirs, status="provisioning")
    with pytest.raises(ApplicationError) as raised:
        await staging.run_activity(staging.cluster_activities.apply, InstanceId(instance_id=theirs))
    assert (raised.value.type, raised.value.non_retryable) == ("NameConflict", True)
    assert await production.get_live_object("Namespace", theirs, production.namespace(theirs)) == before


async def test_the_watches_see_nothing_of_another_installation(
    production: InstanceFixture, staging: InstanceFixture
) -> None:
    mine, theirs = await applied(production), await applied(staging)
    observer = Informer(production.gateway, production.installation_id)
    observer.subscribe(production.namespace(mine))
    try:
        await wait_until(lambda: observer.objects("Pod", production.namespace(mine)), timeout=30)
        await wait_until(lambda: staging.gateway.list("Pod", staging.namespace(theirs)), timeout=30)
        assert observer.objects("Pod", staging.namespace(theirs)) == []
    finally:
        observer.close()


@pytest.mark.scenario("P20")
async def test_a_database_from_yesterday_reports_what_was_sold_since_and_deletes_nothing(
    production: InstanceFixture,
) -> None:
    instance_ids = [await applied(production) for _ in range(2)]
    for instance_id in instance_ids:
        await production.forget(instance_id)

    expected = OrphanCleanupOutcome(
        unknown=tuple(sorted(production.namespace(instance_id) for instance_id in instance_ids))
    )
    assert [await clean_up_orphans(production) for _ in range(2)] == [expected, expected]
    assert [await stays(production, instance_id) for instance_id in instance_ids] == [True, True]
    (alert,) = await production.alerts()
    assert alert["severity"] == "critical"
    assert all(production.namespace(instance_id) in alert["details"] for instance_id in instance_ids)


@pytest.mark.scenario("P20")
async def test_too_many_orphans_at_once_pause_the_cleanup_until_operators_approve(
    production: InstanceFixture,
) -> None:
    failed = [await applied(production) for _ in range(3)]
    for instance_id in failed:
        await production.update_instance(instance_id, status="failed")
    namespaces = tuple(sorted(production.namespace(instance_id) for instance_id in failed))

    assert await clean_up_orphans(production, max_orphans=2) == OrphanCleanupOutcome(paused=namespaces)
    assert [await stays(production, instance_id) for instance_id in failed] == [True, True, True]
    (alert,) = await production.alerts()
    assert f"start the workflow {names.ORPHAN_CLEANUP} with max_orphans 3" in alert["details"]

    approved = await clean_up_orphans(production, max_orphans=3)
    assert (sorted(approved.removed), approved.paused) == (list(namespaces), ())


@pytest.mark.scenario("P18")
async def test_a_stuck_namespace_does_not_starve_others(postgres_server: Postgres, cluster: ClusterEndpoint) -> None:
    async with installed(postgres_server, cluster) as instances:
        stuck = await applied(instances)
        where = instances.namespace(stuck)
        held = {"metadata": {"finalizers": ["example.com/keep"]}}
        await instances.gateway.patch("PersistentVolumeClaim", where, "data", held)
        await instances.gateway.delete("Namespace", None, where)
        await instances.update_instance(stuck, status="failed")
        fresh = await applied(instances)
        await instances.update_instance(fresh, status="failed")

        outcome = await clean_up_orphans(instances, limit=1, max_orphans=1)
        assert outcome == OrphanCleanupOutcome(removed=(instances.namespace(fresh),), pending=(where,))
        await instances.gateway.patch("PersistentVolumeClaim", where, "data", {"metadata": {"finalizers": None}})


def test_every_kind_of_an_instance_is_one_that_is_looked_for() -> None:
    assert set(NAMESPACED_KINDS) <= set(KINDS)
