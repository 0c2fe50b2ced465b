"""Faults of pods and nodes on the real control plane, where kwok runs the pods: as stages that kwok plays.

A fault of pods is a Stage object with a weight, so that kwok plays it instead of the default stage
(`deploy/controlplane/stages.yaml`). It never sets the pod's address: once the stage is deleted, the pod becomes ready
as any other. kwok does not schedule pods: `unschedulable` is an admission policy that adds a node selector which no
node satisfies.
"""

from __future__ import annotations

import asyncio
import fnmatch
import json
import logging
import re
import time
from typing import Any

import aiohttp

from deploy.local.cluster_proxy.kwok_stages import pod_stage
from deploy.local.cluster_proxy.upstream import Upstream

log = logging.getLogger(__name__)

Obj = dict[str, Any]

LABEL = "berth.local/fault"
NODE_LOST = "berth.local/node-lost"
STAGES = "/apis/kwok.x-k8s.io/v1alpha1/stages"
ADMISSION = "/apis/admissionregistration.k8s.io/v1"
POLICIES, BINDINGS = f"{ADMISSION}/mutatingadmissionpolicies", f"{ADMISSION}/mutatingadmissionpolicybindings"
MERGE_PATCH = "application/merge-patch+json"
POLL_INTERVAL_SECONDS = 0.25
POLICY_SECONDS = 20.0
PROBE = "fault-probe"


class KwokFault:
    """One active fault. `victims` are the uids of the pods, or the names of the nodes, that it has struck."""

    def __init__(self, request: Obj, number: int) -> None:
        self.kind: str = request["fault"]
        self.name = f"fault-{self.kind.replace('_', '-')}-{number}"
        self.namespace: str | None = request.get("namespace")
        self.count: int | None = request.get("count")
        self.node: str | None = request.get("node")
        seconds = request.get("seconds")
        self.until = None if seconds is None else time.monotonic() + float(seconds)
        self.victims: set[str] = set()

    @property
    def pattern(self) -> str:
        """The namespace glob as a regular expression of RE2."""
        parts = (".*" if char == "*" else "." if char == "?" else re.escape(char) for char in self.namespace or "*")
        return f"^{''.join(parts)}$"

    def is_over(self) -> bool:
        return self.until is not None and time.monotonic() >= self.until

    def covers(self, pod: Obj) -> bool:
        return self.namespace is None or fnmatch.fnmatchcase(pod["metadata"]["namespace"], self.namespace)

    def as_json(self) -> Obj:
        out: Obj = {"fault": self.kind, "hits": len(self.victims)}
        for key, value in (("namespace", self.namespace), ("count", self.count), ("node", self.node)):
            if value is not None:
                out[key] = value
        if self.until is not None:
            out["seconds_left"] = round(max(0.0, self.until - time.monotonic()), 3)
        return out


class KwokPodFaults:
    """Implements `PodFaults`."""

    def __init__(self, upstream: Upstream, session: aiohttp.ClientSession) -> None:
        self._upstream = upstream
        self._session = session
        self._faults: list[KwokFault] = []
        self._number = 0
        self._watching: asyncio.Task[None] | None = None
        # Adding, ending and counting do not overlap.
        self._lock = asyncio.Lock()

    async def add(self, request: Obj) -> Obj:
        """Switch a fault on. Returns when pods created from now on are struck."""
        async with self._lock:
            self._number += 1
            fault = KwokFault(request, time.time_ns() // 1_000_000 + self._number)
            if fault.kind == "node_lost":
                await self._lose_nodes(fault)
            elif fault.kind == "unschedulable":
                await self._add_policy(fault)
            else:
                await self._call("POST", STAGES, pod_stage(fault.name, fault.kind, fault.pattern, LABEL))
            self._faults.append(fault)
        if self._watching is None or self._watching.done():
            self._watching = asyncio.create_task(self._watch())
        return fault.as_json()

    async def clear(self) -> None:
        async with self._lock:
            for fault in self._faults:
                await self._end(fault)
            self._faults.clear()

    async def listed(self) -> list[Obj]:
        async with self._lock:
            return [fault.as_json() for fault in self._faults]

    async def remove_leftovers(self) -> None:
        """End the faults of a former proxy: faults do not outlive the process."""
        for path in (STAGES, BINDINGS, POLICIES):
            await self._call("DELETE", f"{path}?labelSelector={LABEL}")
        for node in (await self._call("GET", "/api/v1/nodes")).get("items", ()):
            if NODE_LOST in (node["metadata"].get("annotations") or {}):
                await self._return_node(node["metadata"]["name"])

    async def _call(self, method: str, path: str, body: Obj | None = None, kind: str = "application/json") -> Obj:
        async with self._session.request(
            method,
            self._upstream.url + path,
            data=None if body is None else json.dumps(body),
            # The API server compresses what is longer than 128 KiB, and the session hands on what it receives.
            headers={**self._upstream.headers, "Content-Type": kind, "Accept-Encoding": "identity"},
            ssl=self._upstream.tls or False,
        ) as response:
            # A path whose kind is not served yet answers 404 in plain text.
            content: Obj = (
                await response.json() if "json" in response.content_type else {"message": await response.text()}
            )
            if response.status >= 400 and response.status != 404:
                log.warning("%s %s: %s", method, path, content.get("message"))
            return content

    # ------------------------------------------------------------ counting and ending

    async def _watch(self) -> None:
        while self._faults:
            try:
                async with self._lock:
                    await self._update_victims()
            except (aiohttp.ClientError, TimeoutError) as exc:
                log.warning("while counting victims: %r", exc)
            await asyncio.sleep(POLL_INTERVAL_SECONDS)

    async def _update_victims(self) -> None:
        """Note which pods are struck, narrow faults with a count to their victims, end those that are over."""
        pods = (await self._call("GET", "/api/v1/pods")).get("items", [])
        for fault in tuple(self._faults):
            if fault.is_over():
                self._faults.remove(fault)
                await self._end(fault)
            elif fault.kind != "node_lost":
                await self._count(fault, [pod for pod in pods if fault.covers(pod)])

    async def _count(self, fault: KwokFault, pods: list[Obj]) -> None:
        before = len(fault.victims)
        for pod in pods:
            meta, status = pod["metadata"], pod.get("status", {})
            if fault.kind == "unschedulable":
                struck = fault.name in json.dumps(pod["spec"].get("nodeSelector") or {})
            else:
                struck = bool(status.get("containerStatuses")) and "podIP" not in status
            if struck and (fault.count is None or len(fault.victims) < fault.count):
                fault.victims.add(meta["uid"])
        if fault.count is None or len(fault.victims) == before:
            return
        if len(fault.victims) == fault.count and fault.kind != "unschedulable":
            stage = pod_stage(fault.name, fault.kind, fault.pattern, LABEL, victims=sorted(fault.victims))
            await self._call("PATCH", f"{STAGES}/{fault.name}", {"spec": stage["spec"]}, MERGE_PATCH)

    async def _end(self, fault: KwokFault) -> None:
        if fault.kind == "node_lost":
            for name in fault.victims:
                await self._return_node(name)
        elif fault.kind == "unschedulable":
            await self._call("DELETE", f"{BINDINGS}/{fault.name}")
            await self._call("DELETE", f"{POLICIES}/{fault.name}")
            # The pods keep their node selector: let every node satisfy it.
            for node in (await self._call("GET", "/api/v1/nodes"))["items"]:
                labels = {"metadata": {"labels": {f"{LABEL}-{fault.name}": "over"}}}
                await self._call("PATCH", f"/api/v1/nodes/{node['metadata']['name']}", labels, MERGE_PATCH)
        else:
            await self._call("DELETE", f"{STAGES}/{fault.name}")

    # ------------------------------------------------------------ unschedulable

    async def _add_policy(self, fault: KwokFault) -> None:
        meta: Obj = {"name": fault.name, "labels": {LABEL: fault.kind}}
        key = json.dumps(f"{LABEL}-{fault.name}")
        # `add` replaces a whole nodeSelector: one that the pod has is extended instead.
        extend = f'[JSONPatch{{op: "add", path: "/spec/nodeSelector/" + jsonpatch.escapeKey({key}), value: "over"}}]'
        create = f'[JSONPatch{{op: "add", path: "/spec/nodeSelector", value: {{{key}: "over"}}}}]'
        patch = f"has(object.spec.nodeSelector) ? {extend} : {create}"
        condition = f"request.namespace.matches({json.dumps(fault.pattern)}) || object.metadata.name == '{PROBE}'"
        rule = {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}
        policy: Obj = {
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "MutatingAdmissionPolicy",
            "metadata": meta,
            "spec": {
                "matchConstraints": {"resourceRules": [rule]},
                "matchConditions": [{"name": "namespace", "expression": condition}],
                "reinvocationPolicy": "Never",
                "failurePolicy": "Fail",
                "mutations": [{"patchType": "JSONPatch", "jsonPatch": {"expression": patch}}],
            },
        }
        binding = {**policy, "kind": "MutatingAdmissionPolicyBinding", "spec": {"policyName": fault.name}}
        await self._call("POST", POLICIES, policy)
        await self._call("POST", BINDINGS, binding)
        # The API server reads policies from a cache: try until one is applied.
        probe: Obj = {"metadata": {"name": PROBE}, "spec": {"containers": [{"name": "probe", "image": "probe"}]}}
        deadline = time.monotonic() + POLICY_SECONDS
        while time.monotonic() < deadline:
            pod = await self._call("POST", "/api/v1/namespaces/default/pods?dryRun=All", probe)
            if pod.get("spec", {}).get("nodeSelector"):
                return
            await asyncio.sleep(0.05)
        log.warning("%s: the API server does not apply the policy", fault.name)

    # ------------------------------------------------------------ nodes

    async def _lose_nodes(self, fault: KwokFault) -> None:
        for node in (await self._call("GET", "/api/v1/nodes"))["items"]:
            name = node["metadata"]["name"]
            if len(fault.victims) >= (1 if fault.node else fault.count or 1) or fault.node not in (None, name):
                continue
            fault.victims.add(name)
            await self._call(
                "PATCH", f"/api/v1/nodes/{name}", {"metadata": {"annotations": {NODE_LOST: "true"}}}, MERGE_PATCH
            )
            message = "Kubelet stopped posting node status."
            lost = {"status": "Unknown", "reason": "NodeStatusUnknown", "message": message}
            await self._set_ready(f"/api/v1/nodes/{name}", node, lost)
            for path, pod in await self._pods_on(name):
                if pod["status"].get("phase") == "Running":
                    await self._set_ready(path, pod, {"status": "False", "reason": "NodeNotReady"})

    async def _set_ready(self, path: str, obj: Obj, ready: Obj) -> None:
        conditions = [
            {**condition, **ready} if condition["type"] == "Ready" else condition
            for condition in obj["status"].get("conditions", ())
        ]
        await self._call("PATCH", f"{path}/status", {"status": {"conditions": conditions}}, MERGE_PATCH)

    async def _pods_on(self, node: str) -> list[tuple[str, Obj]]:
        """Return the pods of a node with their paths."""
        listed = await self._call("GET", f"/api/v1/pods?fieldSelector=spec.nodeName={node}")
        paths = "/api/v1/namespaces/{namespace}/pods/{name}"
        return [(paths.format(**pod["metadata"]), pod) for pod in listed.get("items", ())]

    async def _return_node(self, name: str) -> None:
        """Let kwok play the node again, and its pods from the start: kwok keeps no readiness of running pods."""
        await self._call(
            "PATCH", f"/api/v1/nodes/{name}", {"metadata": {"annotations": {NODE_LOST: None}}}, MERGE_PATCH
        )
        for path, _ in await self._pods_on(name):
            await self._call("PATCH", f"{path}/status", {"status": {"podIP": None, "podIPs": None}}, MERGE_PATCH)
