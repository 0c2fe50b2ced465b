"""Operations on an instance in its cluster: load the instance, call the cluster, record the result.

No transaction is open during a call to the cluster.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from temporalio import activity

from activities.adapters.kubernetes import deletion, operations
from activities.adapters.kubernetes.apply import apply_instance, require_namespace
from activities.adapters.kubernetes.client import KubernetesClient
from activities.adapters.kubernetes.errors import ClusterError
from activities.adapters.kubernetes.informer import Informer
from activities.adapters.kubernetes.ownership import Owner
from activities.adapters.kubernetes.readiness import ReadinessProgress, ReadinessWaiter
from activities.adapters.kubernetes.storage import fit_storage
from activities.cluster_attempts import cluster_attempt
from activities.instances import CAPACITY_MESSAGE, lock_instance, record_operation_start, set_failed_condition
from activities.orphans import OrphanCleaner
from activities.service_templates.definitions import ServiceTemplate
from activities.service_templates.manifests import InstanceSpec
from activities.service_templates.registry import RenderedInstance, ServiceTemplateRegistry
from db.encryption import SESSION_INFO_KEY, FieldEncryption
from db.models.instances import Instance
from db.queries import credentials, locked_instances
from db.queries import instances as queries
from db.session import SessionFactory
from workflows.ports.instances import (
    ApplyOutcome,
    AwaitReady,
    CleanUpOrphans,
    ClusterActivities,
    Condition,
    DeletionOutcome,
    InstanceId,
    OperationInput,
    OrphanCleanupOutcome,
    ReadinessOutcome,
)
from workflows.ports.subscription import Resources
from workflows.rules.errors import ErrorCode, RuleViolation
from workflows.rules.instance import (
    CAPACITY_REASONS,
    PROVISIONED_STATUSES,
    REMOVED_STATUSES,
    SCALED_DOWN_STATUSES,
    FailureReason,
    InstanceStatus,
    transition_idempotently,
)

NAMESPACE_TERMINATION_TIMEOUT_SECONDS = 90.0
NAMESPACE_DELETION_TIMEOUT = timedelta(minutes=2)
OPERATION_GIVE_UP_AFTER = timedelta(minutes=45)
"""How long an operation is retried while the cluster fails: an upgrade of its API says nothing of a running instance.

``policies.CLUSTER_CALL`` allows attempts for longer than that.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class _StartedOperation:
    """The instance as its row describes it when an operation starts."""

    spec: InstanceSpec
    status: InstanceStatus
    saved_replicas: Mapping[str, int]


class KubernetesClusterActivities(ClusterActivities):
    """Applies, operates and deletes instances in a Kubernetes cluster.

    Args:
        client: Client of the cluster; the caller closes it.
        failure_threshold: How long the same failure reason is tolerated while waiting for an instance.
        deletion_timeout: How long one attempt waits for the deletion of a namespace.
    """

    def __init__(
        self,
        client: KubernetesClient,
        templates: ServiceTemplateRegistry,
        sessions: SessionFactory,
        *,
        failure_threshold: timedelta,
        deletion_timeout: timedelta = NAMESPACE_DELETION_TIMEOUT,
    ) -> None:
        self._client = client
        self._templates = templates
        self._sessions = sessions
        self._failure_threshold = failure_threshold
        self._deletion_timeout = deletion_timeout
        self._installation_id: str | None = None
        self._informer: Informer | None = None

    def close(self) -> None:
        """End the watches. The client stays open."""
        if self._informer is not None:
            self._informer.close()

    async def _load_installation_id(self) -> str:
        """Return the id of this installation; it does not change while a process runs."""
        if self._installation_id is None:
            async with self._sessions() as session:
                self._installation_id = await queries.installation_id(session)
        return self._installation_id

    async def _get_informer(self) -> Informer:
        """Return the informer of this process, created by the first call."""
        installation_id = await self._load_installation_id()
        if self._informer is None:
            self._informer = Informer(self._client, installation_id)
        return self._informer

    @activity.defn(name="cluster.apply")
    async def apply(self, command: InstanceId) -> ApplyOutcome:
        async with cluster_attempt(give_up_after=self._failure_threshold):
            while True:
                spec = await self._mark_provisioning(command.instance_id)
                if spec is None:
                    return ApplyOutcome(already_provisioned=True)
                try:
                    rendered = self._templates.render(spec)
                    encryptor = self._find_encryptor(rendered.service)
                    secrets = await apply_instance(self._client, rendered)
                    await self._save_credentials(rendered, secrets, encryptor)
                    return ApplyOutcome()
                except ClusterError as error:
                    if error.reason is not FailureReason.TERMINATING:
                        raise
                # A namespace of this name is being deleted. Read the instance again afterwards: it may be deleted too.
                await deletion.wait_for_namespace_deletion(
                    self._client, spec.namespace, within_seconds=NAMESPACE_TERMINATION_TIMEOUT_SECONDS
                )

    @activity.defn(name="cluster.await_ready")
    async def await_ready(self, command: AwaitReady) -> ReadinessOutcome:
        progress = _readiness_progress()
        async with cluster_attempt(progress=progress):
            async with self._sessions() as session:
                instance = await locked_instances.read_instance(session, command.instance_id)
            if instance is None:
                raise RuleViolation(ErrorCode.NOT_FOUND, f"There is no instance {command.instance_id}.")
            if instance.status in SCALED_DOWN_STATUSES and not command.is_starting:
                return ReadinessOutcome()
            spec = _instance_spec(instance, await self._load_installation_id())
            await require_namespace(self._client, spec)

            async def on_failure_reason(reason: FailureReason, message: str) -> None:
                activity.logger.warning("instance %s: %s: %s", spec.instance_id, reason, message)
                await self._record_failure_reason(spec.instance_id, reason, message)

            waiter = ReadinessWaiter(
                self._client,
                await self._get_informer(),
                self._templates.render(spec),
                failure_threshold=self._failure_threshold,
                progress=progress,
                on_failure_reason=on_failure_reason,
            )
            await waiter.wait_until_ready()
            return ReadinessOutcome(conditions=(await self._certificate_condition(spec),))

    @activity.defn(name="cluster.delete_namespace")
    async def delete_namespace(self, command: InstanceId) -> DeletionOutcome:
        async with cluster_attempt():
            async with self._sessions() as session:
                instance = await queries.get_instance(session, command.instance_id)
            if instance is None:
                return DeletionOutcome(is_verified=True)
            owner = Owner(installation_id=await self._load_installation_id(), instance_id=instance.id)
            blockers = await deletion.delete_instance(
                self._client, owner, instance.namespace, within_seconds=self._deletion_timeout.total_seconds()
            )
            return DeletionOutcome(is_verified=not blockers, blockers=blockers)

    @activity.defn(name="cluster.restart")
    async def restart(self, command: OperationInput) -> None:
        async with cluster_attempt(give_up_after=OPERATION_GIVE_UP_AFTER):
            started = await self._start_operation(command)
            rendered = self._templates.render(started.spec)
            await self._apply_and_run(rendered, started.saved_replicas, restart_id=command.operation_id)

    @activity.defn(name="cluster.scale_down")
    async def scale_down(self, command: OperationInput) -> None:
        async with cluster_attempt(give_up_after=OPERATION_GIVE_UP_AFTER):
            spec = (await self._start_operation(command)).spec
            await self._save_replicas(command.instance_id, await operations.current_replicas(self._client, spec))
            await operations.scale_down(self._client, spec)

    @activity.defn(name="cluster.scale_up")
    async def scale_up(self, command: OperationInput) -> None:
        async with cluster_attempt(give_up_after=OPERATION_GIVE_UP_AFTER):
            started = await self._start_operation(command)
            await self._apply_and_run(self._templates.render(started.spec), started.saved_replicas)

    @activity.defn(name="cluster.resize")
    async def resize(self, command: OperationInput) -> None:
        async with cluster_attempt(give_up_after=OPERATION_GIVE_UP_AFTER):
            started = await self._start_operation(command)
            spec = started.spec
            if command.resources is not None:
                async with self._sessions() as session:
                    entitlements = await queries.get_plan_entitlements(session, command.subscription_id)
                spec = replace(spec, resources=command.resources, entitlements=entitlements)
            rendered = self._templates.render(spec)
            if started.status in SCALED_DOWN_STATUSES:
                # The start applies the workloads.
                await fit_storage(self._client, rendered)
            else:
                await self._apply_and_run(rendered, started.saved_replicas)

    @activity.defn(name="cluster.run_backup")
    async def run_backup(self, command: OperationInput) -> None:
        async with cluster_attempt():
            spec = (await self._start_operation(command)).spec
            cron_job = self._templates.service(spec.service_slug).backup_cron_job
            await operations.run_backup_job(self._client, spec, cron_job, command.operation_id)

    @activity.defn(name="cluster.clean_up_orphans")
    async def clean_up_orphans(self, command: CleanUpOrphans) -> OrphanCleanupOutcome:
        async with cluster_attempt():
            cleaner = OrphanCleaner(
                self._client,
                self._sessions,
                await self._load_installation_id(),
                deletion_timeout_seconds=self._deletion_timeout.total_seconds(),
            )
            return await cleaner.run(command)

    async def _mark_provisioning(self, instance_id: str) -> InstanceSpec | None:
        """Mark the instance ``provisioning`` and return its spec; None if it is already provisioned."""
        installation_id = await self._load_installation_id()
        async with self._sessions() as session:
            locked = await locked_instances.begin_with_locked_instance(session, instance_id)
            status = InstanceStatus(locked.instance.status)
            if status in PROVISIONED_STATUSES:
                return None
            await locked_instances.write_and_commit(
                session,
                instance_id,
                status=transition_idempotently(status, InstanceStatus.PROVISIONING),
                entitlements=locked.plan_entitlements,
            )
        spec = _instance_spec(locked.instance, installation_id)
        return replace(spec, entitlements=locked.plan_entitlements, customer_email=locked.customer_email)

    def _find_encryptor(self, service: ServiceTemplate) -> FieldEncryption | None:
        """Return the encryptor for the credentials of ``service``; None if the service has no credentials.

        Raises:
            ClusterError: ``Configuration`` if the worker has no key: the customer could never sign in.
        """
        if service.credentials is None:
            return None
        encryptor: FieldEncryption | None = self._sessions.kw.get("info", {}).get(SESSION_INFO_KEY)
        if encryptor is None:
            raise ClusterError(
                FailureReason.CONFIGURATION,
                "The worker has no encryption key. Set BERTH_ENCRYPTION_KEY.",
                permanent=True,
            )
        return encryptor

    async def _apply_and_run(
        self, rendered: RenderedInstance, saved_replicas: Mapping[str, int], *, restart_id: str | None = None
    ) -> None:
        """Apply the current revision of the instance's template, as ``operations.apply_and_run``.

        The instance may have been provisioned under a revision without credentials: they are stored as well.
        """
        encryptor = self._find_encryptor(rendered.service)
        secrets = await operations.apply_and_run(self._client, rendered, saved_replicas, restart_id=restart_id)
        await self._save_credentials(rendered, secrets, encryptor)

    async def _save_credentials(
        self, rendered: RenderedInstance, secrets: Mapping[str, Mapping[str, str]], encryptor: FieldEncryption | None
    ) -> None:
        """Store the first administrator's credentials, encrypted, if the service has any. The API returns them once."""
        spec, sign_in = rendered.spec, rendered.service.credentials
        if sign_in is None or encryptor is None:
            return
        values = secrets[sign_in.secret]
        plain = {
            "url": f"https://{spec.hostname}{sign_in.path}",
            "username": values[sign_in.username],
            "password": values[sign_in.password],
        }
        async with self._sessions() as session:
            await credentials.keep_and_commit(
                session,
                instance_id=spec.instance_id,
                organization_id=spec.organization_id,
                sealed=encryptor.encrypt_mapping(plain, purpose=credentials.purpose(spec.instance_id)),
            )

    async def _start_operation(self, operation: OperationInput) -> _StartedOperation:
        """Mark the operation as running, and check that the instance's namespace exists."""
        installation_id = await self._load_installation_id()
        async with self._sessions.begin() as session:
            instance = await record_operation_start(session, operation)
            email = await queries.get_customer_email(session, instance.subscription_id)
            started = _StartedOperation(
                spec=replace(_instance_spec(instance, installation_id), customer_email=email),
                status=InstanceStatus(instance.status),
                saved_replicas=instance.saved_replicas or {},
            )
        await require_namespace(self._client, started.spec)
        return started

    async def _save_replicas(self, instance_id: str, replicas: Mapping[str, int]) -> None:
        """Save the replica counts that ``scale_up`` restores.

        Zeros are not saved: the stop of a stopped instance, or a repeated stop, must not overwrite the counts.
        """
        running = {workload: count for workload, count in replicas.items() if count > 0}
        async with self._sessions.begin() as session:
            instance = await lock_instance(session, instance_id)
            if running:
                instance.saved_replicas = (instance.saved_replicas or {}) | running

    async def _record_failure_reason(self, instance_id: str, reason: FailureReason, message: str) -> None:
        text = CAPACITY_MESSAGE if reason in CAPACITY_REASONS else message
        async with self._sessions.begin() as session:
            instance = await lock_instance(session, instance_id)
            if instance.status == InstanceStatus.DELETING or instance.status in REMOVED_STATUSES:
                return
            set_failed_condition(instance, reason, text, datetime.now(UTC))

    async def _certificate_condition(self, spec: InstanceSpec) -> Condition:
        """Return the certificate's condition. An instance is ready without one: issuing may take minutes."""
        certificate = await self._client.get("Certificate", spec.namespace, "app-tls")
        for condition in ((certificate or {}).get("status") or {}).get("conditions") or []:
            if condition["type"] == "Ready":
                return Condition(
                    type="Certificate",
                    status=condition["status"],
                    reason=condition.get("reason", ""),
                    message=condition.get("message", ""),
                )
        return Condition(type="Certificate", status="False", reason="Pending")


def _instance_spec(instance: Instance, installation_id: str) -> InstanceSpec:
    return InstanceSpec(
        installation_id=installation_id,
        instance_id=instance.id,
        organization_id=instance.organization_id,
        service_slug=instance.service_slug,
        version=instance.version,
        hostname=instance.hostname,
        namespace=instance.namespace,
        resources=Resources(
            cpu_millicores=instance.cpu_millicores,
            memory_mib=instance.memory_mib,
            storage_gib=instance.storage_gib,
            replicas=instance.replicas,
        ),
        parameters=instance.parameters,
        entitlements=instance.entitlements,
    )


def _readiness_progress() -> ReadinessProgress:
    """Return the progress that the previous attempt handed over with its heartbeats."""
    details = activity.info().heartbeat_details
    return ReadinessProgress.from_heartbeat(details[1]) if len(details) > 1 else ReadinessProgress()
