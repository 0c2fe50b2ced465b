"""The references: workflows of the same shape as Berth's that do nothing of what Berth does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import ClassVar

from temporalio import activity, workflow

with workflow.unsafe.imports_passed_through():
    from activities.adapters.kubernetes import apply as applying
    from activities.adapters.kubernetes.client import KubernetesClient
    from activities.adapters.kubernetes.informer import Informer
    from activities.adapters.kubernetes.readiness import ReadinessProgress, ReadinessWaiter
    from activities.service_templates.manifests import InstanceSpec
    from activities.service_templates.registry import RenderedInstance, ServiceTemplateRegistry
    from workflows import policies
    from workflows.ports.subscription import Resources
    from workflows.rules.ids import to_dns_label
    from workflows.rules.instance import FailureReason

QUEUE, CLUSTER_QUEUE = "bare", "bare-cluster"
ASLEEP = "bare.asleep"
"""What is counted of sleepers: that they sleep again."""
STEP_TIMEOUT = timedelta(minutes=5)
INSTALLATION = "00000000-0000-4000-8000-000000000000"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sleep:
    until: datetime


class BareActivities:
    """Empty activities, and the calls to the cluster that provisioning makes."""

    def __init__(self, gateway: KubernetesClient, templates: ServiceTemplateRegistry) -> None:
        self._gateway = gateway
        self._templates = templates
        self._observer = Informer(gateway, INSTALLATION)

    @activity.defn(name="bare.nothing")
    async def do_nothing(self, instance_id: str) -> str:
        return instance_id

    @activity.defn(name="bare.done")
    async def done(self, instance_id: str) -> str:
        """The last step: its completions are counted."""
        return instance_id

    @activity.defn(name="bare.apply")
    async def apply(self, instance_id: str) -> None:
        await applying.apply_instance(self._gateway, self._rendered(instance_id))

    @activity.defn(name="bare.await_ready")
    async def await_ready(self, instance_id: str) -> None:
        waiter = ReadinessWaiter(
            self._gateway,
            self._observer,
            self._rendered(instance_id),
            failure_threshold=STEP_TIMEOUT,
            progress=ReadinessProgress(),
            on_failure_reason=self._log_failure_reason,
        )
        await waiter.wait_until_ready()

    async def _log_failure_reason(self, failure_reason: FailureReason, message: str) -> None:
        activity.logger.warning("%s: %s", failure_reason, message)

    def _rendered(self, instance_id: str) -> RenderedInstance:
        service = self._templates.service("n8n")
        return self._templates.render(
            InstanceSpec(
                installation_id=INSTALLATION,
                instance_id=instance_id,
                organization_id="org_bare",
                service_slug="n8n",
                version=service.version,
                hostname=f"{to_dns_label(instance_id)}.bare.localhost",
                namespace=f"berth-{to_dns_label(instance_id)}",
                resources=Resources(cpu_millicores=1000, memory_mib=2048, storage_gib=10),
                parameters={},
                customer_email="customer@example.com",
            )
        )


@workflow.defn(name="BareSleeper")
class BareSleeper:
    """Sleeps until it is due, runs one activity, and goes on sleeping.

    Attributes:
        on_asleep: Called with the run's id when it goes on sleeping. A renewal of Berth's is one workflow task, this
            one's are two: what is counted after the first would leave half of the work out.
    """

    on_asleep: ClassVar[Callable[[str], None]] = staticmethod(lambda run_id: None)

    @workflow.run
    async def run(self, order: Sleep) -> None:
        await workflow.sleep(max(order.until - workflow.now(), timedelta()))
        await workflow.execute_activity_method(BareActivities.done, workflow.info().workflow_id, **policies.DATABASE)
        if not workflow.unsafe.is_replaying():
            BareSleeper.on_asleep(workflow.info().run_id)
        await workflow.sleep(timedelta(days=20))


@workflow.defn(name="BareOrder")
class BareOrder:
    """A local activity, a child with three, an activity; an update waits for the first."""

    @workflow.init
    def __init__(self, instance_id: str) -> None:
        self._opened = False

    @workflow.run
    async def run(self, instance_id: str) -> None:
        await workflow.execute_local_activity_method(BareActivities.do_nothing, instance_id, **policies.DATABASE_LOCAL)
        self._opened = True
        await workflow.execute_child_workflow(BareProvisioning.run, instance_id, id=f"{instance_id}/provision")
        await workflow.execute_activity_method(BareActivities.done, instance_id, **policies.DATABASE)
        await workflow.sleep(timedelta(days=20))

    @workflow.update
    async def opened(self) -> None:
        await workflow.wait_condition(lambda: self._opened)


@workflow.defn(name="BareProvisioning")
class BareProvisioning:
    @workflow.run
    async def run(self, instance_id: str) -> None:
        await workflow.execute_activity_method(
            BareActivities.apply, instance_id, task_queue=CLUSTER_QUEUE, **policies.CLUSTER_CALL
        )
        await workflow.execute_activity_method(
            BareActivities.await_ready, instance_id, task_queue=CLUSTER_QUEUE, **policies.CLUSTER_WAIT
        )
        await workflow.execute_activity_method(
            BareActivities.do_nothing, instance_id, task_queue=QUEUE, **policies.DATABASE
        )


@workflow.defn(name="BareUpdate")
class BareUpdate:
    """What an update-with-start costs when nothing is done."""

    @workflow.init
    def __init__(self, key: str) -> None:
        self._opened = False

    @workflow.run
    async def run(self, key: str) -> None:
        await workflow.wait_condition(lambda: self._opened)

    @workflow.update
    async def opened(self) -> str:
        self._opened = True
        return "opened"


WORKFLOWS = (BareSleeper, BareOrder, BareProvisioning, BareUpdate)
