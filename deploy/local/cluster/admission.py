"""What stands between a valid object and the store: namespaces that end, limits, quotas, Pod Security."""

from __future__ import annotations

from typing import Any

from deploy.local.cluster import errors, podsecurity, quotas
from deploy.local.cluster.faults import Faults
from deploy.local.cluster.quantities import milli
from deploy.local.cluster.resources import BY_KEY, Obj, Resource
from deploy.local.cluster.store import Store

NAMESPACES = BY_KEY["/namespaces"]
SERVICES = BY_KEY["/services"]
_TEMPLATED = ("apps/deployments", "apps/replicasets", "apps/statefulsets", "apps/daemonsets", "batch/jobs")
# Added to every pod, as the DefaultTolerationSeconds admission does.
_TOLERATIONS = ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable")


class Admission:
    """Mutates and judges writes."""

    def __init__(self, store: Store, faults: Faults) -> None:
        self.store = store
        self.faults = faults
        self._addresses: set[str] | None = None
        self._next_address = 10

    def enter(self, resource: Resource, namespace: str, name: str) -> None:
        """404 where the namespace is not, 403 where it is ending."""
        if not resource.namespaced:
            return
        found = self.store.get(NAMESPACES, "", namespace)
        if found is None:
            raise errors.not_found(NAMESPACES, namespace)
        if found.obj["metadata"].get("deletionTimestamp"):
            raise errors.forbidden(
                resource,
                name,
                f"unable to create new content in namespace {namespace} because it is being terminated",
                [
                    {
                        "reason": "NamespaceTerminating",
                        "message": f"namespace {namespace} is being terminated",
                        "field": "metadata.namespace",
                    }
                ],
            )

    def mutate(self, resource: Resource, obj: Obj, old: Obj | None = None) -> None:
        """Fill in what depends on the cluster's state."""
        key = resource.key
        if key == "/pods" and old is None:
            self._pod(obj)
        elif key == "/services":
            self._service(obj)
        elif key == "/persistentvolumeclaims" and old is None and "storageClassName" not in obj["spec"]:
            for record in self.store.every(BY_KEY["storage.k8s.io/storageclasses"]):
                notes = record.obj["metadata"].get("annotations") or {}
                if notes.get("storageclass.kubernetes.io/is-default-class") == "true":
                    obj["spec"]["storageClassName"] = record.name
        elif key == "/persistentvolumeclaims" and old is not None:
            for name in ("storageClassName", "volumeName"):
                if name in old["spec"]:
                    obj["spec"].setdefault(name, old["spec"][name])
        if key == "/persistentvolumeclaims":
            obj["metadata"].setdefault("finalizers", ["kubernetes.io/pvc-protection"] if old is None else [])
            if not obj["metadata"]["finalizers"]:
                del obj["metadata"]["finalizers"]

    def _pod(self, obj: Obj) -> None:
        spec = obj["spec"]
        spec.setdefault("serviceAccountName", "default")
        spec.setdefault("serviceAccount", spec["serviceAccountName"])
        tolerations: list[Obj] = spec.setdefault("tolerations", [])
        for key in _TOLERATIONS:
            if not any(t.get("key") in (key, None) and t.get("effect") in ("NoExecute", None) for t in tolerations):
                tolerations.append({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300})
        spec.setdefault("priority", 0)
        spec.setdefault("preemptionPolicy", "PreemptLowerPriority")
        for record in self.store.every(BY_KEY["/limitranges"], obj["metadata"]["namespace"]):
            for limit in record.obj.get("spec", {}).get("limits") or ():
                if limit.get("type") != "Container":
                    continue
                for container in [*spec.get("containers", ()), *spec.get("initContainers", ())]:
                    for side, source in (("limits", "default"), ("requests", "defaultRequest")):
                        for name, value in (limit.get(source) or {}).items():
                            container.setdefault("resources", {}).setdefault(side, {}).setdefault(name, value)
        obj.setdefault("status", {})["qosClass"] = _quality(spec)

    def _service(self, obj: Obj) -> None:
        spec = obj["spec"]
        if spec.get("type") == "ExternalName":
            return
        if not spec.get("clusterIP"):
            spec["clusterIP"] = self._address()
        spec.setdefault("clusterIPs", [spec["clusterIP"]])
        if spec["type"] in ("NodePort", "LoadBalancer"):
            for index, port in enumerate(spec.get("ports") or ()):
                port.setdefault("nodePort", 30000 + (hash((obj["metadata"]["uid"], index)) % 2767))

    def _address(self) -> str:
        if self._addresses is None:
            self._addresses = {r.obj["spec"].get("clusterIP", "") for r in self.store.every(SERVICES)}
        while True:
            number = self._next_address
            self._next_address += 1
            address = f"10.{96 + number // 65536 % 16}.{number // 256 % 256}.{number % 256}"
            if address not in self._addresses:
                self._addresses.add(address)
                return address

    def judge(self, resource: Resource, obj: Obj, old: Obj | None, warnings: list[str]) -> None:
        """403 where policy, limits or quota say no."""
        key = resource.key
        meta = obj["metadata"]
        namespace = meta.get("namespace", "")
        if key == "/pods" and old is None:
            account = obj["spec"]["serviceAccountName"]
            if self.store.get(BY_KEY["/serviceaccounts"], namespace, account) is None:
                raise errors.forbidden(
                    resource,
                    meta["name"],
                    f'error looking up service account {namespace}/{account}: serviceaccount "{account}" not found',
                )
            self._limits(resource, obj)
        if key == "/pods" and (old is None or old["spec"] != obj["spec"]):
            self._security(resource, obj, warnings)
        elif key in _TEMPLATED and (old is None or old["spec"].get("template") != obj["spec"].get("template")):
            self._template_security(obj["spec"]["template"], namespace, warnings)
        if namespace and (old is None or (key == "/persistentvolumeclaims" and old["spec"] != obj["spec"])):
            if old is None and self.faults.any("quota") and self.faults.strike("quota", namespace):
                raise errors.forbidden(
                    resource,
                    meta["name"],
                    "exceeded quota: sandbox, requested: pods=1, used: pods=10, limited: pods=10",
                )
            quotas.judge(self.store, resource, obj, old)

    def _labels(self, namespace: str) -> dict[str, str]:
        record = self.store.get(NAMESPACES, "", namespace)
        return (record.obj["metadata"].get("labels") or {}) if record else {}

    def _security(self, resource: Resource, obj: Obj, warnings: list[str]) -> None:
        meta = obj["metadata"]
        for mode, level, version in podsecurity.levels(self._labels(meta["namespace"])):
            found = podsecurity.violations(level, obj["spec"], obj["metadata"])
            if not found:
                continue
            if mode == "enforce":
                raise errors.forbidden(
                    resource, meta["name"], f'violates PodSecurity "{level}:{version}": {", ".join(found)}'
                )
            if mode == "warn":
                warnings.append(f'would violate PodSecurity "{level}:{version}": {", ".join(found)}')

    def _template_security(self, template: Obj, namespace: str, warnings: list[str]) -> None:
        for mode, level, version in podsecurity.levels(self._labels(namespace)):
            found = podsecurity.violations(level, template.get("spec") or {}, template.get("metadata") or {})
            if found and mode == "warn":
                warnings.append(f'would violate PodSecurity "{level}:{version}": {", ".join(found)}')

    def _limits(self, resource: Resource, obj: Obj) -> None:
        meta = obj["metadata"]
        problems: list[str] = []
        for record in self.store.every(BY_KEY["/limitranges"], meta["namespace"]):
            for limit in record.obj.get("spec", {}).get("limits") or ():
                if limit.get("type") == "Container":
                    for container in obj["spec"].get("containers", ()):
                        problems += _outside(limit, container.get("resources") or {})
        if problems:
            raise errors.forbidden(
                resource, meta["name"], problems[0] if len(problems) == 1 else f"[{', '.join(problems)}]"
            )


def _outside(limit: Obj, resources: Obj) -> list[str]:
    problems = []
    requests, limits = resources.get("requests") or {}, resources.get("limits") or {}
    for name, least in (limit.get("min") or {}).items():
        if name in requests and milli(requests[name]) < milli(least):
            problems.append(f"minimum {name} usage per Container is {least}, but request is {requests[name]}")
    for name, most in (limit.get("max") or {}).items():
        if name not in limits:
            problems.append(f"maximum {name} usage per Container is {most}.  No limit is specified")
        elif milli(limits[name]) > milli(most):
            problems.append(f"maximum {name} usage per Container is {most}, but limit is {limits[name]}")
    return problems


def _quality(spec: Obj) -> str:
    resources: list[dict[str, Any]] = [c.get("resources") or {} for c in spec.get("containers", ())]
    if not any(r.get("requests") or r.get("limits") for r in resources):
        return "BestEffort"
    for r in resources:
        requests, limits = r.get("requests") or {}, r.get("limits") or {}
        if any(name not in limits or limits[name] != requests.get(name, limits[name]) for name in ("cpu", "memory")):
            return "Burstable"
    return "Guaranteed"
