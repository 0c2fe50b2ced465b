"""The API's verbs on objects, without HTTP: create, replace, patch, apply, delete."""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from deploy.local.cluster import defaults, errors, fields, quotas, validation
from deploy.local.cluster.resources import (
    NAMESPACES,
    PODS,
    SERVICE_RESOURCE,
    STORAGE_CLASSES,
    VOLUME_CLAIMS,
    Obj,
    Resource,
)
from deploy.local.cluster.store import ObjectStore, StoredObject, copy_of
from deploy.local.cluster.times import now

MERGE_PATCH, STRATEGIC_MERGE_PATCH, APPLY_PATCH = (
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
    "application/apply-patch+yaml",
)
# Metadata that a client's write never changes.
_FIXED = ("uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "generation")
_ALPHABET = "bcdfghjklmnpqrstvwxz2456789"


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteOptions:
    """The query parameters of a write."""

    manager: str = "unknown"
    dry_run: bool = False
    force: bool = False


CONTROLLER = WriteOptions(manager="kube-controller-manager")


def random_suffix() -> str:
    """Return five random characters, as generated names end with."""
    return "".join(random.choices(_ALPHABET, k=5))  # noqa: S311  # a name, not a secret


class Registry:
    """Objects as the API offers them, over a store. Every method raises `ApiError` for what it refuses."""

    def __init__(self, store: ObjectStore) -> None:
        self.store = store
        self._next_address = 0

    def get(self, resource: Resource, namespace: str, name: str) -> StoredObject:
        """Return an object. Raises 404."""
        stored = self.store.get(resource, namespace, name)
        if stored is None:
            raise errors.not_found_error(resource, name)
        return stored

    # ------------------------------------------------------------ creating

    def create(self, resource: Resource, namespace: str, body: Any, options: WriteOptions) -> Obj:
        """Create an object and return it as stored."""
        obj = validation.decode(resource, namespace, "", body)
        meta = obj["metadata"]
        if not meta.get("name") and meta.get("generateName"):
            meta["name"] = meta["generateName"] + random_suffix()
        fields.track_update(None, obj, options.manager)
        return self._insert(resource, obj, options)

    def _insert(self, resource: Resource, obj: Obj, options: WriteOptions) -> Obj:
        meta = obj["metadata"]
        namespace, name = meta.get("namespace", ""), meta.get("name", "")
        validation.check(resource, obj)
        self._require_open_namespace(resource, namespace, name)
        if self.store.get(resource, namespace, name) is not None:
            raise errors.already_exists(resource, name)
        for key in ("deletionTimestamp", "deletionGracePeriodSeconds", "resourceVersion"):
            meta.pop(key, None)
        meta |= {"uid": str(uuid.uuid4()), "creationTimestamp": now()}
        if resource.generations:
            meta["generation"] = 1
        obj.pop("status", None)
        defaults.fill(resource.key, obj)
        self._allocate(resource, obj)
        quotas.check(self.store, resource, obj, None)
        return obj if options.dry_run else self.store.put(resource, obj).obj

    def _require_open_namespace(self, resource: Resource, namespace: str, name: str) -> None:
        if not resource.namespaced:
            return
        namespace_object = self.store.get(NAMESPACES, "", namespace)
        if namespace_object is None:
            raise errors.not_found_error(NAMESPACES, namespace)
        if namespace_object.obj["metadata"].get("deletionTimestamp"):
            why = f"unable to create new content in namespace {namespace} because it is being terminated"
            message = f"namespace {namespace} is being terminated"
            cause = {"reason": "NamespaceTerminating", "message": message, "field": "metadata.namespace"}
            raise errors.forbidden(resource, name, why, [cause])

    def _allocate(self, resource: Resource, obj: Obj) -> None:
        """Fill in what depends on the cluster's state: a service's address, a claim's storage class."""
        spec = obj.get("spec") or {}
        if resource is SERVICE_RESOURCE and spec.get("type") != "ExternalName" and not spec.get("clusterIP"):
            self._next_address += 1
            # Loopback like everything in the sandbox: a client that dials it reaches no other network.
            spec["clusterIP"] = f"127.96.{self._next_address // 250 % 250}.{self._next_address % 250 + 1}"
        if resource is VOLUME_CLAIMS and "storageClassName" not in spec:
            for stored in self.store.every(STORAGE_CLASSES):
                notes = stored.obj["metadata"].get("annotations") or {}
                if notes.get("storageclass.kubernetes.io/is-default-class") == "true":
                    spec["storageClassName"] = stored.name

    # ------------------------------------------------------------ changing

    def replace(self, resource: Resource, namespace: str, name: str, body: Any, options: WriteOptions) -> Obj:
        """Replace an object. Raises 409 for another resourceVersion or uid than the live one."""
        obj = validation.decode(resource, namespace, name, body)
        return self._update(resource, self.get(resource, namespace, name), obj, options)

    def patch(
        self,
        resource: Resource,
        namespace: str,
        name: str,
        body: Any,
        media: str,
        options: WriteOptions,
        subresource: str = "",
    ) -> tuple[Obj, bool]:
        """Patch or apply; return the object and whether the apply created it."""
        if media == APPLY_PATCH:
            return self._apply(resource, namespace, name, body, options)
        live = self.get(resource, namespace, name)
        if not isinstance(body, dict):
            raise errors.bad_request("error decoding patch: the patch must be an object")
        merge = fields.strategic_merge_patch if media == STRATEGIC_MERGE_PATCH else fields.merge_patch
        obj = validation.decode(resource, namespace, name, merge(copy_of(live), body))
        return self._update(resource, live, obj, options, subresource), False

    def _apply(
        self, resource: Resource, namespace: str, name: str, body: Any, options: WriteOptions
    ) -> tuple[Obj, bool]:
        config = validation.decode(resource, namespace, name, body, applied=True)
        if config["metadata"].get("managedFields"):
            raise errors.bad_request("metadata.managedFields must be nil")
        live = self.store.get(resource, namespace, name)
        if live is None:
            applied = fields.apply(None, config, options.manager, force=options.force)
            return self._insert(resource, applied, options), True
        obj = fields.apply(copy_of(live), config, options.manager, force=options.force)
        requested = config["metadata"].get("resourceVersion")
        if requested:
            obj["metadata"]["resourceVersion"] = requested
        return self._update(resource, live, obj, options, tracked=True), False

    def _update(
        self,
        resource: Resource,
        live: StoredObject,
        obj: Obj,
        options: WriteOptions,
        subresource: str = "",
        *,
        tracked: bool = False,
    ) -> Obj:
        old, meta, before = live.obj, obj["metadata"], live.obj["metadata"]
        if meta.get("resourceVersion", before["resourceVersion"]) != before["resourceVersion"]:
            raise errors.conflict(resource, live.name, errors.MODIFIED)
        if meta.get("uid", before["uid"]) != before["uid"]:
            why = f"Precondition failed: UID in precondition: {meta['uid']}, UID in object meta: {before['uid']}"
            raise errors.conflict(resource, live.name, why)
        for key in _FIXED:
            meta.pop(key, None)
        meta |= {key: before[key] for key in (*_FIXED, "resourceVersion") if key in before}
        obj.pop("status", None)
        if "status" in old:
            obj["status"] = copy_of(live)["status"]
        for key in ("clusterIP", "storageClassName", "volumeName", "selector"):
            # Values that the cluster allocated stay where a replacement leaves them out.
            if key in (old.get("spec") or {}) and resource.key in (
                "/services",
                "/persistentvolumeclaims",
                "batch/jobs",
            ):
                obj.setdefault("spec", {}).setdefault(key, old["spec"][key])
        if not tracked:
            fields.track_update(old, obj, options.manager, subresource)
        defaults.fill(resource.key, obj)
        if obj == old:
            return old
        if resource.generations and _specified(obj) != _specified(old):
            meta["generation"] = before.get("generation", 1) + 1
        validation.check(resource, obj)
        quotas.check(self.store, resource, obj, old)
        if options.dry_run:
            return obj
        stored = self.store.put(resource, obj)
        if before.get("deletionTimestamp") and _may_go(resource, obj):
            self.store.remove(resource, live.namespace, live.name)
        return stored.obj

    def modify(self, resource: Resource, stored: StoredObject, change: Callable[[Obj], Any]) -> StoredObject:
        """Write for a controller: apply `change` to a copy of the live object. Unchanged objects are not written."""
        live = self.store.get(resource, stored.namespace, stored.name)
        if live is None:
            return stored
        obj = copy_of(live)
        change(obj)
        if obj == live.obj:
            return live
        if resource.generations and _specified(obj) != _specified(live.obj):
            obj["metadata"]["generation"] = live.obj["metadata"].get("generation", 1) + 1
        written = self.store.put(resource, obj)
        if obj["metadata"].get("deletionTimestamp") and _may_go(resource, obj):
            self.store.remove(resource, stored.namespace, stored.name)
        return written

    # ------------------------------------------------------------ deleting

    def delete(
        self, resource: Resource, namespace: str, name: str, body: Obj, *, dry_run: bool = False
    ) -> tuple[Obj, bool]:
        """Start a deletion; return the object and whether it is gone. Raises 404, and 409 for preconditions."""
        live = self.get(resource, namespace, name)
        meta = live.obj["metadata"]
        for key, field_name in (("uid", "UID"), ("resourceVersion", "ResourceVersion")):
            expected = (body.get("preconditions") or {}).get(key)
            if expected and expected != meta[key]:
                why = (
                    f"the {field_name} in the precondition ({expected}) does not match the {field_name} "
                    f"in record ({meta[key]})"
                )
                raise errors.conflict(resource, name, why)
        if body.get("propagationPolicy") == "Orphan":
            raise errors.bad_request("the simulated cluster does not orphan dependents")
        if dry_run:
            return live.obj, True
        grace = _grace_seconds(resource, live.obj, body.get("gracePeriodSeconds"))
        held = meta.get("finalizers") or (resource is NAMESPACES and live.obj["spec"].get("finalizers"))
        if not grace and not held:
            gone = self.store.remove(resource, namespace, name)
            return (gone.obj if gone else live.obj), True

        def mark(obj: Obj) -> None:
            obj["metadata"].setdefault("deletionTimestamp", now())
            if resource is NAMESPACES:
                obj["status"]["phase"] = "Terminating"
            else:
                before = obj["metadata"].get("deletionGracePeriodSeconds", grace)
                obj["metadata"]["deletionGracePeriodSeconds"] = min(before, grace)

        return self.modify(resource, live, mark).obj, False

    def finish_pod(self, stored: StoredObject) -> None:
        """Remove a pod whose containers have ended, unless finalizers hold it."""
        self.modify(PODS, stored, lambda obj: obj["metadata"].update(deletionGracePeriodSeconds=0))
        live = self.store.get(PODS, stored.namespace, stored.name)
        if live is not None and not live.obj["metadata"].get("finalizers"):
            self.store.remove(PODS, stored.namespace, stored.name)


def _grace_seconds(resource: Resource, obj: Obj, requested: Any) -> int:
    ended = obj.get("status", {}).get("phase") in ("Succeeded", "Failed")
    if resource is not PODS or not obj["spec"].get("nodeName") or ended:
        return 0
    return int(obj["spec"]["terminationGracePeriodSeconds"] if requested is None else requested)


def _may_go(resource: Resource, obj: Obj) -> bool:
    if obj["metadata"].get("finalizers"):
        return False
    if resource is NAMESPACES:
        return not obj["spec"].get("finalizers")
    return not obj["metadata"].get("deletionGracePeriodSeconds")


def _specified(obj: Obj) -> Obj:
    """Return the part whose change makes a new generation."""
    return {key: value for key, value in obj.items() if key not in ("metadata", "status")}
