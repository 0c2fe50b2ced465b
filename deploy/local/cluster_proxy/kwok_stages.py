"""The stages that kwok plays for faults of pods."""

from __future__ import annotations

import json
from typing import Any

_CONTAINERS = """
{{ $now := Now }}
{{ $pod := . }}
conditions:
- {type: Initialized, status: "True", lastTransitionTime: {{ $now | Quote }}}
- type: Ready
  status: "False"
  reason: ContainersNotReady
  message: {{ printf "containers with unready status, %s" $now | Quote }}
  lastTransitionTime: {{ $now | Quote }}
phase: PHASE
containerStatuses:
{{ range $index, $container := .spec.containers }}
{{ $reason := "" }}
{{ $restarts := 0 }}
{{ with $pod.status.containerStatuses }}
{{ $old := index . $index }}
{{ $reason = dig "state" "waiting" "reason" "" $old }}
{{ $restarts = dig "restartCount" 0 $old }}
{{ end }}
- name: {{ $container.name | Quote }}
  image: {{ $container.image | Quote }}
  imageID: ""
  ready: false
  started: false
STATE
{{ end }}
"""

_IMAGE_PULL = """
  restartCount: 0
  state:
    waiting:
      reason: {{ if eq $reason "ErrImagePull" }}ImagePullBackOff{{ else }}ErrImagePull{{ end }}
      message: {{ printf "failed to pull image %s: not found" $container.image | Quote }}
"""

_CRASH_STATUS = """
  restartCount: {{ if eq $pod.spec.restartPolicy "Never" }}0{{ else }}{{ add $restarts 1 }}{{ end }}
  {{ if eq $pod.spec.restartPolicy "Never" }}
  state:
    terminated: {exitCode: EXIT, reason: REASON, startedAt: {{ $now | Quote }}, finishedAt: {{ $now | Quote }}}
  {{ else }}
  lastState:
    terminated: {exitCode: EXIT, reason: REASON, startedAt: {{ $now | Quote }}, finishedAt: {{ $now | Quote }}}
  state:
    waiting: {reason: CrashLoopBackOff, message: back-off restarting failed container}
  {{ end }}
"""

_SLOW_READY = """
  restartCount: 0
  state:
    running: {startedAt: {{ $pod.metadata.creationTimestamp | Quote }}}
"""

_CRASH_PHASE = '{{ if eq .spec.restartPolicy "Never" }}Failed{{ else }}Running{{ end }}'
# Phase and container state by fault. The condition's message changes each time, so that kwok plays the stage again.
_TEMPLATES = {
    "image_pull": ("Pending", _IMAGE_PULL),
    "crash_loop": (_CRASH_PHASE, _CRASH_STATUS.replace("EXIT", "1").replace("REASON", "Error")),
    "oom": (_CRASH_PHASE, _CRASH_STATUS.replace("EXIT", "137").replace("REASON", "OOMKilled")),
    "slow_ready": ("Running", _SLOW_READY),
}
SLOW_READY_SECONDS = 20
REPEAT_MILLISECONDS = 300


def pod_stage(name: str, kind: str, pattern: str, label: str, *, victims: list[str] | None = None) -> dict[str, Any]:
    """Return the Stage of a fault.

    Args:
        kind: `image_pull`, `crash_loop`, `oom` or `slow_ready`.
        pattern: Regular expression of the namespaces.
        label: Key of the label that marks the stage as a fault.
        victims: Uids of the only pods that are struck; None strikes every new pod.
    """
    phase, state = _TEMPLATES[kind]
    expressions: list[dict[str, Any]] = [
        {"key": ".metadata.deletionTimestamp", "operator": "DoesNotExist"},
        # Pods that were ready before the fault are spared.
        {"key": ".status.podIP", "operator": "DoesNotExist"},
        {"key": ".status.phase", "operator": "In", "values": ["Pending", "Running"]},
        {"key": f".metadata.namespace | test({json.dumps(pattern)})", "operator": "In", "values": ["true"]},
    ]
    if kind == "slow_ready":
        age = f"(now - (.metadata.creationTimestamp | fromdateiso8601)) < {SLOW_READY_SECONDS}"
        expressions.append({"key": age, "operator": "In", "values": ["true"]})
    if victims is not None:
        expressions.append({"key": ".metadata.uid", "operator": "In", "values": victims})
    following: dict[str, Any] = {
        "statusTemplate": _CONTAINERS.replace("PHASE", phase).replace("STATE", state.strip("\n"))
    }
    if kind == "slow_ready":
        why = "Readiness probe failed: HTTP probe failed with statuscode: 503"
        following["event"] = {"type": "Warning", "reason": "Unhealthy", "message": why}
    return {
        "apiVersion": "kwok.x-k8s.io/v1alpha1",
        "kind": "Stage",
        "metadata": {"name": name, "labels": {label: kind}},
        "spec": {
            "resourceRef": {"apiGroup": "v1", "kind": "Pod"},
            "selector": {"matchExpressions": expressions},
            "delay": {"durationMilliseconds": REPEAT_MILLISECONDS},
            "weight": 10000,
            "next": following,
        },
    }
