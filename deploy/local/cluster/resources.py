"""What the cluster serves, as data: one row per kind. Nothing else in this package lists kinds for the API's sake."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from deploy.local.cluster.schema import Node, node_for

Obj = dict[str, Any]

ALL_VERBS = ("create", "delete", "deletecollection", "get", "list", "patch", "update", "watch")


@dataclass(frozen=True, slots=True, kw_only=True)
class Resource:
    """One served kind. `key` (`apps/deployments`, `/pods`) is its identity in store and journal."""

    group: str
    version: str
    kind: str
    plural: str
    namespaced: bool = True
    short: tuple[str, ...] = ()
    subresources: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    verbs: tuple[str, ...] = ALL_VERBS
    # Bumps metadata.generation when anything outside metadata and status changes.
    generations: bool = False
    # How names are checked: "subdomain" or "label".
    names: str = "subdomain"
    # Deleting answers with the object instead of a Status.
    returns_deleted: bool = False
    # Custom resources keep fields that no schema declares.
    custom: bool = False
    columns: tuple[tuple[str, str], ...] = field(default=())

    @property
    def key(self) -> str:
        return f"{self.group}/{self.plural}"

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def singular(self) -> str:
        return self.kind.lower()

    @property
    def qualified(self) -> str:
        """`deployments.apps`, as error messages name it."""
        return f"{self.plural}.{self.group}" if self.group else self.plural

    @property
    def schema(self) -> Node:
        return node_for(self.group, self.version, self.kind)


def _r(gv: str, kind: str, plural: str, **more: Any) -> Resource:
    group, _, version = gv.rpartition("/")
    return Resource(group=group, version=version, kind=kind, plural=plural, **more)


KINDS: tuple[Resource, ...] = (
    _r(
        "v1",
        "Namespace",
        "namespaces",
        namespaced=False,
        short=("ns",),
        subresources=("finalize", "status"),
        names="label",
    ),
    _r("v1", "Node", "nodes", namespaced=False, short=("no",), subresources=("status",)),
    _r(
        "v1",
        "PersistentVolume",
        "persistentvolumes",
        namespaced=False,
        short=("pv",),
        subresources=("status",),
        returns_deleted=True,
    ),
    _r(
        "v1",
        "Pod",
        "pods",
        short=("po",),
        categories=("all",),
        generations=True,
        returns_deleted=True,
        subresources=("binding", "eviction", "log", "proxy", "status"),
    ),
    _r(
        "v1",
        "Service",
        "services",
        short=("svc",),
        categories=("all",),
        subresources=("proxy", "status"),
        names="label",
        returns_deleted=True,
    ),
    _r("v1", "Endpoints", "endpoints", short=("ep",)),
    _r("v1", "Secret", "secrets"),
    _r("v1", "ConfigMap", "configmaps", short=("cm",)),
    _r("v1", "ServiceAccount", "serviceaccounts", short=("sa",), subresources=("token",), returns_deleted=True),
    _r(
        "v1",
        "PersistentVolumeClaim",
        "persistentvolumeclaims",
        short=("pvc",),
        subresources=("status",),
        returns_deleted=True,
    ),
    _r("v1", "ResourceQuota", "resourcequotas", short=("quota",), subresources=("status",), returns_deleted=True),
    _r("v1", "LimitRange", "limitranges", short=("limits",)),
    _r("v1", "Event", "events", short=("ev",)),
    _r(
        "apps/v1",
        "Deployment",
        "deployments",
        short=("deploy",),
        categories=("all",),
        subresources=("scale", "status"),
        generations=True,
    ),
    _r(
        "apps/v1",
        "StatefulSet",
        "statefulsets",
        short=("sts",),
        categories=("all",),
        subresources=("scale", "status"),
        generations=True,
    ),
    _r(
        "apps/v1",
        "ReplicaSet",
        "replicasets",
        short=("rs",),
        categories=("all",),
        subresources=("scale", "status"),
        generations=True,
    ),
    _r(
        "apps/v1",
        "DaemonSet",
        "daemonsets",
        short=("ds",),
        categories=("all",),
        subresources=("status",),
        generations=True,
    ),
    _r("apps/v1", "ControllerRevision", "controllerrevisions"),
    _r("batch/v1", "Job", "jobs", categories=("all",), subresources=("status",), generations=True),
    _r(
        "batch/v1",
        "CronJob",
        "cronjobs",
        short=("cj",),
        categories=("all",),
        subresources=("status",),
        generations=True,
    ),
    _r("networking.k8s.io/v1", "Ingress", "ingresses", short=("ing",), subresources=("status",), generations=True),
    _r("networking.k8s.io/v1", "IngressClass", "ingressclasses", namespaced=False, generations=True),
    _r("networking.k8s.io/v1", "NetworkPolicy", "networkpolicies", short=("netpol",), generations=True),
    _r("discovery.k8s.io/v1", "EndpointSlice", "endpointslices", generations=True),
    _r(
        "policy/v1",
        "PodDisruptionBudget",
        "poddisruptionbudgets",
        short=("pdb",),
        subresources=("status",),
        generations=True,
    ),
    _r("storage.k8s.io/v1", "StorageClass", "storageclasses", namespaced=False, short=("sc",), returns_deleted=True),
    _r(
        "autoscaling/v2",
        "HorizontalPodAutoscaler",
        "horizontalpodautoscalers",
        short=("hpa",),
        categories=("all",),
        subresources=("status",),
    ),
    _r("coordination.k8s.io/v1", "Lease", "leases"),
    _r("scheduling.k8s.io/v1", "PriorityClass", "priorityclasses", namespaced=False, short=("pc",)),
    _r("rbac.authorization.k8s.io/v1", "Role", "roles"),
    _r("rbac.authorization.k8s.io/v1", "RoleBinding", "rolebindings"),
    _r("rbac.authorization.k8s.io/v1", "ClusterRole", "clusterroles", namespaced=False),
    _r("rbac.authorization.k8s.io/v1", "ClusterRoleBinding", "clusterrolebindings", namespaced=False),
    _r(
        "cert-manager.io/v1",
        "Certificate",
        "certificates",
        short=("cert", "certs"),
        subresources=("status",),
        generations=True,
        custom=True,
        columns=(("Ready", ".status.conditions[Ready]"), ("Secret", ".spec.secretName")),
    ),
    _r(
        "cert-manager.io/v1",
        "Issuer",
        "issuers",
        subresources=("status",),
        generations=True,
        custom=True,
        columns=(("Ready", ".status.conditions[Ready]"),),
    ),
    _r(
        "cert-manager.io/v1",
        "ClusterIssuer",
        "clusterissuers",
        namespaced=False,
        subresources=("status",),
        generations=True,
        custom=True,
        columns=(("Ready", ".status.conditions[Ready]"),),
    ),
    _r("metrics.k8s.io/v1beta1", "PodMetrics", "pods", verbs=("get", "list"), custom=True),
    _r("metrics.k8s.io/v1beta1", "NodeMetrics", "nodes", namespaced=False, verbs=("get", "list"), custom=True),
)

BY_PATH: dict[tuple[str, str, str], Resource] = {(r.group, r.version, r.plural): r for r in KINDS}
BY_KEY: dict[str, Resource] = {r.key: r for r in KINDS}
BY_KIND: dict[tuple[str, str], Resource] = {(r.api_version, r.kind): r for r in KINDS}
NAMESPACED: tuple[Resource, ...] = tuple(r for r in KINDS if r.namespaced and "delete" in r.verbs)


def groups() -> dict[str, list[str]]:
    """Served API groups with their versions, the core group (`""`) left out."""
    found: dict[str, list[str]] = {}
    for resource in KINDS:
        if resource.group and resource.version not in found.setdefault(resource.group, []):
            found[resource.group].append(resource.version)
    return found
