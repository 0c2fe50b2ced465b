"""The kinds that the simulated cluster serves, one row each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Obj = dict[str, Any]

VERBS = ("create", "delete", "deletecollection", "get", "list", "patch", "update", "watch")


@dataclass(frozen=True, slots=True, kw_only=True)
class Resource:
    """One served kind. `key` (`apps/deployments`, `/pods`) identifies it in the store and in the object log."""

    group: str
    version: str
    kind: str
    plural: str
    namespaced: bool = True
    short: tuple[str, ...] = ()
    subresources: tuple[str, ...] = ()
    # metadata.generation rises when anything outside metadata and status changes.
    generations: bool = False

    @property
    def key(self) -> str:
        return f"{self.group}/{self.plural}"

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def qualified(self) -> str:
        """`deployments.apps`, as error messages name it."""
        return f"{self.plural}.{self.group}" if self.group else self.plural


def _kind(api_version: str, kind: str, plural: str, **more: Any) -> Resource:
    group, _, version = api_version.rpartition("/")
    return Resource(group=group, version=version, kind=kind, plural=plural, **more)


_WORKLOAD: dict[str, Any] = {"generations": True, "subresources": ("scale",)}

RESOURCES: tuple[Resource, ...] = (
    _kind("v1", "Namespace", "namespaces", namespaced=False, short=("ns",)),
    _kind("v1", "Node", "nodes", namespaced=False, short=("no",)),
    _kind("v1", "Pod", "pods", short=("po",), generations=True, subresources=("log",)),
    _kind("v1", "Service", "services", short=("svc",)),
    _kind("v1", "Secret", "secrets"),
    _kind("v1", "ConfigMap", "configmaps", short=("cm",)),
    _kind("v1", "ServiceAccount", "serviceaccounts", short=("sa",)),
    _kind("v1", "PersistentVolumeClaim", "persistentvolumeclaims", short=("pvc",)),
    _kind("v1", "ResourceQuota", "resourcequotas", short=("quota",)),
    _kind("v1", "LimitRange", "limitranges", short=("limits",)),
    _kind("v1", "Event", "events", short=("ev",)),
    _kind("apps/v1", "Deployment", "deployments", short=("deploy",), **_WORKLOAD),
    _kind("apps/v1", "StatefulSet", "statefulsets", short=("sts",), **_WORKLOAD),
    _kind("apps/v1", "ReplicaSet", "replicasets", short=("rs",), **_WORKLOAD),
    _kind("batch/v1", "Job", "jobs", generations=True),
    _kind("batch/v1", "CronJob", "cronjobs", short=("cj",), generations=True),
    _kind("networking.k8s.io/v1", "Ingress", "ingresses", short=("ing",), generations=True),
    _kind("networking.k8s.io/v1", "IngressClass", "ingressclasses", namespaced=False, generations=True),
    _kind("networking.k8s.io/v1", "NetworkPolicy", "networkpolicies", short=("netpol",), generations=True),
    _kind("storage.k8s.io/v1", "StorageClass", "storageclasses", namespaced=False, short=("sc",)),
    _kind("cert-manager.io/v1", "Certificate", "certificates", short=("cert", "certs"), generations=True),
    _kind("cert-manager.io/v1", "Issuer", "issuers", generations=True),
    _kind("cert-manager.io/v1", "ClusterIssuer", "clusterissuers", namespaced=False, generations=True),
)

BY_PATH: dict[tuple[str, str, str], Resource] = {(r.group, r.version, r.plural): r for r in RESOURCES}
BY_KEY: dict[str, Resource] = {r.key: r for r in RESOURCES}
BY_KIND: dict[tuple[str, str], Resource] = {(r.api_version, r.kind): r for r in RESOURCES}
NAMESPACED: tuple[Resource, ...] = tuple(r for r in RESOURCES if r.namespaced)

NAMESPACES, NODES, PODS, SERVICE_RESOURCE = (BY_KEY[f"/{p}"] for p in ("namespaces", "nodes", "pods", "services"))
SECRETS, CONFIG_MAPS, VOLUME_CLAIMS = (BY_KEY[f"/{p}"] for p in ("secrets", "configmaps", "persistentvolumeclaims"))
QUOTAS, EVENTS = BY_KEY["/resourcequotas"], BY_KEY["/events"]
DEPLOYMENTS, REPLICA_SETS = BY_KEY["apps/deployments"], BY_KEY["apps/replicasets"]
STATEFUL_SETS = BY_KEY["apps/statefulsets"]
JOBS, CRON_JOBS = BY_KEY["batch/jobs"], BY_KEY["batch/cronjobs"]
INGRESSES, STORAGE_CLASSES = BY_KEY["networking.k8s.io/ingresses"], BY_KEY["storage.k8s.io/storageclasses"]
CERTIFICATES, ISSUERS = BY_KEY["cert-manager.io/certificates"], BY_KEY["cert-manager.io/issuers"]
CLUSTER_ISSUERS = BY_KEY["cert-manager.io/clusterissuers"]
