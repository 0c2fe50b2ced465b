"""Kubernetes objects of an instance: their labels, and the checks of what a template may create."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson
import yaml

from workflows.ports.subscription import Resources

Manifest = dict[str, Any]

MANAGED_BY = "app.kubernetes.io/managed-by"
INSTALLATION_LABEL = "berth/installation"
INSTANCE_LABEL = "berth/instance"
ORGANIZATION_LABEL = "berth/organization"
FIELD_MANAGER = "berth"

ALLOWED_KINDS = frozenset(
    {
        "ConfigMap", "CronJob", "Deployment", "Ingress", "Job", "LimitRange", "Namespace", "NetworkPolicy",
        "PersistentVolumeClaim", "ResourceQuota", "Service", "ServiceAccount", "StatefulSet",
    }
)  # fmt: skip
"""Kinds that templates may create. Secrets are declared in ``service.yaml``, so that no manifest contains one."""

YAML_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


class InvalidTemplate(Exception):
    """A service's folder is invalid. Its author must correct it; retries do not help."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceSpec:
    """One instance as the database describes it. Millicores, MiB and GiB.

    Attributes:
        entitlements: The plan's, e.g. ``backup_retention_days``.
        customer_email: Address of the user who ordered; it reaches the cluster in a Secret only, never a manifest.
    """

    installation_id: str
    instance_id: str
    organization_id: str
    service_slug: str
    version: str
    hostname: str
    namespace: str
    resources: Resources
    parameters: Mapping[str, Any] = field(default_factory=dict)
    entitlements: Mapping[str, Any] = field(default_factory=dict)
    customer_email: str = ""

    @property
    def labels(self) -> dict[str, str]:
        return {
            MANAGED_BY: FIELD_MANAGER,
            INSTALLATION_LABEL: self.installation_id,
            INSTANCE_LABEL: self.instance_id,
            ORGANIZATION_LABEL: self.organization_id,
        }


def parse_manifests(text: str, spec: InstanceSpec) -> list[Manifest]:
    """Return the objects of a rendered template, checked, named and labelled.

    Raises:
        InvalidTemplate: A document is no object that a service may create.
    """
    documents = yaml.load_all(text, Loader=YAML_LOADER)
    return [_finalize_manifest(document, spec) for document in documents if document is not None]


def _finalize_manifest(document: Any, spec: InstanceSpec) -> Manifest:
    """Check one document, and add the namespace and the labels."""
    if not isinstance(document, dict) or document.get("kind") not in ALLOWED_KINDS or not document.get("apiVersion"):
        raise InvalidTemplate(f"not an object that a service may create: {str(document)[:80]}")
    # A copy, since anchors make two fields one object: labels added to one would appear in the other.
    manifest: Manifest = orjson.loads(orjson.dumps(document))
    metadata = manifest.setdefault("metadata", {})
    name = metadata.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InvalidTemplate(f"{manifest['kind']} with the name {name!r}")
    if manifest["kind"] != "Namespace":
        metadata["namespace"] = spec.namespace
    elif name != spec.namespace:
        raise InvalidTemplate(f"a namespace {name!r} that is not the instance's")
    for part in _metadata_to_label(manifest):
        part.setdefault("labels", {}).update(spec.labels)
    return manifest


def _metadata_to_label(manifest: Manifest) -> Iterator[Manifest]:
    """Yield the metadata of an object and of its pod and job templates."""
    yield manifest["metadata"]
    spec = manifest.get("spec")
    while isinstance(spec, dict):
        template = spec.get("jobTemplate") or spec.get("template")
        if not isinstance(template, dict):
            return
        yield template.setdefault("metadata", {})
        spec = template.get("spec")
