"""The API's verbs on objects, free of HTTP: create, replace, patch, apply, delete, with all checks on the way."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import orjson

from deploy.local.cluster import defaults, errors, managers, naming, patches, validation, validation_updates
from deploy.local.cluster.admission import Admission
from deploy.local.cluster.decoding import Call, decoded, in_namespace
from deploy.local.cluster.faults import Faults
from deploy.local.cluster.resources import BY_KEY, Obj, Resource
from deploy.local.cluster.store import Record, Store, thaw
from deploy.local.cluster.times import now

STUCK = "sandbox/undeletable"
MERGE, STRATEGIC, JSON, APPLY = (
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
    "application/json-patch+json",
    "application/apply-patch+yaml",
)
# Metadata that a client's write never changes.
_KEPT = (
    "uid",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "generation",
    "namespace",
    "name",
)


CONTROLLER = Call(manager="kube-controller-manager", validation="Ignore")


class Registry:
    """Objects as the API offers them, over a store."""

    def __init__(self, store: Store, faults: Faults) -> None:
        self.store = store
        self.faults = faults
        self.admission = Admission(store, faults)

    # ------------------------------------------------------------ reading

    def get(self, resource: Resource, namespace: str, name: str) -> Record:
        record = self.store.get(resource, namespace, name)
        if record is None:
            raise errors.not_found(resource, name)
        return record

    # ------------------------------------------------------------ creating

    def create(self, resource: Resource, namespace: str, obj: Obj, call: Call) -> Obj:
        """Create and answer the object as stored. 400, 403, 404 (namespace), 409, 422."""
        obj = decoded(resource, obj, call)
        meta = obj["metadata"]
        in_namespace(resource, namespace, meta)
        if not meta.get("name") and meta.get("generateName"):
            meta["name"] = meta["generateName"] + naming.suffix()
        return self._insert(
            resource, obj, call, lambda new: managers.track_update(resource, None, new, call.manager, "")
        )

    def _insert(self, resource: Resource, obj: Obj, call: Call, track: Callable[[Obj], None]) -> Obj:
        meta = obj["metadata"]
        namespace, name = meta.get("namespace", ""), meta.get("name", "")
        if meta.get("resourceVersion"):
            raise errors.ApiError(500, "", "resourceVersion should not be set on objects to be created")
        self.admission.enter(resource, namespace, name)
        for key in ("deletionTimestamp", "deletionGracePeriodSeconds", "selfLink"):
            meta.pop(key, None)
        meta["uid"] = str(uuid.uuid4())
        meta["creationTimestamp"] = now()
        if resource.generations:
            meta["generation"] = 1
        if "status" in resource.subresources:
            obj.pop("status", None)
        track(obj)
        defaults.fill(resource.key, obj)
        self.admission.mutate(resource, obj)
        self._check(resource, obj, None)
        # Asked before admission so that a retried create hears "already exists" rather than "exceeded quota".
        if self.store.get(resource, namespace, name) is not None:
            raise errors.already_exists(resource, name)
        self.admission.judge(resource, obj, None, call.warnings)
        if call.dry_run:
            return obj
        return self.store.put(resource, obj).obj

    # ------------------------------------------------------------ changing

    def replace(
        self, resource: Resource, namespace: str, name: str, obj: Obj, call: Call, subresource: str = ""
    ) -> Obj:
        """PUT. 409 where the object's resourceVersion or uid is not the live one."""
        obj = decoded(resource, obj, call)
        meta = obj["metadata"]
        in_namespace(resource, namespace, meta)
        if meta.get("name", name) != name:
            raise _misnamed(meta["name"], name)
        meta["name"] = name
        live = self.get(resource, namespace, name)
        if resource.custom and not meta.get("resourceVersion"):
            raise errors.invalid(
                resource, name, [errors.wrong("metadata.resourceVersion", 0, "must be specified for an update")]
            )
        return self._update(resource, live, obj, call, subresource)

    def patch(
        self, resource: Resource, namespace: str, name: str, body: Any, media: str, call: Call, subresource: str = ""
    ) -> tuple[Obj, bool]:
        """PATCH of any kind: the object and whether it was created (by an apply)."""
        if media == APPLY:
            return self._apply(resource, namespace, name, body, call, subresource)
        live = self.get(resource, namespace, name)
        before = thaw(live)
        if media == JSON:
            obj = patches.json_patch(before, body)
        elif not isinstance(body, dict):
            kind = "array" if isinstance(body, list) else "string"
            raise errors.bad_request(
                f"error decoding patch: json: cannot unmarshal {kind} into Go value of type map[string]interface {{}}"
            )
        elif media == STRATEGIC and not resource.custom:
            obj = patches.strategic(resource.schema, before, body)
        elif media == MERGE:
            obj = patches.merge(before, body)
        else:
            raise errors.unsupported_patch()
        if not isinstance(obj, dict):
            raise errors.bad_request("error decoding patch: the result is no object")
        obj = decoded(resource, obj, call)
        meta = obj["metadata"]
        if meta.get("name") != name:
            raise _misnamed(meta.get("name", ""), name)
        in_namespace(resource, namespace, meta)
        if meta.get("uid") != live.obj["metadata"]["uid"]:
            problem = errors.wrong("metadata.uid", meta.get("uid", ""), validation_updates.IMMUTABLE)
            raise errors.invalid(resource, name, [problem])
        return self._update(resource, live, obj, call, subresource), False

    def _apply(
        self, resource: Resource, namespace: str, name: str, config: Obj, call: Call, subresource: str
    ) -> tuple[Obj, bool]:
        if not isinstance(config, dict):
            raise errors.bad_request("error decoding YAML: a mapping is wanted")
        if (config.get("metadata") or {}).get("managedFields"):
            raise errors.bad_request("metadata.managedFields must be nil")
        config = decoded(resource, config, call, applied=True)
        meta = config["metadata"]
        in_namespace(resource, namespace, meta)
        if meta.setdefault("name", name) != name:
            raise _misnamed(meta["name"], name)
        live = self.store.get(resource, namespace, name)
        if live is None:
            if subresource:
                raise errors.not_found(resource, name)
            if meta.get("uid"):
                raise errors.conflict(
                    resource,
                    name,
                    f"uid mismatch: the provided object specified uid {meta['uid']}, and no existing object was found",
                )
            config = managers.apply(resource, None, config, call.manager, force=call.force)
            return self._insert(resource, config, call, lambda new: None), True
        obj = managers.apply(resource, live.obj, config, call.manager, force=call.force, subresource=subresource)
        # The merge shares parts with the live object; defaulting and admission must not reach them.
        obj = orjson.loads(orjson.dumps(obj))
        if meta.get("resourceVersion"):
            obj["metadata"]["resourceVersion"] = meta["resourceVersion"]
        return self._update(resource, live, obj, call, subresource, tracked=True), False

    def _update(
        self, resource: Resource, live: Record, obj: Obj, call: Call, subresource: str, *, tracked: bool = False
    ) -> Obj:
        old, meta, was = live.obj, obj["metadata"], live.obj["metadata"]
        asked = meta.get("resourceVersion")
        if asked and asked != was["resourceVersion"]:
            raise errors.conflict(resource, live.name, errors.MODIFIED)
        if meta.get("uid") and meta["uid"] != was["uid"]:
            raise errors.conflict(
                resource,
                live.name,
                f"Precondition failed: UID in precondition: {meta['uid']}, UID in object meta: {was['uid']}",
            )
        for key in _KEPT:
            if key in was:
                meta[key] = was[key]
            else:
                meta.pop(key, None)
        if subresource == "status":
            status, sent = obj.get("status"), meta.get("managedFields")
            obj = thaw(live)
            if status is not None:
                obj["status"] = status
            meta = obj["metadata"]
            if tracked and sent is not None:
                meta["managedFields"] = sent
        elif "status" in resource.subresources and subresource == "":
            if "status" in old:
                obj["status"] = thaw(live)["status"]
            else:
                obj.pop("status", None)
        self._carry(resource, obj, old)
        if not tracked:
            managers.track_update(resource, old, obj, call.manager, subresource)
        defaults.fill(resource.key, obj)
        self.admission.mutate(resource, obj, old)
        meta["resourceVersion"] = was["resourceVersion"]
        if _equal(obj, old):
            return old
        if resource.generations and _specified(obj) != _specified(old):
            meta["generation"] = was.get("generation", 1) + 1
        self._check(resource, obj, old)
        self.admission.judge(resource, obj, old, call.warnings)
        if call.dry_run:
            return obj
        if was.get("deletionTimestamp") and self._finished(resource, obj):
            self.store.put(resource, obj)
            self.store.remove(resource, live.namespace, live.name)
            return obj
        return self.store.put(resource, obj).obj

    @staticmethod
    def _carry(resource: Resource, obj: Obj, old: Obj) -> None:
        """Values that the cluster allocated stay when a replacement leaves them out."""
        if resource.key == "/services" and obj.get("spec", {}).get("type") != "ExternalName":
            for key in ("clusterIP", "clusterIPs"):
                if key in old["spec"] and not obj["spec"].get(key):
                    obj["spec"][key] = old["spec"][key]
        if resource.key == "batch/jobs":
            for key in ("selector",):
                if key in old["spec"]:
                    obj.setdefault("spec", {}).setdefault(key, old["spec"][key])

    def modify(self, resource: Resource, record: Record, change: Callable[[Obj], Any]) -> Record:
        """A controller's write: `change` a copy of the live object; nothing is written where nothing changed."""
        live = self.store.get(resource, record.namespace, record.name)
        if live is None:
            return record
        obj = thaw(live)
        change(obj)
        if obj == live.obj:
            return live
        if resource.generations and _specified(obj) != _specified(live.obj):
            obj["metadata"]["generation"] = live.obj["metadata"].get("generation", 1) + 1
        stored = self.store.put(resource, obj)
        if obj["metadata"].get("deletionTimestamp") and self._finished(resource, obj):
            self.store.remove(resource, record.namespace, record.name)
        return stored

    # ------------------------------------------------------------ deleting

    def delete(
        self, resource: Resource, namespace: str, name: str, options: Obj, *, dry_run: bool = False
    ) -> tuple[Obj, bool]:
        """The object's last or present state and whether it is gone already. 404, 409 on preconditions."""
        live = self.get(resource, namespace, name)
        meta = live.obj["metadata"]
        wanted = options.get("preconditions") or {}
        for key, said, then in (
            ("uid", "UID", "deleted and then recreated"),
            ("resourceVersion", "ResourceVersion", "modified"),
        ):
            if wanted.get(key) and wanted[key] != meta[key]:
                raise errors.conflict(
                    resource,
                    name,
                    f"the {said} in the precondition ({wanted[key]}) does not match the {said} in record "
                    f"({meta[key]}). The object might have been {then}",
                )
        policy = options.get("propagationPolicy")
        if policy not in (None, "Background", "Foreground", "Orphan"):
            known = ("Foreground", "Background", "Orphan", "nil")
            raise errors.invalid_options("DeleteOptions", [errors.unsupported("propagationPolicy", policy, known)])
        if policy is None and options.get("orphanDependents"):
            policy = "Orphan"
        if policy is None and resource.key == "batch/jobs":
            policy = "Orphan"
        if dry_run:
            return live.obj, True
        grace = self._grace(resource, live.obj, options.get("gracePeriodSeconds"))
        obj = thaw(live)
        finalizers: list[str] = [f for f in meta.get("finalizers") or () if f not in ("orphan", "foregroundDeletion")]
        if policy == "Foreground":
            finalizers.append("foregroundDeletion")
        if policy == "Orphan":
            finalizers.append("orphan")
        if STUCK not in finalizers and self.faults.holds("undeletable", namespace or name, meta["uid"]):
            finalizers.append(STUCK)
        if finalizers:
            obj["metadata"]["finalizers"] = finalizers
        else:
            obj["metadata"].pop("finalizers", None)
        waits = grace > 0 or bool(finalizers) or (resource.key == "/namespaces" and bool(obj["spec"].get("finalizers")))
        if not waits:
            gone = self.store.remove(resource, namespace, name)
            return (gone.obj if gone else live.obj), True
        if not meta.get("deletionTimestamp"):
            obj["metadata"]["deletionTimestamp"] = now()
            obj["metadata"]["deletionGracePeriodSeconds"] = grace
            if resource.generations:
                obj["metadata"]["generation"] = meta.get("generation", 1) + 1
            if resource.key == "/namespaces":
                obj["metadata"].pop("deletionGracePeriodSeconds")
                obj["status"]["phase"] = "Terminating"
        elif grace < meta.get("deletionGracePeriodSeconds", 0):
            obj["metadata"]["deletionGracePeriodSeconds"] = grace
        if obj == live.obj:
            return live.obj, False
        return self.store.put(resource, obj).obj, False

    @staticmethod
    def _grace(resource: Resource, obj: Obj, asked: Any) -> int:
        if resource.key != "/pods":
            return 0
        if not obj["spec"].get("nodeName") or obj.get("status", {}).get("phase") in ("Succeeded", "Failed"):
            return 0
        grace = obj["spec"].get("terminationGracePeriodSeconds", 30) if asked is None else asked
        return int(grace)

    def finish_pod(self, record: Record) -> None:
        """The kubelet is done with a terminating pod."""

        def done(obj: Obj) -> None:
            obj["metadata"]["deletionGracePeriodSeconds"] = 0

        resource = BY_KEY["/pods"]
        if record.obj["metadata"].get("finalizers"):
            self.modify(resource, record, done)
        else:
            self.store.remove(resource, record.namespace, record.name)

    @staticmethod
    def _finished(resource: Resource, obj: Obj) -> bool:
        if obj["metadata"].get("finalizers"):
            return False
        if resource.key == "/namespaces":
            return not obj["spec"].get("finalizers")
        return not obj["metadata"].get("deletionGracePeriodSeconds")

    # ------------------------------------------------------------ checking

    @staticmethod
    def _check(resource: Resource, obj: Obj, old: Obj | None) -> None:
        problems = naming.check_metadata(resource, obj)
        if problems and problems[0]["field"] == "metadata.name" and problems[0]["reason"] == "FieldValueRequired":
            raise errors.invalid(resource, obj["metadata"].get("name", ""), problems)
        problems += validation.check(resource.key, obj)
        if old is not None:
            problems += validation_updates.check_update(resource.key, obj, old)
        if problems:
            raise errors.invalid(resource, obj["metadata"]["name"], problems)


def _misnamed(said: str, asked: str) -> errors.ApiError:
    return errors.bad_request(f"the name of the object ({said}) does not match the name on the URL ({asked})")


def _specified(obj: Obj) -> Obj:
    """The part whose change makes a new generation."""
    return {k: v for k, v in obj.items() if k not in ("metadata", "status")}


def _equal(obj: Obj, old: Obj) -> bool:
    """The same but for the times of managedFields."""
    if {k: v for k, v in obj.items() if k != "metadata"} != {k: v for k, v in old.items() if k != "metadata"}:
        return False
    new_meta, old_meta = dict(obj["metadata"]), dict(old["metadata"])
    mine, theirs = (
        [{k: v for k, v in e.items() if k != "time"} for e in m.pop("managedFields", ())] for m in (new_meta, old_meta)
    )
    return new_meta == old_meta and mine == theirs
