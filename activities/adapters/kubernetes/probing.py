"""Readiness probe: a short-lived Job in the instance's namespace that requests the application through its Service.

The API server's service proxy is not used: it connects from outside the namespace, and network policies drop its
packets (docs/decisions/0017-readiness-is-probed-by-a-job.md).
"""

from __future__ import annotations

import uuid
from typing import Any

import orjson

from activities.adapters.kubernetes.client import KubernetesClient
from activities.adapters.kubernetes.diagnosis import (
    WORKLOAD_LABEL,
    Diagnosis,
    NamespaceSnapshot,
    diagnose,
    job_succeeded,
)
from activities.adapters.kubernetes.errors import AlreadyExists, ClusterError
from activities.adapters.kubernetes.ownership import owner_of
from activities.service_templates.manifests import Manifest
from activities.service_templates.registry import RenderedInstance
from workflows.rules.instance import FailureReason

JOB_NAME_LABEL = "batch.kubernetes.io/job-name"


class ServiceProbe:
    """Probes one instance until a probe succeeds. Each probe is a new Job, so that an old result is not reused."""

    def __init__(self, client: KubernetesClient, rendered: RenderedInstance) -> None:
        self._client = client
        self._rendered = rendered
        self._namespace = rendered.spec.namespace
        self._name: str | None = None
        self._failure: Diagnosis | None = None

    @property
    def running(self) -> bool:
        return self._name is not None

    async def observe(self) -> Diagnosis:
        """Start a probe, or check the running one.

        Returns:
            Ready once the application responded with 2xx or 3xx; ``ProbeFailed`` after a failed probe, also while the
            next one runs; otherwise the reason why the probe's pod does not run.
        """
        if self._name is None:
            self._name = await self._start()
        name = self._name
        job = await self._client.get("Job", self._namespace, name)
        if job is None:
            self._name = None
            return self._failure or Diagnosis(ready=False)
        done = job_succeeded(job)
        if done:
            await self.stop()
            return Diagnosis(ready=True)
        selector = f"{owner_of(self._rendered.spec).selector},{JOB_NAME_LABEL}={name}"
        pods = tuple(await self._client.list("Pod", self._namespace, labels=selector))
        if done is False:
            await self.stop()
            self._failure = Diagnosis(ready=False, reason=FailureReason.PROBE_FAILED, message=_message(job, pods))
            return self._failure
        workload = ("Job", name)
        verdict = diagnose((workload,), {}, NamespaceSnapshot(workloads={workload: job}, pods=pods))
        if verdict.reason in (None, FailureReason.CRASH_LOOP):
            # The Job's condition reports a failed probe.
            return self._failure or Diagnosis(ready=False, waiting_for=(workload,))
        return verdict

    async def stop(self) -> None:
        """Delete the running probe, if any. If the deletion fails, the Job expires after its time to live."""
        name, self._name = self._name, None
        if name is None:
            return
        try:
            await self._client.delete("Job", self._namespace, name)
        except ClusterError:
            return

    async def _start(self) -> str:
        name = f"probe-{uuid.uuid4().hex[:8]}"
        job: Manifest = orjson.loads(orjson.dumps(self._rendered.probe))
        job["metadata"]["name"] = name
        job["spec"]["template"]["metadata"]["labels"][WORKLOAD_LABEL] = name
        try:
            await self._client.create(job)
        except AlreadyExists:
            # An earlier attempt created it; its response was lost.
            return name
        return name


def _message(job: Manifest, pods: tuple[Manifest, ...]) -> str:
    """Return the output of the probe's container, or why its Job failed."""
    for pod in pods:
        for container in (pod.get("status") or {}).get("containerStatuses") or []:
            output = ((container.get("state") or {}).get("terminated") or {}).get("message", "").strip()
            if output:
                return f"The application does not answer: {output[-500:]}"
    conditions: list[dict[str, Any]] = (job.get("status") or {}).get("conditions") or []
    reasons = [condition.get("message", "") for condition in conditions if condition["type"] == "Failed"]
    return f"The application does not answer: {reasons[0] if reasons else 'the probe failed'}."
