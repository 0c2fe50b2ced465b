"""Jobs and CronJobs."""

from __future__ import annotations

import time
from datetime import UTC, datetime

import orjson

from deploy.local.cluster.controllers.base import (
    Controller,
    Keys,
    World,
    condition,
    has_condition,
    own,
    owner_of,
    reference,
)
from deploy.local.cluster.controllers.workloads import PODS, active, is_ready, pod_from
from deploy.local.cluster.cron import Schedule
from deploy.local.cluster.resources import BY_KEY, Obj
from deploy.local.cluster.store import Record
from deploy.local.cluster.times import now, seconds_since

JOBS, CRONS = BY_KEY["batch/jobs"], BY_KEY["batch/cronjobs"]


class Jobs(Controller):
    name = "jobs"

    def __init__(self, world: World) -> None:
        super().__init__(world)
        # When the next pod may follow a failed one, by (newest pod's version, failures).
        self._paused: dict[tuple[int, int], float] = {}

    def watches(self) -> dict[str, Keys]:
        return {"batch/jobs": own, "/pods": owner_of("Job")}

    def reconcile(self, namespace: str, name: str) -> float | None:
        record = self.store.get(JOBS, namespace, name)
        if record is None or record.obj["metadata"].get("deletionTimestamp"):
            return None
        obj = record.obj
        if has_condition(obj, "Complete") or has_condition(obj, "Failed"):
            return self._expire(record)
        spec = obj["spec"]
        pods = self.store.owned(obj["metadata"]["uid"], PODS)
        done = sum(1 for p in pods if p.obj["status"].get("phase") == "Succeeded")
        failed = sum(1 for p in pods if p.obj["status"].get("phase") == "Failed")
        restarts = sum(s.get("restartCount", 0) for p in pods for s in p.obj["status"].get("containerStatuses") or ())
        running = active(pods)
        wanted = spec.get("completions") or 1
        verdict: tuple[str, str, str] | None = None
        limit = spec.get("activeDeadlineSeconds")
        if done >= wanted:
            verdict = ("Complete", "CompletionsReached", "Reached expected number of succeeded pods")
        elif failed > spec["backoffLimit"] or (
            spec["template"]["spec"]["restartPolicy"] == "OnFailure" and restarts > spec["backoffLimit"]
        ):
            verdict = ("Failed", "BackoffLimitExceeded", "Job has reached the specified backoff limit")
        elif limit and obj.get("status", {}).get("startTime") and seconds_since(obj["status"]["startTime"]) >= limit:
            verdict = ("Failed", "DeadlineExceeded", "Job was active longer than specified deadline")
        again: float | None = None
        if verdict is not None or spec.get("suspend"):
            for pod in running:
                self.world.delete(PODS, pod)
        else:
            again = (
                limit - seconds_since(obj["status"]["startTime"]) + 0.1
                if limit and obj.get("status", {}).get("startTime")
                else None
            )
            missing = min(spec["parallelism"], wanted - done) - len(running)
            wait = self._pause(pods, failed)
            if missing > 0 and wait > 0:
                again = wait
            for _ in range(missing if wait <= 0 else 0):
                template = orjson.loads(orjson.dumps(spec["template"]))
                wanted_pod = pod_from(template, namespace, reference(JOBS, obj), generateName=f"{name}-")
                made = self.world.create(PODS, wanted_pod)
                self.world.event(
                    obj, "SuccessfulCreate", f"Created pod: {made['metadata']['name']}", source="job-controller"
                )
        self._status(record, done, failed, verdict)
        return again

    def _pause(self, pods: list[Record], failed: int) -> float:
        """The back-off after a failed pod, shortened like every other wait here."""
        if not failed:
            return 0.0
        last = max(p.version for p in pods)
        key = (last, failed)
        due = self._paused.setdefault(key, time.monotonic() + self.world.seconds(0.1 * 2 ** min(failed - 1, 4)))
        return due - time.monotonic()

    def _status(self, record: Record, done: int, failed: int, verdict: tuple[str, str, str] | None) -> None:
        pods = self.store.owned(record.obj["metadata"]["uid"], PODS)
        alive = active(pods)

        def write(new: Obj) -> None:
            status = new.setdefault("status", {})
            if not new["spec"].get("suspend"):
                status.setdefault("startTime", now())
            counts = (("active", 0 if verdict else len(alive)), ("succeeded", done), ("failed", failed))
            for key, value in counts:
                if value:
                    status[key] = value
                else:
                    status.pop(key, None)
            status["ready"] = 0 if verdict else sum(1 for p in alive if is_ready(p.obj))
            status.setdefault("terminating", 0)
            status.setdefault("uncountedTerminatedPods", {})
            if new["spec"].get("suspend"):
                condition(status, "Suspended", "True", "JobSuspended", "Job suspended", lastProbeTime=now())
            elif has_condition(new, "Suspended"):
                condition(status, "Suspended", "False", "JobResumed", "Job resumed", lastProbeTime=now())
            if verdict is not None:
                kind, reason, message = verdict
                first = "SuccessCriteriaMet" if kind == "Complete" else "FailureTarget"
                condition(status, first, "True", reason, message, lastProbeTime=now())
                condition(status, kind, "True", reason, message, lastProbeTime=now())
                if kind == "Complete":
                    status["completionTime"] = now()

        self.registry.modify(JOBS, record, write)
        if verdict is not None:
            kind = "Completed" if verdict[0] == "Complete" else verdict[1]
            text = "Job completed" if verdict[0] == "Complete" else verdict[2]
            self.world.event(
                record.obj,
                kind,
                text,
                source="job-controller",
                type_="Normal" if verdict[0] == "Complete" else "Warning",
            )

    def _expire(self, record: Record) -> float | None:
        lifetime = record.obj["spec"].get("ttlSecondsAfterFinished")
        if lifetime is None:
            return None
        ended = max(
            c["lastTransitionTime"] for c in record.obj["status"]["conditions"] if c["type"] in ("Complete", "Failed")
        )
        left = lifetime - seconds_since(ended)
        if left > 0:
            return float(left)
        self.world.delete(JOBS, record)
        return None


class CronJobs(Controller):
    name = "cronjobs"

    def watches(self) -> dict[str, Keys]:
        return {"batch/cronjobs": own, "batch/jobs": owner_of("CronJob")}

    def reconcile(self, namespace: str, name: str) -> float | None:
        record = self.store.get(CRONS, namespace, name)
        if record is None or record.obj["metadata"].get("deletionTimestamp"):
            return None
        obj = record.obj
        jobs = self.store.owned(obj["metadata"]["uid"], JOBS)
        running = [j for j in jobs if not has_condition(j.obj, "Complete") and not has_condition(j.obj, "Failed")]
        self._history(obj, jobs)
        again: float | None = None
        last = obj.get("status", {}).get("lastScheduleTime") or obj["metadata"]["creationTimestamp"]
        if not obj["spec"].get("suspend"):
            schedule = Schedule(obj["spec"]["schedule"])
            present = datetime.now(UTC)
            due = schedule.next(datetime.fromisoformat(last))
            if due <= present:
                # Only the newest of what was missed is made up for, as a real one does within its deadline.
                while (following := schedule.next(due)) <= present:
                    due = following
                running = self._fire(obj, due, running)
                last = due.strftime("%Y-%m-%dT%H:%M:%SZ")
                due = following
            again = max(0.05, (due - present).total_seconds() + 0.05)
        finished = max(
            (j.obj["status"]["completionTime"] for j in jobs if j.obj.get("status", {}).get("completionTime")),
            default=None,
        )

        def write(new: Obj) -> None:
            status = new.setdefault("status", {})
            if last != new["metadata"]["creationTimestamp"]:
                status["lastScheduleTime"] = last
            if finished:
                status["lastSuccessfulTime"] = finished
            if running:
                status["active"] = [
                    {
                        "apiVersion": "batch/v1",
                        "kind": "Job",
                        "name": j.name,
                        "namespace": namespace,
                        "uid": j.obj["metadata"]["uid"],
                    }
                    for j in running
                ]
            else:
                status.pop("active", None)

        self.registry.modify(CRONS, record, write)
        return again

    def _fire(self, obj: Obj, due: datetime, running: list[Record]) -> list[Record]:
        policy = obj["spec"]["concurrencyPolicy"]
        if running and policy == "Forbid":
            return running
        if policy == "Replace":
            for job in running:
                self.world.delete(JOBS, job)
        meta = obj["metadata"]
        name = f"{meta['name']}-{int(due.timestamp()) // 60}"
        if self.store.get(JOBS, meta["namespace"], name) is None:
            template = orjson.loads(orjson.dumps(obj["spec"]["jobTemplate"]))
            inner = template.get("metadata") or {}
            made: Obj = {
                "name": name,
                "namespace": meta["namespace"],
                "ownerReferences": [reference(CRONS, obj)],
                "annotations": {
                    **(inner.get("annotations") or {}),
                    "batch.kubernetes.io/cronjob-scheduled-timestamp": due.isoformat(),
                },
            }
            if inner.get("labels"):
                made["labels"] = inner["labels"]
            self.world.create(
                JOBS, {"apiVersion": "batch/v1", "kind": "Job", "metadata": made, "spec": template["spec"]}
            )
            self.world.event(obj, "SuccessfulCreate", f"Created job {name}", source="cronjob-controller")
        made_record = self.store.get(JOBS, meta["namespace"], name)
        kept = [] if policy == "Replace" else running
        return [*kept, made_record] if made_record else kept

    def _history(self, obj: Obj, jobs: list[Record]) -> None:
        for kind, key in (("Complete", "successfulJobsHistoryLimit"), ("Failed", "failedJobsHistoryLimit")):
            ended = sorted(
                (j for j in jobs if has_condition(j.obj, kind)), key=lambda j: j.obj["metadata"]["creationTimestamp"]
            )
            for job in ended[: max(0, len(ended) - obj["spec"].get(key, 1))]:
                self.world.delete(JOBS, job)
