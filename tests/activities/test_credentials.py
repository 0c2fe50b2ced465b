"""The first administrators' credentials: made once in the cluster, sealed in the database, erased at the end."""

from __future__ import annotations

import base64
import re
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import bcrypt
import pytest
import pytest_asyncio
from sqlalchemy import text
from temporalio.exceptions import ApplicationError

from activities.cluster import KubernetesClusterActivities
from db.queries import credentials
from db.session import session_factory
from tests.support.databases import DatabaseFixture
from tests.support.instance_fixture import FIELD_ENCRYPTION, TEMPLATES, InstanceFixture, create_instance_fixture
from tests.support.sandboxes import ClusterEndpoint
from tests.support.template_revisions import earlier_revision
from workflows.ports.instances import FinishOperation, InstanceId, OperationKind, OperationStatus, RecordReady
from workflows.rules.instance import InstanceStatus

N8N_ACCEPTS = re.compile(r"\$2[aby]\$\d{2}\$[./A-Za-z0-9]{53}")
"""``BCRYPT_HASH_RE`` of n8n 2.38.5, ``owner.instance-settings-loader.js``: another text ends its start."""


@pytest_asyncio.fixture
async def instances(database: DatabaseFixture, cluster: ClusterEndpoint) -> AsyncIterator[InstanceFixture]:
    async with create_instance_fixture(
        database, cluster, failure_threshold=timedelta(seconds=3), deletion_timeout=timedelta(seconds=3)
    ) as fixture:
        yield fixture


async def secret(instances: InstanceFixture, instance_id: str) -> dict[str, str]:
    secret = await instances.get_live_object("Secret", instance_id, "app")
    assert secret is not None
    return {key: base64.b64decode(value).decode() for key, value in secret["data"].items()}


async def rows(instances: InstanceFixture, instance_id: str) -> list[dict[str, Any]]:
    async with instances.database.worker.connect() as connection:
        query = text("SELECT * FROM instance_credentials WHERE instance_id = :id")
        return [dict(row) for row in (await connection.execute(query, {"id": instance_id})).mappings()]


async def stored_credentials(instances: InstanceFixture, instance_id: str) -> dict[str, str]:
    (row,) = await rows(instances, instance_id)
    return FIELD_ENCRYPTION.decrypt_mapping(row["sealed"], purpose=credentials.purpose(instance_id))


async def apply(instances: InstanceFixture, instance_id: str) -> None:
    await instances.run_activity(instances.cluster_activities.apply, InstanceId(instance_id=instance_id))


@pytest.mark.scenario("P33")
@pytest.mark.parametrize(
    ("service", "username", "password", "page"),
    [("n8n", "owner-email", "owner-password", ""), ("wordpress", "admin-email", "admin-password", "/wp-login.php")],
)
async def test_what_is_kept_for_the_customer_is_what_the_application_starts_with(
    instances: InstanceFixture, service: str, username: str, password: str, page: str
) -> None:
    instance_id = await instances.insert_instance(service, email="Ada.Lovelace@Example.com")
    await apply(instances, instance_id)
    values = await secret(instances, instance_id)
    row = await instances.row(instance_id)
    assert values[username] == "ada.lovelace@example.com"
    assert await stored_credentials(instances, instance_id) == {
        "url": f"https://{row['hostname']}{page}",
        "username": values[username],
        "password": values[password],
    }
    if "owner-password-hash" in values:
        assert N8N_ACCEPTS.fullmatch(values["owner-password-hash"])
        assert bcrypt.checkpw(values["owner-password"].encode(), values["owner-password-hash"].encode())
    (stored,) = await rows(instances, instance_id)
    assert values[password] not in str(dict(stored))
    # A retry creates no new credentials.
    await apply(instances, instance_id)
    assert await secret(instances, instance_id) == values
    assert (await stored_credentials(instances, instance_id))["password"] == values[password]


async def test_an_owner_at_an_international_domain_is_named_in_ascii(instances: InstanceFixture) -> None:
    instance_id = await instances.insert_instance("wordpress", email="Info@Müller.de")
    await apply(instances, instance_id)
    assert (await secret(instances, instance_id))["admin-email"] == "info@xn--mller-kva.de"


@pytest.mark.scenario("P33")
async def test_a_hash_that_is_missing_is_made_of_the_password_that_exists(instances: InstanceFixture) -> None:
    instance_id = await instances.insert_instance()
    await apply(instances, instance_id)
    before = await secret(instances, instance_id)
    missing = {"data": {"owner-password-hash": None}}
    await instances.gateway.patch("Secret", instances.namespace(instance_id), "app", missing)
    await apply(instances, instance_id)
    after = await secret(instances, instance_id)
    assert after["owner-password"] == before["owner-password"]
    assert bcrypt.checkpw(after["owner-password"].encode(), after["owner-password-hash"].encode())


async def test_the_parameter_of_a_service_names_another_administrator(instances: InstanceFixture) -> None:
    instance_id = await instances.insert_instance("wordpress", {"admin_email": "editor@example.org"})
    await apply(instances, instance_id)
    assert (await stored_credentials(instances, instance_id))["username"] == "editor@example.org"


async def test_a_retry_does_not_bring_handed_over_credentials_back(instances: InstanceFixture) -> None:
    instance_id = await instances.insert_instance()
    await apply(instances, instance_id)
    async with instances.database.worker.begin() as connection:
        await connection.execute(text("UPDATE instance_credentials SET sealed = NULL, handed_over_at = now()"))
    await apply(instances, instance_id)
    (row,) = await rows(instances, instance_id)
    assert row["sealed"] is None


@pytest.mark.parametrize("kind", [OperationKind.RESTART, OperationKind.START, OperationKind.RESIZE])
async def test_credentials_that_a_revision_adds_are_stored_when_an_operation_applies_it(
    database: DatabaseFixture, cluster: ClusterEndpoint, tmp_path: Path, kind: OperationKind
) -> None:
    async with create_instance_fixture(database, cluster, templates=earlier_revision(tmp_path)) as instances:
        instance_id = await instances.insert_instance()
        await apply(instances, instance_id)
        assert "owner-password" not in await secret(instances, instance_id)
        assert await rows(instances, instance_id) == []
        await instances.set_column(instance_id, "status", "stopped" if kind is OperationKind.START else "ready")
    async with create_instance_fixture(database, cluster) as upgraded:
        upgraded.provisioning_inputs = instances.provisioning_inputs
        step = {
            OperationKind.RESTART: upgraded.cluster_activities.restart,
            OperationKind.START: upgraded.cluster_activities.scale_up,
            OperationKind.RESIZE: upgraded.cluster_activities.resize,
        }[kind]
        await upgraded.run_activity(step, upgraded.operate(instance_id, kind))
        values = await secret(upgraded, instance_id)
        stored = await stored_credentials(upgraded, instance_id)
        assert (stored["username"], stored["password"]) == (values["owner-email"], values["owner-password"])
        # What was handed over stays handed over.
        async with database.worker.begin() as connection:
            await connection.execute(text("UPDATE instance_credentials SET sealed = NULL, handed_over_at = now()"))
        await upgraded.run_activity(step, upgraded.operate(instance_id, kind))
        assert [row["sealed"] for row in await rows(upgraded, instance_id)] == [None]


async def test_the_credentials_of_a_deleted_instance_are_erased(instances: InstanceFixture) -> None:
    instance_id = await instances.insert_instance()
    await apply(instances, instance_id)
    delete = instances.operate(instance_id, OperationKind.DELETE)
    await instances.run_activity(
        instances.instance_activities.record_ready,
        RecordReady(instance_id=instance_id, conditions=(), now=_now(instances)),
    )
    assert len(await rows(instances, instance_id)) == 1
    finish = FinishOperation(
        operation=delete, status=OperationStatus.SUCCEEDED, now=_now(instances), instance_status=InstanceStatus.DELETED
    )
    await instances.run_activity(instances.instance_activities.finish_operation, finish)
    assert await rows(instances, instance_id) == []


async def test_without_an_encryption_key_nothing_is_applied(instances: InstanceFixture) -> None:
    """Otherwise the order would be paid for and the customer could never sign in."""
    instance_id = await instances.insert_instance()
    activities = KubernetesClusterActivities(
        instances.gateway, TEMPLATES, session_factory(instances.database.worker), failure_threshold=timedelta(seconds=3)
    )
    try:
        with pytest.raises(ApplicationError) as raised:
            await instances.run_activity(activities.apply, InstanceId(instance_id=instance_id))
    finally:
        activities.close()
    assert (raised.value.type, raised.value.non_retryable) == ("Configuration", True)
    assert "BERTH_ENCRYPTION_KEY" in raised.value.message
    assert await instances.get_live_object("Namespace", instance_id, instances.namespace(instance_id)) is None


def _now(instances: InstanceFixture) -> Any:
    return next(iter(instances.provisioning_inputs.values())).business_time
