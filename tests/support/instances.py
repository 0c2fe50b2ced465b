"""Instances against the simulated cluster and a real database: the real activities, and looks at what they did."""

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

from activities.adapters.kubernetes.gateway import KubernetesGateway
from activities.cluster import ClusterActivities
from activities.instances import InstanceActivities
from activities.templates import ServiceTemplates
from tests.support import accounts
from tests.support.databases import Database
from tests.support.sandboxes import Cluster
from tests.support.temporal import Temporal
from tests.support.wait import eventually
from workflows.ports.instances import AwaitReady, InstanceRef, Operate, OperationKind, Provision
from workflows.ports.subscription import Resources

TEMPLATES = ServiceTemplates(Path(__file__).resolve().parents[2] / "templates" / "services")
SMALL = Resources(cpu_millicores=1000, memory_mib=2048, storage_gib=10)
LARGE = Resources(cpu_millicores=2000, memory_mib=4096, storage_gib=40)


@dataclass
class Fleet:
    """A database, a cluster, and the activities between them."""

    database: Database
    cluster: Cluster
    gateway: KubernetesGateway
    activities: ClusterActivities
    records: InstanceActivities
    made: dict[str, Provision] = field(default_factory=dict)

    async def order(self, service: str = "n8n", parameters: Mapping[str, Any] | None = None, **columns: Any) -> str:
        """Insert an account with an instance that was ordered, and return the instance's id."""
        organization_id = await accounts.account(self.database.worker)
        subscription_id = await accounts.subscription(self.database.worker, organization_id, status="provisioning")
        instance_id = Temporal.unique("ins").replace("-", "_")
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
            "created_at": accounts.NOW,
            **columns,
        }
        names = ", ".join(values)
        places = ", ".join(f":{name}" for name in values)
        statement = text(
            f"INSERT INTO instances ({names}, parameters) VALUES ({places}, CAST(:given_parameters AS jsonb))"
        )
        async with self.database.worker.begin() as connection:
            await connection.execute(statement, values | {"given_parameters": json.dumps(parameters or {})})
        self.made[instance_id] = Provision(
            instance_id=instance_id,
            subscription_id=subscription_id,
            organization_id=organization_id,
            business_time=accounts.NOW,
        )
        return instance_id

    def operate(self, instance_id: str, kind: OperationKind, resources: Resources | None = None) -> Operate:
        order = self.made[instance_id]
        return Operate(
            operation_id=Temporal.unique("op"),
            instance_id=instance_id,
            subscription_id=order.subscription_id,
            organization_id=order.organization_id,
            kind=kind,
            actor="usr_1",
            business_time=accounts.NOW,
            resources=resources,
        )

    @staticmethod
    def namespace(instance_id: str) -> str:
        return f"berth-{instance_id.replace('_', '-')}"

    async def row(self, instance_id: str) -> dict[str, Any]:
        async with self.database.worker.connect() as connection:
            rows = await connection.execute(text("SELECT * FROM instances WHERE id = :id"), {"id": instance_id})
            return dict(rows.mappings().one())

    async def operation(self, operation_id: str) -> dict[str, Any]:
        async with self.database.worker.connect() as connection:
            query = text("SELECT * FROM instance_operations WHERE id = :id")
            return dict((await connection.execute(query, {"id": operation_id})).mappings().one())

    async def set(self, instance_id: str, **columns: Any) -> None:
        assignments = ", ".join(f"{name} = :{name}" for name in columns)
        async with self.database.worker.begin() as connection:
            await connection.execute(
                text(f"UPDATE instances SET {assignments} WHERE id = :id"), {"id": instance_id, **columns}
            )

    async def run(self, step: Any, command: Any) -> Any:
        """Run an activity as a worker would, without a workflow."""
        return await ActivityEnvironment().run(step, command)

    async def persist(self, step: Any, command: Any, *, timeout: float = 30) -> Any:
        """Run an activity as its policy does: again after whatever may pass."""

        async def attempt() -> tuple[Any]:
            try:
                return (await self.run(step, command),)
            except ApplicationError as error:
                if error.non_retryable:
                    raise
                raise LookupError(error.message) from error

        (result,) = await eventually(attempt, timeout=timeout)
        return result

    async def up(self, instance_id: str) -> None:
        """Apply and wait until ready, without recording it."""
        await self.persist(self.activities.apply, InstanceRef(instance_id=instance_id))
        await self.persist(self.activities.await_ready, AwaitReady(instance_id=instance_id, started=True))

    async def live(self, kind: str, instance_id: str, name: str) -> dict[str, Any] | None:
        return await self.gateway.get(kind, None if kind == "Namespace" else self.namespace(instance_id), name)

    async def fault(self, kind: str, instance_id: str | None = None, **more: Any) -> None:
        """Switch a fault on, in this instance's namespace only unless none is named."""
        body = {"fault": kind, **({"namespace": self.namespace(instance_id)} if instance_id else {}), **more}
        await asyncio.to_thread(lambda: httpx.post(f"{self.cluster.url}/sandbox/faults", json=body).raise_for_status())

    async def heal(self) -> None:
        await asyncio.to_thread(lambda: httpx.delete(f"{self.cluster.url}/sandbox/faults").raise_for_status())

    async def faults(self) -> list[dict[str, Any]]:
        answer = await asyncio.to_thread(lambda: httpx.get(f"{self.cluster.url}/sandbox/faults").raise_for_status())
        found: Any = answer.json()
        return list(found["faults"] if isinstance(found, dict) else found)


@asynccontextmanager
async def fleet_of(
    database: Database,
    cluster: Cluster,
    *,
    patience: timedelta = timedelta(seconds=20),
    removal: timedelta = timedelta(seconds=15),
) -> AsyncIterator[Fleet]:
    gateway = KubernetesGateway.from_kubeconfig(cluster.kubeconfig)
    sessions = accounts.sessions_of(database.worker)
    activities = ClusterActivities(gateway, TEMPLATES, sessions, patience=patience, removal=removal)
    fleet = Fleet(database, cluster, gateway, activities, InstanceActivities(sessions))
    try:
        yield fleet
    finally:
        activities.close()
        gateway.close()
