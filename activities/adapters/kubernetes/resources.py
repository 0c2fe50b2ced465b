"""The kinds that Berth touches and where the API keeps them. Fixed, so that no call needs discovery."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ResourceKind:
    prefix: str
    plural: str
    namespaced: bool = True


KINDS: dict[str, ResourceKind] = {
    "Namespace": ResourceKind("/api/v1", "namespaces", namespaced=False),
    "Pod": ResourceKind("/api/v1", "pods"),
    "Service": ResourceKind("/api/v1", "services"),
    "Secret": ResourceKind("/api/v1", "secrets"),
    "ConfigMap": ResourceKind("/api/v1", "configmaps"),
    "ServiceAccount": ResourceKind("/api/v1", "serviceaccounts"),
    "PersistentVolumeClaim": ResourceKind("/api/v1", "persistentvolumeclaims"),
    "ResourceQuota": ResourceKind("/api/v1", "resourcequotas"),
    "LimitRange": ResourceKind("/api/v1", "limitranges"),
    "Event": ResourceKind("/api/v1", "events"),
    "Deployment": ResourceKind("/apis/apps/v1", "deployments"),
    "StatefulSet": ResourceKind("/apis/apps/v1", "statefulsets"),
    "Job": ResourceKind("/apis/batch/v1", "jobs"),
    "CronJob": ResourceKind("/apis/batch/v1", "cronjobs"),
    "Ingress": ResourceKind("/apis/networking.k8s.io/v1", "ingresses"),
    "NetworkPolicy": ResourceKind("/apis/networking.k8s.io/v1", "networkpolicies"),
    "StorageClass": ResourceKind("/apis/storage.k8s.io/v1", "storageclasses", namespaced=False),
    "Certificate": ResourceKind("/apis/cert-manager.io/v1", "certificates"),
}

NAMESPACED_KINDS = (
    "Pod", "StatefulSet", "Deployment", "Job", "CronJob", "Service", "Ingress", "PersistentVolumeClaim", "Secret",
    "ConfigMap", "ServiceAccount", "NetworkPolicy", "ResourceQuota", "LimitRange",
)  # fmt: skip
"""What an instance's namespace can hold, for naming what blocks its removal."""


def resource_path(kind: str, namespace: str | None = None, name: str | None = None, sub: str | None = None) -> str:
    """Return the URL path of a collection, an object or a subresource. ``namespace`` None spans all namespaces."""
    where = KINDS[kind]
    parts = [where.prefix]
    if where.namespaced and namespace is not None:
        parts += ["namespaces", namespace]
    parts.append(where.plural)
    if name is not None:
        parts.append(name)
    if sub is not None:
        parts.append(sub)
    return "/".join(parts)


_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


def quantity_bytes(quantity: str) -> int:
    """Return a storage quantity in bytes (``10Gi``, ``500M``, ``1024``)."""
    number = quantity.rstrip("kKMGTi")
    return int(float(number) * _UNITS[quantity[len(number) :]])
