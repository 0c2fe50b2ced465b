"""Waiting until an instance runs and answers, or until what is wrong with it has lasted too long."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from activities.adapters.kubernetes.diagnosis import Snapshot, Verdict, Workload, judge, unbound_claims
from activities.adapters.kubernetes.errors import ClusterError, refused_creation
from activities.adapters.kubernetes.gateway import KubernetesGateway, Object
from activities.adapters.kubernetes.observer import Observer
from activities.templates import INSTANCE, Rendered
from workflows.rules.instance import Patience, Trouble

LOOK_EVERY_SECONDS = 5.0
"""How often the namespace is read directly even though the watch is silent."""

PROBE_PAUSE_SECONDS = 0.5
IMMEDIATE = frozenset({Trouble.POD_SECURITY, Trouble.JOB_FAILED})
"""Troubles that no waiting changes."""

LOG_CHARACTERS = 1500

OnTrouble = Callable[[Trouble, str], Awaitable[None]]


class Waiter:
    """Waits for one instance."""

    def __init__(
        self,
        gateway: KubernetesGateway,
        observer: Observer,
        rendered: Rendered,
        *,
        patience: timedelta,
        told: OnTrouble,
    ) -> None:
        self._gateway = gateway
        self._observer = observer
        self._rendered = rendered
        self._namespace = rendered.spec.namespace
        self._patience = Patience(patience)
        self._tick = min(LOOK_EVERY_SECONDS, max(0.05, patience.total_seconds() / 4))
        self._told = told
        self._generations: dict[Workload, int] = {}

    async def until_ready(self) -> None:
        """Return when every workload is up and the probe got a good answer.

        Raises:
            ClusterError: with the trouble that lasted longer than the patience, or ``DeadlineExceeded``.
        """
        deadline = time.monotonic() + self._rendered.service.ready_within_seconds
        subscription = self._observer.subscribe(self._namespace)
        last: Trouble | None = None
        message = ""
        try:
            snapshot = await self._look(with_pods=False)
            self._generations = {w: f["metadata"].get("generation", 0) for w, f in snapshot.workloads.items()}
            looked = time.monotonic()
            while True:
                verdict = judge(self._rendered.workloads, self._generations, snapshot)
                if verdict.ready:
                    verdict = await self._probed()
                    if verdict.ready:
                        return
                elif verdict.trouble is None and time.monotonic() - looked < 0.01:
                    verdict = await self._silently_refused(verdict)
                if verdict.trouble is not None and verdict.trouble is not last:
                    verdict = await self._explained(verdict)
                    message = verdict.message
                    await self._told(verdict.trouble or Trouble.UNAVAILABLE, message)
                last = verdict.trouble
                if self._patience.observe(verdict.trouble, datetime.now(UTC)) or verdict.trouble in IMMEDIATE:
                    raise ClusterError(verdict.trouble or Trouble.UNAVAILABLE, message, permanent=True)
                if time.monotonic() >= deadline:
                    waiting = ", ".join("/".join(workload) for workload in verdict.waiting_for)
                    raise ClusterError(
                        Trouble.DEADLINE_EXCEEDED, message or f"Still waiting for {waiting}.", permanent=True
                    )
                pause = PROBE_PAUSE_SECONDS if verdict.trouble is Trouble.NO_ANSWER else self._tick
                changed = await subscription.wait(pause)
                seen = self._seen() if changed and time.monotonic() - looked < LOOK_EVERY_SECONDS else None
                if seen is None:
                    seen = await self._look()
                    looked = time.monotonic()
                snapshot = seen
        finally:
            self._observer.unsubscribe(self._namespace, subscription)

    async def _look(self, *, with_pods: bool = True) -> Snapshot:
        """Read the namespace directly; the pods only when something is not up."""
        found = await asyncio.gather(
            *(self._gateway.get(kind, self._namespace, name) for kind, name in self._rendered.workloads)
        )
        for (kind, name), one in zip(self._rendered.workloads, found, strict=True):
            if one is None:
                raise ClusterError(Trouble.GONE, f"{kind} {name} was deleted while it was waited for.")
        workloads = zip(self._rendered.workloads, found, strict=True)
        up = Snapshot(workloads={workload: one for workload, one in workloads if one is not None}, pods=())
        if judge(self._rendered.workloads, self._generations, up).ready or not with_pods:
            return up
        pods = await self._gateway.list("Pod", self._namespace, labels=INSTANCE)
        return Snapshot(workloads=up.workloads, pods=tuple(pods))

    def _seen(self) -> Snapshot | None:
        """What the shared watches know, None when they do not know it all."""
        workloads: dict[Workload, Object] = {}
        for kind in {kind for kind, _ in self._rendered.workloads}:
            known = self._observer.objects(kind, self._namespace)
            if known is None:
                return None
            workloads |= {(kind, found["metadata"]["name"]): found for found in known}
        pods = self._observer.objects("Pod", self._namespace)
        return None if pods is None else Snapshot(workloads=workloads, pods=tuple(pods))

    async def _probed(self) -> Verdict:
        probe = self._rendered.service.probe
        try:
            status = await self._gateway.probe(self._namespace, probe.service, probe.port, probe.path, probe.headers)
        except ClusterError as error:
            return Verdict(ready=False, trouble=Trouble.NO_ANSWER, message=error.message)
        if 200 <= status < 400:
            return Verdict(ready=True)
        return Verdict(
            ready=False, trouble=Trouble.NO_ANSWER, message=f"The application answers {status} at {probe.path}."
        )

    async def _silently_refused(self, verdict: Verdict) -> Verdict:
        """A controller that may not create pods says so only in an event."""
        events = await self._gateway.list("Event", self._namespace, fields="reason=FailedCreate", limit=20)
        names = {name for _, name in verdict.waiting_for}
        for event in events:
            about = event.get("involvedObject") or {}
            trouble = refused_creation(event.get("message", ""))
            if about.get("name") in names and trouble not in (None, Trouble.UNAVAILABLE):
                return replace(verdict, trouble=trouble, message=event["message"])
        return verdict

    async def _explained(self, verdict: Verdict) -> Verdict:
        """Add what only a closer look tells: the last log lines, or the state of the volumes."""
        if verdict.pod is None:
            return verdict
        if verdict.trouble is Trouble.CRASH_LOOP and verdict.container is not None:
            return replace(verdict, message=await self._with_logs(verdict))
        if verdict.trouble is Trouble.UNSCHEDULABLE:
            return await self._volumes(verdict)
        return verdict

    async def _with_logs(self, verdict: Verdict) -> str:
        pod, container = verdict.pod, verdict.container
        assert pod is not None
        assert container is not None
        name = pod["metadata"]["name"]
        text = await self._gateway.logs(self._namespace, name, container, previous=True)
        text = text or await self._gateway.logs(self._namespace, name, container, previous=False)
        if not text.strip():
            return verdict.message
        return f"{verdict.message} Last lines:\n{await self._redacted(text.strip()[-LOG_CHARACTERS:])}"

    async def _redacted(self, text: str) -> str:
        """Logs leave the cluster with this message; the instance's secrets must not."""
        for secret in await self._gateway.list("Secret", self._namespace, labels=INSTANCE):
            for value in (secret.get("data") or {}).values():
                plain = base64.b64decode(value).decode(errors="replace")
                if len(plain) >= 8:
                    text = text.replace(plain, "[secret]")
        return text

    async def _volumes(self, verdict: Verdict) -> Verdict:
        """Tell a pod that waits for a volume from one that waits for a node."""
        assert verdict.pod is not None
        for name in unbound_claims(verdict.pod):
            claim = await self._gateway.get("PersistentVolumeClaim", self._namespace, name)
            if claim is None or (claim.get("status") or {}).get("phase") == "Bound":
                continue
            why = await self._why_unbound(claim)
            if why is not None:
                return replace(verdict, trouble=Trouble.PVC_PENDING, message=f"Volume {name}: {why}")
        return verdict

    async def _why_unbound(self, claim: dict[str, Any]) -> str | None:
        class_name = claim["spec"].get("storageClassName")
        if not class_name:
            return "the cluster has no default storage class."
        found = await self._gateway.get("StorageClass", None, class_name)
        if found is None:
            return f"there is no storage class {class_name!r}."
        if found.get("volumeBindingMode") == "WaitForFirstConsumer":
            return None
        modes = ", ".join(claim["spec"].get("accessModes") or [])
        return f"storage class {class_name!r} has not provided {modes} yet."
