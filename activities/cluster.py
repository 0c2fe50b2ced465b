"""What the cluster is told: load the instance, call the cluster, record. No transaction is open across a call."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from temporalio import activity
from temporalio.exceptions import ApplicationError

from activities.adapters.kubernetes import applying, operating, removing
from activities.adapters.kubernetes.errors import ClusterError
from activities.adapters.kubernetes.gateway import KubernetesGateway
from activities.adapters.kubernetes.observer import Observer
from activities.adapters.kubernetes.readiness import Waiter
from activities.instances import begin, locked, refused
from activities.templates import BadTemplate, InstanceSpec, Rendered, ServiceTemplates
from db.models.instances import Instance
from db.queries import instances as queries
from db.session import Sessions
from workflows.ports.instances import (
    Applied,
    AwaitReady,
    Cluster,
    Collected,
    CollectOrphans,
    Condition,
    InstanceRef,
    Operate,
    Ready,
    Removed,
)
from workflows.ports.subscription import Resources
from workflows.rules.errors import Refusal, RuleBroken
from workflows.rules.instance import (
    CAPACITY,
    EXISTING,
    GONE,
    UNSERVED,
    InstanceStatus,
    Trouble,
    collectable,
    settle,
)

HEARTBEAT_SECONDS = 3.0
TERMINATING_SECONDS = 90.0
REMOVAL = timedelta(minutes=2)


class ClusterActivities(Cluster):
    """Implements ``Cluster``.

    Args:
        patience: How long one and the same trouble is borne while waiting for an instance.
        removal: How long one attempt waits for a namespace to go.
    """

    def __init__(
        self,
        gateway: KubernetesGateway,
        templates: ServiceTemplates,
        sessions: Sessions,
        *,
        patience: timedelta,
        removal: timedelta = REMOVAL,
    ) -> None:
        self._gateway = gateway
        self._templates = templates
        self._sessions = sessions
        self._patience = patience
        self._removal = removal
        self._observer = Observer(gateway)

    def close(self) -> None:
        """End the watches; the gateway is its owner's to close."""
        self._observer.close()

    @activity.defn(name="cluster.apply")
    async def apply(self, command: InstanceRef) -> Applied:
        async with _working(patience=self._patience):
            while True:
                spec = await self._provisioning(command.instance_id)
                if spec is None:
                    return Applied(settled=True)
                try:
                    await applying.apply_instance(self._gateway, self._templates.render(spec))
                    return Applied()
                except ClusterError as error:
                    if error.trouble is not Trouble.TERMINATING:
                        raise
                # The name is taken by what is still going. Once it has gone, ask anew whether we are to go on.
                await removing.await_namespace_gone(self._gateway, spec.namespace, within_seconds=TERMINATING_SECONDS)

    @activity.defn(name="cluster.await_ready")
    async def await_ready(self, command: AwaitReady) -> Ready:
        async with _working():
            async with self._sessions() as session:
                found = await queries.instance(session, command.instance_id)
            if found is None:
                raise RuleBroken(Refusal.NOT_FOUND, f"There is no instance {command.instance_id}.")
            if found.status in UNSERVED and not command.started:
                return Ready()
            spec = _spec(found)

            async def told(trouble: Trouble, message: str) -> None:
                activity.logger.warning("instance %s: %s: %s", spec.instance_id, trouble, message)
                await self._record_trouble(spec.instance_id, trouble, message)

            waiter = Waiter(
                self._gateway, self._observer, self._templates.render(spec), patience=self._patience, told=told
            )
            await waiter.until_ready()
            return Ready(conditions=(await self._certificate(spec),))

    @activity.defn(name="cluster.remove")
    async def remove(self, command: InstanceRef) -> Removed:
        async with _working():
            async with self._sessions() as session:
                found = await queries.instance(session, command.instance_id)
            if found is None:
                return Removed(clean=True)
            left = await removing.remove_instance(
                self._gateway, found.id, found.namespace, within_seconds=self._removal.total_seconds()
            )
            return Removed(clean=not left, blocking=left)

    @activity.defn(name="cluster.restart")
    async def restart(self, command: Operate) -> None:
        async with _working():
            rendered = await self._begun(command)
            await operating.restart(self._gateway, rendered, command.operation_id)

    @activity.defn(name="cluster.scale_down")
    async def scale_down(self, command: Operate) -> None:
        async with _working():
            rendered = await self._begun(command)
            await self._remember(command.instance_id, await operating.replicas(self._gateway, rendered))
            await operating.scale_down(self._gateway, rendered)

    @activity.defn(name="cluster.scale_up")
    async def scale_up(self, command: Operate) -> None:
        async with _working():
            rendered = await self._begun(command)
            async with self._sessions() as session:
                found = await queries.instance(session, command.instance_id)
            remembered = (found.restore_replicas if found else None) or {}
            await operating.scale_up(self._gateway, rendered, remembered)

    @activity.defn(name="cluster.resize")
    async def resize(self, command: Operate) -> None:
        async with _working():
            rendered = await self._begun(command)
            if command.resources is not None:
                rendered = self._templates.render(replace(rendered.spec, resources=command.resources))
            await operating.resize(self._gateway, rendered)

    @activity.defn(name="cluster.backup")
    async def backup(self, command: Operate) -> None:
        async with _working():
            rendered = await self._begun(command)
            await operating.backup(self._gateway, rendered, command.operation_id)

    @activity.defn(name="cluster.collect_orphans")
    async def collect_orphans(self, command: CollectOrphans) -> Collected:
        async with _working():
            claimed = await removing.claimed_namespaces(self._gateway)
            async with self._sessions() as session:
                known = await queries.statuses(session, [one.instance_id for one in claimed])
            now = datetime.now(UTC)  # the cluster's own clock made `created_at`; no customer's calendar is involved
            orphans = [
                one for one in claimed if collectable(known.get(one.instance_id), one.created_at, now, command.grace)
            ]
            removed: list[str] = []
            pending: list[str] = []
            for one in orphans[: command.limit]:
                left = await removing.remove_instance(
                    self._gateway, one.instance_id, one.namespace, within_seconds=self._removal.total_seconds()
                )
                activity.logger.warning("orphan %s: %s", one.namespace, "removed" if not left else ", ".join(left))
                (pending if left else removed).append(one.namespace)
            return Collected(removed=tuple(removed), pending=tuple(pending))

    async def _provisioning(self, instance_id: str) -> InstanceSpec | None:
        """Mark the instance ``provisioning`` and return it; None when it is there already."""
        async with self._sessions.begin() as session:
            found = await locked(session, instance_id)
            status = InstanceStatus(found.status)
            if status in EXISTING:
                return None
            found.status = settle(status, InstanceStatus.PROVISIONING)
            return _spec(found)

    async def _begun(self, order: Operate) -> Rendered:
        async with self._sessions.begin() as session:
            spec = _spec(await begin(session, order))
        return self._templates.render(spec)

    async def _remember(self, instance_id: str, replicas: dict[str, int]) -> None:
        """Keep what to go back to. A stop of what is stopped, or a repeated one, must not remember the zeros."""
        running = {workload: count for workload, count in replicas.items() if count > 0}
        async with self._sessions.begin() as session:
            found = await locked(session, instance_id)
            if running:
                found.restore_replicas = (found.restore_replicas or {}) | running

    async def _record_trouble(self, instance_id: str, trouble: Trouble, message: str) -> None:
        text = "Waiting for capacity." if trouble in CAPACITY else message
        async with self._sessions.begin() as session:
            found = await locked(session, instance_id)
            if found.status == InstanceStatus.DELETING or found.status in GONE:
                return
            found.reason = trouble
            made = queries.condition("Ready", "False", trouble, text, datetime.now(UTC))
            found.conditions = queries.with_condition(found.conditions, made)

    async def _certificate(self, spec: InstanceSpec) -> Condition:
        """The instance is ready while its certificate is on its way: only say so."""
        found = await self._gateway.get("Certificate", spec.namespace, "app-tls")
        for condition in ((found or {}).get("status") or {}).get("conditions") or []:
            if condition["type"] == "Ready":
                return Condition(
                    type="Certificate",
                    status=condition["status"],
                    reason=condition.get("reason", ""),
                    message=condition.get("message", ""),
                )
        return Condition(type="Certificate", status="False", reason="Pending")


def _spec(found: Instance) -> InstanceSpec:
    return InstanceSpec(
        instance_id=found.id,
        organization_id=found.organization_id,
        service_slug=found.service_slug,
        version=found.version,
        hostname=found.hostname,
        namespace=found.namespace,
        resources=Resources(
            cpu_millicores=found.cpu_millicores,
            memory_mib=found.memory_mib,
            storage_gib=found.storage_gib,
            replicas=found.replicas,
        ),
        parameters=found.parameters,
    )


def _tried_for() -> timedelta:
    """How long after the first attempt the present one began."""
    info = activity.info()
    return info.current_attempt_scheduled_time - info.scheduled_time


@asynccontextmanager
async def _working(
    heartbeat: Callable[[], None] = activity.heartbeat, *, patience: timedelta | None = None
) -> AsyncIterator[None]:
    """Heartbeat from a side task, so that cancellation arrives, and turn refusals into what workflows understand.

    Once attempts have gone on for ``patience``, the next failure is the last.
    """

    async def beat() -> None:
        while True:
            heartbeat()
            await asyncio.sleep(HEARTBEAT_SECONDS)

    beating = asyncio.create_task(beat())
    try:
        yield
    except ClusterError as error:
        delay = None if error.retry_after is None else timedelta(seconds=error.retry_after)
        given_up = patience is not None and _tried_for() >= patience
        raise ApplicationError(
            error.message, type=error.trouble, non_retryable=error.permanent or given_up, next_retry_delay=delay
        ) from error
    except RuleBroken as broken:
        raise refused(broken) from broken
    except BadTemplate as error:
        raise ApplicationError(str(error), type=Trouble.INVALID, non_retryable=True) from error
    finally:
        beating.cancel()
