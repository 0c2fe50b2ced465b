"""Ownership labels: they select the objects that an installation may read, change and delete.

Several installations can share one cluster. Each has an id that was created with its database. Every object has it as a
label and every selector includes it, so an installation never lists, changes or deletes another one's objects.
"""

from __future__ import annotations

from dataclasses import dataclass

from activities.adapters.kubernetes.errors import ClusterError
from activities.service_templates.manifests import (
    FIELD_MANAGER,
    INSTALLATION_LABEL,
    INSTANCE_LABEL,
    MANAGED_BY,
    InstanceSpec,
    Manifest,
)
from workflows.rules.instance import FailureReason


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """One instance of one installation."""

    installation_id: str
    instance_id: str

    @property
    def selector(self) -> str:
        """Return the label selector of everything that belongs to this instance."""
        return f"{installation_selector(self.installation_id)},{INSTANCE_LABEL}={self.instance_id}"

    def owns(self, manifest: Manifest) -> bool:
        labels = manifest["metadata"].get("labels") or {}
        owner_labels = {
            MANAGED_BY: FIELD_MANAGER,
            INSTALLATION_LABEL: self.installation_id,
            INSTANCE_LABEL: self.instance_id,
        }
        return bool(owner_labels.items() <= labels.items())


def owner_of(spec: InstanceSpec) -> Owner:
    return Owner(installation_id=spec.installation_id, instance_id=spec.instance_id)


def installation_selector(installation_id: str) -> str:
    """Return the label selector of everything that belongs to one installation."""
    return f"{MANAGED_BY}={FIELD_MANAGER},{INSTALLATION_LABEL}={installation_id}"


def require_owned(manifest: Manifest, spec: InstanceSpec) -> None:
    """Check that the instance owns an object.

    Raises:
        ClusterError: ``NameConflict`` for an object of another instance, installation or manager.
    """
    if not owner_of(spec).owns(manifest):
        name = f"{manifest['kind']} {manifest['metadata']['name']}"
        raise ClusterError(
            FailureReason.NAME_CONFLICT, f"{name} exists and belongs to another owner; it was not changed."
        )
