"""The kinds that Berth touches and where the API keeps them. Fixed, so that no call needs discovery."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Kind:
    prefix: str
    plural: str
    namespaced: bool = True


KINDS: dict[str, Kind] = {
    "Namespace": Kind("/api/v1", "namespaces", namespaced=False),
    "Pod": Kind("/api/v1", "pods"),
    "Service": Kind("/api/v1", "services"),
    "Secret": Kind("/api/v1", "secrets"),
    "ConfigMap": Kind("/api/v1", "configmaps"),
    "ServiceAccount": Kind("/api/v1", "serviceaccounts"),
    "PersistentVolumeClaim": Kind("/api/v1", "persistentvolumeclaims"),
    "ResourceQuota": Kind("/api/v1", "resourcequotas"),
    "LimitRange": Kind("/api/v1", "limitranges"),
    "Event": Kind("/api/v1", "events"),
    "Deployment": Kind("/apis/apps/v1", "deployments"),
    "StatefulSet": Kind("/apis/apps/v1", "statefulsets"),
    "Job": Kind("/apis/batch/v1", "jobs"),
    "CronJob": Kind("/apis/batch/v1", "cronjobs"),
    "Ingress": Kind("/apis/networking.k8s.io/v1", "ingresses"),
    "NetworkPolicy": Kind("/apis/networking.k8s.io/v1", "networkpolicies"),
    "StorageClass": Kind("/apis/storage.k8s.io/v1", "storageclasses", namespaced=False),
    "Certificate": Kind("/apis/cert-manager.io/v1", "certificates"),
}

OWNED = (
    "Pod", "StatefulSet", "Deployment", "Job", "CronJob", "Service", "Ingress", "PersistentVolumeClaim", "Secret",
    "ConfigMap", "ServiceAccount", "NetworkPolicy", "ResourceQuota", "LimitRange",
)  # fmt: skip
"""What an instance's namespace can hold, for naming what blocks its removal."""


def path(kind: str, namespace: str | None = None, name: str | None = None, sub: str | None = None) -> str:
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


def amount_of(quantity: str) -> int:
    """Return a storage quantity in bytes (``10Gi``, ``500M``, ``1024``)."""
    number = quantity.rstrip("kKMGTi")
    return int(float(number) * _UNITS[quantity[len(number) :]])
