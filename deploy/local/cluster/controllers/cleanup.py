"""What follows a deletion: owned objects go with their owner, namespaces empty themselves."""

from __future__ import annotations

from collections.abc import Iterable

from deploy.local.cluster.controllers.base import Controller, Keys, condition, own
from deploy.local.cluster.registry import STUCK
from deploy.local.cluster.resources import BY_KEY, BY_KIND, NAMESPACED, Obj, Resource
from deploy.local.cluster.store import Change, Record

NAMESPACES = BY_KEY["/namespaces"]
EVENTS = BY_KEY["/events"]
# Pretended seconds that an empty namespace still takes to go.
LINGER = 0.15


class Garbage(Controller):
    """Owner references. Keys are (resource key, "namespace/name") and ("", uid of what is gone)."""

    name = "garbage"

    def watches(self) -> dict[str, Keys]:
        return {key: self._keys for key in BY_KEY if key != "/events"}

    def _keys(self, change: Change) -> Iterable[tuple[str, str]]:
        meta = change.new.obj["metadata"]
        keys: list[tuple[str, str]] = []
        if change.type == "DELETED":
            keys.append(("", meta["uid"]))
            for owner in meta.get("ownerReferences") or ():
                found = BY_KIND.get((owner["apiVersion"], owner["kind"]))
                if found:
                    keys.append((found.key, f"{change.new.namespace if found.namespaced else ''}/{owner['name']}"))
        elif change.type == "ADDED" and meta.get("ownerReferences"):
            keys.append((change.resource.key, f"{change.new.namespace}/{change.new.name}"))
        if meta.get("deletionTimestamp") and set(meta.get("finalizers") or ()) & {"orphan", "foregroundDeletion"}:
            keys.append((change.resource.key, f"{change.new.namespace}/{change.new.name}"))
        return keys

    def reconcile(self, namespace: str, name: str) -> float | None:
        if not namespace:
            for resource, record in self.store.dependents(name):
                self._check(resource, record)
            return None
        resource = BY_KEY[namespace]
        space, _, plain = name.partition("/")
        found = self.store.get(resource, space, plain)
        if found is None:
            return None
        meta = found.obj["metadata"]
        if meta.get("deletionTimestamp"):
            finalizers = meta.get("finalizers") or ()
            if "orphan" in finalizers:
                self._orphan(resource, found)
            elif "foregroundDeletion" in finalizers:
                self._foreground(resource, found)
        elif meta.get("ownerReferences"):
            self._check(resource, found)
        return None

    def _check(self, resource: Resource, record: Record) -> None:
        """Drop owners that are gone; with none left the object goes too."""
        owners = record.obj["metadata"].get("ownerReferences") or []
        alive = []
        for owner in owners:
            kind = BY_KIND.get((owner["apiVersion"], owner["kind"]))
            found = self.store.get(kind, record.namespace if kind.namespaced else "", owner["name"]) if kind else None
            if kind is None or (found is not None and found.obj["metadata"]["uid"] == owner["uid"]):
                alive.append(owner)
        if len(alive) == len(owners):
            return
        if alive:

            def keep(obj: Obj) -> None:
                obj["metadata"]["ownerReferences"] = alive

            self.registry.modify(resource, record, keep)
        elif not record.obj["metadata"].get("deletionTimestamp"):
            self.world.delete(resource, record)

    def _orphan(self, resource: Resource, record: Record) -> None:
        uid = record.obj["metadata"]["uid"]
        for kind, child in self.store.dependents(uid):

            def release(obj: Obj) -> None:
                left = [o for o in obj["metadata"]["ownerReferences"] if o["uid"] != uid]
                if left:
                    obj["metadata"]["ownerReferences"] = left
                else:
                    del obj["metadata"]["ownerReferences"]

            self.registry.modify(kind, child, release)
        self._finish(resource, record, "orphan")

    def _foreground(self, resource: Resource, record: Record) -> None:
        blocking = False
        for kind, child in self.store.dependents(record.obj["metadata"]["uid"]):
            if not child.obj["metadata"].get("deletionTimestamp"):
                nested = bool(self.store.dependents(child.obj["metadata"]["uid"]))
                self.world.delete(kind, child, "Foreground" if nested else "Background")
            still = self.store.get(kind, child.namespace, child.name)
            blocking = blocking or still is not None
        if not blocking:
            self._finish(resource, record, "foregroundDeletion")

    def _finish(self, resource: Resource, record: Record, finalizer: str) -> None:
        def change(obj: Obj) -> None:
            left = [f for f in obj["metadata"].get("finalizers") or () if f != finalizer]
            if left:
                obj["metadata"]["finalizers"] = left
            else:
                obj["metadata"].pop("finalizers", None)

        self.registry.modify(resource, record, change)


class Namespaces(Controller):
    """Every namespace gets its default account; an ending one is emptied and then released."""

    name = "namespaces"

    def watches(self) -> dict[str, Keys]:
        watched: dict[str, Keys] = {r.key: self._within for r in NAMESPACED}
        watched["/namespaces"] = own
        return watched

    def _within(self, change: Change) -> Iterable[tuple[str, str]]:
        if change.type == "ADDED" or change.resource is EVENTS:
            return ()
        space = self.store.get(NAMESPACES, "", change.new.namespace)
        if space is not None and (
            space.obj["metadata"].get("deletionTimestamp") or change.new.name in ("default", "kube-root-ca.crt")
        ):
            return (("", space.name),)
        return ()

    def reconcile(self, namespace: str, name: str) -> float | None:
        record = self.store.get(NAMESPACES, "", name)
        if record is None:
            return None
        if not record.obj["metadata"].get("deletionTimestamp"):
            self.furnish(name)
            return None
        left: dict[Resource, list[Record]] = {}
        for resource in NAMESPACED:
            for found in self.store.every(resource, name):
                if not found.obj["metadata"].get("deletionTimestamp"):
                    self.world.delete(resource, found)
            still = list(self.store.every(resource, name))
            if still:
                left[resource] = still
        if not left and "kubernetes" not in (record.obj["spec"].get("finalizers") or ()):
            return None
        waiting = not left and record.obj["status"].get("conditions") is None
        self.registry.modify(NAMESPACES, record, lambda obj: self._report(obj, left))
        if waiting:
            return self.world.seconds(LINGER)
        if not left:
            self._release(name)
        return None

    def _release(self, name: str) -> None:
        record = self.store.get(NAMESPACES, "", name)
        if record is None:
            return

        def release(obj: Obj) -> None:
            rest = [f for f in obj["spec"].get("finalizers") or () if f != "kubernetes"]
            obj["spec"]["finalizers"] = rest
            if not rest:
                del obj["spec"]["finalizers"]

        self.registry.modify(NAMESPACES, record, release)

    @staticmethod
    def _report(obj: Obj, left: dict[Resource, list[Record]]) -> None:
        """The conditions that say what holds the namespace."""
        status = obj["status"]
        condition(
            status,
            "NamespaceDeletionDiscoveryFailure",
            "False",
            "ResourcesDiscovered",
            "All resources successfully discovered",
        )
        condition(
            status,
            "NamespaceDeletionGroupVersionParsingFailure",
            "False",
            "ParsedGroupVersions",
            "All legacy kube types successfully parsed",
        )
        condition(
            status,
            "NamespaceDeletionContentFailure",
            "False",
            "ContentDeleted",
            "All content successfully deleted, may be waiting on finalization",
        )
        if left:
            listed = ", ".join(f"{r.plural}.{r.group} has {len(found)} resource instances" for r, found in left.items())
            condition(
                status,
                "NamespaceContentRemaining",
                "True",
                "SomeResourcesRemain",
                f"Some resources are remaining: {listed}",
            )
        else:
            condition(
                status, "NamespaceContentRemaining", "False", "ContentRemoved", "All content successfully removed"
            )
        held: dict[str, int] = {}
        for found in left.values():
            for record in found:
                for finalizer in record.obj["metadata"].get("finalizers") or ():
                    held[finalizer] = held.get(finalizer, 0) + 1
        if held:
            listed = ", ".join(f"{name} in {count} resource instances" for name, count in sorted(held.items()))
            condition(
                status,
                "NamespaceFinalizersRemaining",
                "True",
                "SomeFinalizersRemain",
                f"Some content in the namespace has finalizers remaining: {listed}",
            )
        else:
            condition(
                status,
                "NamespaceFinalizersRemaining",
                "False",
                "ContentHasNoFinalizers",
                "All content-preserving finalizers finished",
            )

    def furnish(self, name: str) -> None:
        """The default service account and the cluster's root certificate, as every namespace has them."""
        accounts, maps = BY_KEY["/serviceaccounts"], BY_KEY["/configmaps"]
        if self.store.get(accounts, name, "default") is None:
            self.world.create(
                accounts,
                {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default", "namespace": name}},
            )
        if self.store.get(maps, name, "kube-root-ca.crt") is None:
            self.world.create(
                maps,
                {
                    "apiVersion": "v1",
                    "kind": "ConfigMap",
                    "metadata": {"name": "kube-root-ca.crt", "namespace": name},
                    "data": {"ca.crt": "simulated"},
                },
            )


class Unstick(Controller):
    """Takes back the finalizers that the fault `undeletable` put on objects, once it is over."""

    name = "unstick"

    def watches(self) -> dict[str, Keys]:
        return {}

    def reconcile(self, namespace: str, name: str) -> float | None:
        for key, resource in BY_KEY.items():
            if key.startswith("metrics"):
                continue
            for record in self.store.every(resource):
                meta = record.obj["metadata"]
                if STUCK in (meta.get("finalizers") or ()) and not self.faults.suffers("undeletable", meta["uid"]):

                    def free(obj: Obj) -> None:
                        obj["metadata"]["finalizers"].remove(STUCK)
                        if not obj["metadata"]["finalizers"]:
                            del obj["metadata"]["finalizers"]

                    self.registry.modify(resource, record, free)
        return None
