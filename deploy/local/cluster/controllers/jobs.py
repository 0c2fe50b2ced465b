"""Jobs and CronJobs."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

from deploy.local.cluster.controllers.base import (
    Controller,
    ControlLoop,
    Keys,
    has_condition,
    itself,
    owner_of,
    owner_reference,
    set_condition,
)
from deploy.local.cluster.controllers.workloads import active, is_ready, pod_of
from deploy.local.cluster.cron import Schedule
from deploy.local.cluster.resources import CRON_JOBS, JOBS, PODS, Obj
from deploy.local.cluster.store import StoredObject, copy_of
from deploy.local.cluster.times import now, seconds_since

COMPLETE = ("Complete", "CompletionsReached", "Reached expected number of succeeded pods")
TOO_MANY_FAILURES = ("Failed", "BackoffLimitExceeded", "Job has reached the specified backoff limit")
TOO_LATE = ("Failed", "DeadlineExceeded", "Job was active longer than specified deadline")


def is_finished(job: Obj) -> bool:
    return has_condition(job, "Complete") or has_condition(job, "Failed")


class Jobs(Controller):
    name = "jobs"

    def __init__(self, loop: ControlLoop) -> None:
        super().__init__(loop)
        # When the next pod may follow a failed one, by the job's uid and its failures.
        self._next_try: dict[tuple[str, int], float] = {}

    def watches(self) -> dict[str, Keys]:
        return {"batch/jobs": itself, "/pods": owner_of("Job")}

    def reconcile(self, namespace: str, name: str) -> float | None:
        stored = self.store.get(JOBS, namespace, name)
        if stored is None or stored.obj["metadata"].get("deletionTimestamp"):
            return None
        obj, spec = stored.obj, stored.obj["spec"]
        if is_finished(obj):
            return self._expire(stored)
        pods = self.store.owned(obj["metadata"]["uid"], PODS)
        phases = [pod.obj["status"]["phase"] for pod in pods]
        succeeded, failed = phases.count("Succeeded"), phases.count("Failed")
        restarts = sum(s["restartCount"] for pod in pods for s in pod.obj["status"].get("containerStatuses") or ())
        age = seconds_since(obj.get("status", {}).get("startTime") or now())
        limit = spec.get("activeDeadlineSeconds")
        verdict: tuple[str, str, str] | None = None
        if succeeded >= spec["completions"]:
            verdict = COMPLETE
        elif failed + restarts > spec["backoffLimit"]:
            verdict = TOO_MANY_FAILURES
        elif limit is not None and age >= limit:
            verdict = TOO_LATE
        delay = None if limit is None or verdict else limit - age + 0.1
        if verdict or spec["suspend"]:
            for pod in active(pods):
                self.loop.delete(PODS, pod)
        elif not active(pods):
            wait = self._wait(obj, failed)
            if wait > 0:
                delay = wait
            else:
                owner = owner_reference(JOBS, obj)
                template = copy_of(stored)["spec"]["template"]
                created = self.loop.create(PODS, pod_of(template, namespace, owner, generateName=f"{name}-"))
                text = f"Created pod: {created['metadata']['name']}"
                self.loop.event(obj, "SuccessfulCreate", text, source="job-controller")
        self._write_status(stored, succeeded, failed, verdict)
        return delay

    def _wait(self, obj: Obj, failed: int) -> float:
        """Return the seconds until the next pod may follow a failed one; shortened like every simulated delay."""
        if not failed:
            return 0.0
        delay = self.loop.seconds(0.1 * 2 ** min(failed - 1, 4))
        return self._next_try.setdefault((obj["metadata"]["uid"], failed), time.monotonic() + delay) - time.monotonic()

    def _write_status(
        self, stored: StoredObject, succeeded: int, failed: int, verdict: tuple[str, str, str] | None
    ) -> None:
        running = active(self.store.owned(stored.obj["metadata"]["uid"], PODS)) if verdict is None else []

        def write(new: Obj) -> None:
            status = new.setdefault("status", {})
            if not new["spec"]["suspend"]:
                status.setdefault("startTime", now())
            for key, value in (("active", len(running)), ("succeeded", succeeded), ("failed", failed)):
                status.pop(key, None)
                status |= {key: value} if value else {}
            status["ready"] = sum(is_ready(pod.obj) for pod in running)
            if verdict is not None:
                set_condition(status, verdict[0], "True", verdict[1], verdict[2])
                if verdict is COMPLETE:
                    status["completionTime"] = now()

        self.registry.modify(JOBS, stored, write)
        if verdict is not None:
            self.loop.event(stored.obj, verdict[1], verdict[2], source="job-controller", warning=verdict[0] == "Failed")

    def _expire(self, stored: StoredObject) -> float | None:
        lifetime = stored.obj["spec"].get("ttlSecondsAfterFinished")
        if lifetime is None:
            return None
        conditions = stored.obj["status"]["conditions"]
        ended = max(c["lastTransitionTime"] for c in conditions if c["type"] in ("Complete", "Failed"))
        remaining = lifetime - seconds_since(ended)
        if remaining > 0:
            return float(remaining)
        self.loop.delete(JOBS, stored)
        return None


class CronJobs(Controller):
    name = "cronjobs"

    def watches(self) -> dict[str, Keys]:
        return {"batch/cronjobs": itself, "batch/jobs": owner_of("CronJob")}

    def reconcile(self, namespace: str, name: str) -> float | None:
        stored = self.store.get(CRON_JOBS, namespace, name)
        if stored is None or stored.obj["metadata"].get("deletionTimestamp"):
            return None
        obj, spec = stored.obj, stored.obj["spec"]
        jobs = self.store.owned(obj["metadata"]["uid"], JOBS)
        self._prune(spec, jobs)
        running = [job for job in jobs if not is_finished(job.obj)]
        delay: float | None = None
        last = obj.get("status", {}).get("lastScheduleTime") or obj["metadata"]["creationTimestamp"]
        if not spec["suspend"]:
            schedule, present = Schedule(spec["schedule"]), datetime.now(UTC)
            due = schedule.next(datetime.fromisoformat(last))
            if due <= present:
                # Of several missed runs only the newest is started.
                while (following := schedule.next(due)) <= present:
                    due = following
                running = self._run(stored, due, running)
                last, due = due.strftime("%Y-%m-%dT%H:%M:%SZ"), following
            delay = max(0.05, (due - present).total_seconds() + 0.05)
        completed = [job.obj["status"]["completionTime"] for job in jobs if has_condition(job.obj, "Complete")]

        def write(new: Obj) -> None:
            status: dict[str, Any] = new.setdefault("status", {})
            if last != new["metadata"]["creationTimestamp"]:
                status["lastScheduleTime"] = last
            if completed:
                status["lastSuccessfulTime"] = max(completed)
            status["active"] = [{"kind": "Job", "namespace": namespace, "name": job.name} for job in running]

        self.registry.modify(CRON_JOBS, stored, write)
        return delay

    def _run(self, stored: StoredObject, due: datetime, running: list[StoredObject]) -> list[StoredObject]:
        policy = stored.obj["spec"]["concurrencyPolicy"]
        if running and policy == "Forbid":
            return running
        for job in running if policy == "Replace" else ():
            self.loop.delete(JOBS, job)
        name = f"{stored.name}-{int(due.timestamp()) // 60}"
        if self.store.get(JOBS, stored.namespace, name) is None:
            template = copy_of(stored)["spec"]["jobTemplate"]
            inner = template.get("metadata") or {}
            meta = {
                "name": name,
                "namespace": stored.namespace,
                "ownerReferences": [owner_reference(CRON_JOBS, stored.obj)],
            }
            meta |= {key: inner[key] for key in ("labels", "annotations") if inner.get(key)}
            self.loop.create(
                JOBS, {"apiVersion": "batch/v1", "kind": "Job", "metadata": meta, "spec": template["spec"]}
            )
        return [*(running if policy == "Allow" else []), self.registry.get(JOBS, stored.namespace, name)]

    def _prune(self, spec: Obj, jobs: list[StoredObject]) -> None:
        """Delete finished jobs beyond the history limits, the oldest first."""
        for kind, limit in (("Complete", "successfulJobsHistoryLimit"), ("Failed", "failedJobsHistoryLimit")):
            ended = [job for job in jobs if has_condition(job.obj, kind)]
            ended.sort(key=lambda job: str(job.obj["metadata"]["creationTimestamp"]))
            for job in ended[: max(0, len(ended) - spec[limit])]:
                self.loop.delete(JOBS, job)
