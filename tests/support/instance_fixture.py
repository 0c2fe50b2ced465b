"""Instances on the simulated cluster and a real database: the real activities and queries for their effects."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
from sqlalchemy import text
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment

from activities.adapters.kubernetes.client import KubernetesClient
from activities.cluster import KubernetesClusterActivities
from activities.instances import PostgresInstanceActivities
from activities.service_templates.registry import ServiceTemplateRegistry
from db.encryption import FieldEncryption
from db.queries import instances as queries
from db.session import session_factory
from tests.support import inserts
from tests.support.databases import DatabaseFixture
from tests.support.sandboxes import ClusterEndpoint
from tests.support.temporal import TemporalFixture
from tests.support.wait import wait_until
from workflows.ports.instances import AwaitReady, InstanceId, OperationInput, OperationKind, ProvisioningInput
from workflows.ports.subscription import Resources

TEMPLATES_FOLDER = Path(__file__).resolve().parents[2] / "templates" / "services"
TEMPLATES = ServiceTemplateRegistry(TEMPLATES_FOLDER)
FIELD_ENCRYPTION = FieldEncryption([("tests", bytes(range(32)))])
SMALL = Resources(cpu_millicores=1000, memory_mib=2048, storage_gib=10)
LARGE = Resources(cpu_millicores=2000, memory_mib=4096, storage_gib=40)


@dataclass
class InstanceFixture:
    """A database, a cluster, and the activities between them."""

    database: DatabaseFixture
    cluster: ClusterEndpoint
    gateway: KubernetesClient
    cluster_activities: KubernetesClusterActivities
    instance_activities: PostgresInstanceActivities
    installation_id: str
    provisioning_inputs: dict[str, ProvisioningInput] = field(default_factory=dict)

    async def insert_instance(
        self,
        service: str = "n8n",
        parameters: Mapping[str, Any] | None = None,
        entitlements: Mapping[str, Any] | None = None,
        email: str | None = None,
        **columns: Any,
    ) -> str:
        """Insert an organization with a requested instance. Return the instance's id."""
        organization_id = await inserts.insert_organization(self.database.owner)
        user_id = await inserts.insert_user(self.database.owner, email)
        subscription_id = await inserts.insert_subscription(
            self.database.worker, organization_id, status="provisioning", user_id=user_id, entitlements=entitlements
        )
        instance_id = str(columns.pop("id", None) or TemporalFixture.unique_id("ins").replace("-", "_"))
        values = {
            "id": instance_id,
            "organization_id": organization_id,
            "subscription_id": subscription_id,
            "service_slug": service,
            "version": TEMPLATES.service(service).version if service in TEMPLATES.services else "1",
            "hostname": f"{instance_id.replace('_', '-')}.example.com",
            "namespace": f"berth-{instance_id.replace('_', '-')}",
            "cpu_millicores": SMALL.cpu_millicores,
            "memory_mib": SMALL.memory_mib,
            "storage_gib": SMALL.storage_gib,
            "replicas": 1,
            "created_at": inserts.NOW,
            **columns,
        }
        names = ", ".join(values)
        places = ", ".join(f":{name}" for name in values)
        statement = text(
            f"INSERT INTO instances ({names}, parameters) VALUES ({places}, CAST(:given_parameters AS jsonb))"
        )
        async with self.database.worker.begin() as connection:
            await connection.execute(statement, values | {"given_parameters": json.dumps(parameters or {})})
        self.provisioning_inputs[instance_id] = ProvisioningInput(
            instance_id=instance_id,
            subscription_id=subscription_id,
            organization_id=organization_id,
            business_time=inserts.NOW,
        )
        return instance_id

    def operate(self, instance_id: str, kind: OperationKind, resources: Resources | None = None) -> OperationInput:
        order = self.provisioning_inputs[instance_id]
        return OperationInput(
            operation_id=TemporalFixture.unique_id("op"),
            instance_id=instance_id,
            subscription_id=order.subscription_id,
            organization_id=order.organization_id,
            kind=kind,
            actor="usr_1",
            business_time=inserts.NOW,
            resources=resources,
        )

    @staticmethod
    def namespace(instance_id: str) -> str:
        return f"berth-{instance_id.replace('_', '-')}"

    async def row(self, instance_id: str) -> dict[str, Any]:
        async with self.database.worker.connect() as connection:
            rows = await connection.execute(text("SELECT * FROM instances WHERE id = :id"), {"id": instance_id})
            return dict(rows.mappings().one())

    async def set_column(self, instance_id: str, column: str, value: str) -> None:
        async with self.database.worker.begin() as connection:
            statement = text(f"UPDATE instances SET {column} = :value WHERE id = :id")
            await connection.execute(statement, {"id": instance_id, "value": value})

    async def operation(self, operation_id: str) -> dict[str, Any]:
        async with self.database.worker.connect() as connection:
            query = text("SELECT * FROM instance_operations WHERE id = :id")
            return dict((await connection.execute(query, {"id": operation_id})).mappings().one())

    async def update_instance(self, instance_id: str, **columns: Any) -> None:
        assignments = ", ".join(f"{name} = :{name}" for name in columns)
        async with self.database.worker.begin() as connection:
            await connection.execute(
                text(f"UPDATE instances SET {assignments} WHERE id = :id"), {"id": instance_id, **columns}
            )

    async def forget(self, instance_id: str) -> None:
        """Delete the row of the instance, so that its namespace becomes an orphan."""
        async with self.database.owner.begin() as connection:
            await connection.execute(text("DELETE FROM instances WHERE id = :id"), {"id": instance_id})

    async def alerts(self) -> list[dict[str, Any]]:
        """Return the contexts of the operator alerts, oldest first."""
        query = "SELECT template_context FROM notifications WHERE kind = 'operator_alert' ORDER BY created_at, id"
        async with self.database.worker.connect() as connection:
            return [dict(context) for context in (await connection.execute(text(query))).scalars()]

    async def run_activity(self, step: Any, command: Any) -> Any:
        """Run an activity as a worker would, without a workflow."""
        return await ActivityEnvironment().run(step, command)

    async def run_activity_with_retries(self, step: Any, command: Any, *, timeout: float = 30) -> Any:
        """Run an activity as its retry policy does: repeat it after each retryable error."""

        async def attempt() -> tuple[Any]:
            try:
                return (await self.run_activity(step, command),)
            except ApplicationError as error:
                if error.non_retryable:
                    raise
                raise LookupError(error.message) from error

        (result,) = await wait_until(attempt, timeout=timeout)
        return result

    async def provision(self, instance_id: str) -> None:
        """Apply and wait until ready, without recording it."""
        await self.run_activity_with_retries(self.cluster_activities.apply, InstanceId(instance_id=instance_id))
        await self.run_activity_with_retries(
            self.cluster_activities.await_ready, AwaitReady(instance_id=instance_id, is_starting=True)
        )

    async def get_live_object(self, kind: str, instance_id: str, name: str) -> dict[str, Any] | None:
        return await self.gateway.get(kind, None if kind == "Namespace" else self.namespace(instance_id), name)

    async def inject_fault(self, kind: str, instance_id: str | None = None, **more: Any) -> None:
        """Inject a fault: in the instance's namespace, or in every namespace if no instance is named."""
        body = {"fault": kind, **({"namespace": self.namespace(instance_id)} if instance_id else {}), **more}
        await asyncio.to_thread(lambda: httpx.post(f"{self.cluster.url}/sandbox/faults", json=body).raise_for_status())

    async def hold(self, instance_id: str) -> None:
        """Add a finalizer to a volume claim of the instance, which blocks the deletion of its namespace."""
        await self._set_finalizers(instance_id, ["example.com/keep"])

    async def release(self, instance_id: str) -> None:
        await self._set_finalizers(instance_id, None)

    async def _set_finalizers(self, instance_id: str, finalizers: list[str] | None) -> None:
        body = {"metadata": {"finalizers": finalizers}}
        await self.gateway.patch("PersistentVolumeClaim", self.namespace(instance_id), "data", body)

    async def clear_faults(self) -> None:
        await asyncio.to_thread(lambda: httpx.delete(f"{self.cluster.url}/sandbox/faults").raise_for_status())

    async def faults(self) -> list[dict[str, Any]]:
        response = await asyncio.to_thread(lambda: httpx.get(f"{self.cluster.url}/sandbox/faults").raise_for_status())
        content: Any = response.json()
        return list(content["faults"] if isinstance(content, dict) else content)


@asynccontextmanager
async def create_instance_fixture(
    database: DatabaseFixture,
    cluster: ClusterEndpoint,
    *,
    failure_threshold: timedelta = timedelta(seconds=20),
    deletion_timeout: timedelta = timedelta(seconds=15),
    templates: ServiceTemplateRegistry = TEMPLATES,
) -> AsyncIterator[InstanceFixture]:
    gateway = KubernetesClient.from_kubeconfig(cluster.kubeconfig)
    sessions = session_factory(database.worker, encryptor=FIELD_ENCRYPTION)
    activities = KubernetesClusterActivities(
        gateway, templates, sessions, failure_threshold=failure_threshold, deletion_timeout=deletion_timeout
    )
    async with sessions() as session:
        installation_id = await queries.installation_id(session)
    fixture = InstanceFixture(
        database, cluster, gateway, activities, PostgresInstanceActivities(sessions), installation_id
    )
    try:
        yield fixture
    finally:
        activities.close()
        gateway.close()
