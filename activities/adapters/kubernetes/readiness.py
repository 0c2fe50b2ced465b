"""Wait until an instance is ready, or until a failure reason has persisted for the failure threshold."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from activities.adapters.kubernetes.client import KubernetesClient
from activities.adapters.kubernetes.diagnosis import (
    Diagnosis,
    NamespaceSnapshot,
    Workload,
    diagnose,
    mounted_claim_names,
)
from activities.adapters.kubernetes.errors import ClusterError, admission_failure_reason
from activities.adapters.kubernetes.informer import Informer
from activities.adapters.kubernetes.ownership import owner_of
from activities.adapters.kubernetes.probing import ServiceProbe
from activities.adapters.kubernetes.redaction import redacted_tail
from activities.service_templates.manifests import Manifest
from activities.service_templates.registry import RenderedInstance
from workflows.rules.instance import FailureDebounce, FailureReason

RESYNC_SECONDS = 5.0
"""Interval of direct reads of the namespace, independent of the informer's events."""

PROBE_PAUSE_SECONDS = 1.0
FAIL_FAST_REASONS = frozenset({FailureReason.POD_SECURITY, FailureReason.JOB_FAILED})
"""Failure reasons that end the wait immediately: they do not resolve without a change."""


OnFailureReason = Callable[[FailureReason, str], Awaitable[None]]


@dataclass(slots=True, kw_only=True)
class ReadinessProgress:
    """How long an instance has been observed that is not ready, over all attempts of the activity that waits for it.

    The time between two attempts does not count: while the API is unavailable, the cluster starts nothing either.

    Attributes:
        waited: How long the instance was observed.
        failure_reason: The last one that was observed; None if there is none.
        failing_for: How long ``failure_reason`` has persisted.
    """

    waited: timedelta = timedelta()
    failure_reason: FailureReason | None = None
    failing_for: timedelta = timedelta()

    @classmethod
    def from_heartbeat(cls, detail: Mapping[str, Any]) -> ReadinessProgress:
        """Return the progress of the previous attempt, as ``to_heartbeat`` wrote it."""
        reason = detail["failure_reason"]
        return cls(
            waited=timedelta(seconds=detail["waited_seconds"]),
            failure_reason=None if reason is None else FailureReason(reason),
            failing_for=timedelta(seconds=detail["failing_for_seconds"]),
        )

    def to_heartbeat(self) -> dict[str, Any]:
        return {
            "waited_seconds": self.waited.total_seconds(),
            "failure_reason": self.failure_reason,
            "failing_for_seconds": self.failing_for.total_seconds(),
        }


class ReadinessWaiter:
    """Waits until one instance is ready.

    Args:
        failure_threshold: How long one failure reason may persist before the wait fails.
        progress: What earlier attempts observed; each observation updates it.
        on_failure_reason: Called with each new failure reason and its message.
    """

    def __init__(
        self,
        client: KubernetesClient,
        informer: Informer,
        rendered: RenderedInstance,
        *,
        failure_threshold: timedelta,
        progress: ReadinessProgress,
        on_failure_reason: OnFailureReason,
    ) -> None:
        self._client = client
        self._informer = informer
        self._rendered = rendered
        self._namespace = rendered.spec.namespace
        self._selector = owner_of(rendered.spec).selector
        self._progress = progress
        self._debounce = FailureDebounce(failure_threshold)
        self._poll_interval = min(RESYNC_SECONDS, max(0.05, failure_threshold.total_seconds() / 4))
        self._on_failure_reason = on_failure_reason
        self._generations: dict[Workload, int] = {}
        self._probe = ServiceProbe(client, rendered)

    async def wait_until_ready(self) -> None:
        """Return once every workload is available and a probe succeeded.

        Raises:
            ClusterError: The failure reason that persisted for the failure threshold, or ``DeadlineExceeded``.
        """
        subscription = self._informer.subscribe(self._namespace)
        last_reason: FailureReason | None = None
        message = ""
        try:
            snapshot = await self._read_namespace(with_pods=False)
            self._generations = {w: f["metadata"].get("generation", 0) for w, f in snapshot.workloads.items()}
            read_at, is_directly_read = time.monotonic(), True
            waiting_since = read_at - self._progress.waited.total_seconds()
            self._debounce.resume(self._progress.failure_reason, self._progress.waited - self._progress.failing_for)
            while True:
                verdict = diagnose(self._rendered.workloads, self._generations, snapshot)
                if verdict.ready:
                    verdict = await self._probe.observe()
                    if verdict.ready:
                        return
                if verdict.reason is None and is_directly_read:
                    verdict = await self._check_failed_create_events(verdict)
                if verdict.reason is not None and verdict.reason is not last_reason:
                    verdict = await self._add_details(verdict)
                    message = verdict.message
                    await self._on_failure_reason(verdict.reason or FailureReason.UNAVAILABLE, message)
                last_reason = verdict.reason
                waited = timedelta(seconds=time.monotonic() - waiting_since)
                has_persisted = self._debounce.observe(verdict.reason, waited)
                self._progress.waited = waited
                self._progress.failure_reason = self._debounce.reason
                self._progress.failing_for = self._debounce.persisted_for(waited)
                if has_persisted or verdict.reason in FAIL_FAST_REASONS:
                    raise ClusterError(verdict.reason or FailureReason.UNAVAILABLE, message, permanent=True)
                longest = timedelta(seconds=self._rendered.service.ready_within_seconds)
                # Every workload is available while a probe runs. It ends by itself.
                if self._progress.waited >= longest and not self._probe.running:
                    waiting = ", ".join("/".join(workload) for workload in verdict.waiting_for)
                    raise ClusterError(
                        FailureReason.DEADLINE_EXCEEDED, message or f"Not ready: {waiting}.", permanent=True
                    )
                probing = self._probe.running or verdict.reason is FailureReason.PROBE_FAILED
                changed = await subscription.wait(
                    min(PROBE_PAUSE_SECONDS, self._poll_interval) if probing else self._poll_interval
                )
                latest_snapshot = (
                    self._cached_snapshot() if changed and time.monotonic() - read_at < RESYNC_SECONDS else None
                )
                is_directly_read = latest_snapshot is None
                if latest_snapshot is None:
                    latest_snapshot = await self._read_namespace()
                    read_at = time.monotonic()
                snapshot = latest_snapshot
        finally:
            await self._probe.stop()
            self._informer.unsubscribe(self._namespace, subscription)

    async def _read_namespace(self, *, with_pods: bool = True) -> NamespaceSnapshot:
        """Read the workloads directly; the pods only if a workload is not ready."""
        stored = await asyncio.gather(
            *(self._client.get(kind, self._namespace, name) for kind, name in self._rendered.workloads)
        )
        for (kind, name), manifest in zip(self._rendered.workloads, stored, strict=True):
            if manifest is None:
                raise ClusterError(
                    FailureReason.DELETED_EXTERNALLY, f"{kind} {name} was deleted before it became ready."
                )
        workloads = zip(self._rendered.workloads, stored, strict=True)
        snapshot = NamespaceSnapshot(
            workloads={workload: manifest for workload, manifest in workloads if manifest is not None}, pods=()
        )
        if diagnose(self._rendered.workloads, self._generations, snapshot).ready or not with_pods:
            return snapshot
        pods = await self._client.list("Pod", self._namespace, labels=self._selector)
        return NamespaceSnapshot(workloads=snapshot.workloads, pods=tuple(pods))

    def _cached_snapshot(self) -> NamespaceSnapshot | None:
        """Return the informer's snapshot, or None until it has listed every kind."""
        workloads: dict[Workload, Manifest] = {}
        for kind in {kind for kind, _ in self._rendered.workloads}:
            cached = self._informer.objects(kind, self._namespace)
            if cached is None:
                return None
            workloads |= {(kind, manifest["metadata"]["name"]): manifest for manifest in cached}
        pods = self._informer.objects("Pod", self._namespace)
        return None if pods is None else NamespaceSnapshot(workloads=workloads, pods=tuple(pods))

    async def _check_failed_create_events(self, verdict: Diagnosis) -> Diagnosis:
        """Return the failure reason of ``FailedCreate`` events, the only report of pods that may not be created."""
        events = await self._client.list("Event", self._namespace, fields="reason=FailedCreate", limit=20)
        names = {name for _, name in verdict.waiting_for}
        for event in events:
            involved_object = event.get("involvedObject") or {}
            reason = admission_failure_reason(event.get("message", ""))
            if involved_object.get("name") in names and reason not in (None, FailureReason.UNAVAILABLE):
                return replace(verdict, reason=reason, message=event["message"])
        return verdict

    async def _add_details(self, verdict: Diagnosis) -> Diagnosis:
        """Add the last log lines of a crashed container, or the reason of a pending volume."""
        if verdict.pod is None:
            return verdict
        if verdict.reason is FailureReason.CRASH_LOOP and verdict.container is not None:
            return replace(verdict, message=await self._append_logs(verdict))
        if verdict.reason is FailureReason.UNSCHEDULABLE:
            return await self._diagnose_volumes(verdict)
        return verdict

    async def _append_logs(self, verdict: Diagnosis) -> str:
        pod, container = verdict.pod, verdict.container
        assert pod is not None
        assert container is not None
        name = pod["metadata"]["name"]
        text = await self._client.logs(self._namespace, name, container, previous=True)
        text = text or await self._client.logs(self._namespace, name, container, previous=False)
        if not text.strip():
            return verdict.message
        return f"{verdict.message} Last lines:\n{await redacted_tail(self._client, self._rendered.spec, text)}"

    async def _diagnose_volumes(self, verdict: Diagnosis) -> Diagnosis:
        """Change the reason to ``PVC_PENDING`` if the unschedulable pod waits for a volume, not for a node."""
        assert verdict.pod is not None
        for name in mounted_claim_names(verdict.pod):
            claim = await self._client.get("PersistentVolumeClaim", self._namespace, name)
            if claim is None or (claim.get("status") or {}).get("phase") == "Bound":
                continue
            explanation = await self._unbound_claim_reason(claim)
            if explanation is not None:
                return replace(verdict, reason=FailureReason.PVC_PENDING, message=f"Volume {name}: {explanation}")
        return verdict

    async def _unbound_claim_reason(self, claim: dict[str, Any]) -> str | None:
        class_name = claim["spec"].get("storageClassName")
        if not class_name:
            return "the cluster has no default storage class."
        storage_class = await self._client.get("StorageClass", None, class_name)
        if storage_class is None:
            return f"storage class {class_name!r} does not exist."
        if storage_class.get("volumeBindingMode") == "WaitForFirstConsumer":
            return None
        modes = ", ".join(claim["spec"].get("accessModes") or [])
        return f"storage class {class_name!r} has not provided {modes} yet."
