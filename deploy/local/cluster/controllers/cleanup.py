"""What follows a deletion: owned objects go with their owner, and a namespace goes once it is empty."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from deploy.local.cluster.controllers.base import Controller, Key, Keys, itself, set_condition
from deploy.local.cluster.resources import BY_KEY, BY_KIND, EVENTS, NAMESPACED, NAMESPACES, Obj, Resource
from deploy.local.cluster.store import Change, StoredObject

# Simulated seconds that an empty namespace still takes to go.
LINGER = 0.15


class Garbage(Controller):
    """Deletes objects whose owners are gone. Keys are ("", uid of the deleted owner) and (kind, namespace/name)."""

    name = "garbage"

    def watches(self) -> dict[str, Keys]:
        return {key: self._keys for key in BY_KEY if key != EVENTS.key}

    def _keys(self, change: Change) -> Iterable[Key]:
        meta = change.new.obj["metadata"]
        if change.type == "DELETED":
            return (("", meta["uid"]),)
        if change.type == "ADDED" and meta.get("ownerReferences"):
            return ((change.resource.key, f"{change.new.namespace}/{change.new.name}"),)
        return ()

    def reconcile(self, namespace: str, name: str) -> float | None:
        if not namespace:
            for resource, stored in self.store.dependents(name):
                self._check(resource, stored)
            return None
        space, _, plain = name.partition("/")
        dependent = self.store.get(BY_KEY[namespace], space, plain)
        if dependent is not None:
            self._check(BY_KEY[namespace], dependent)
        return None

    def _check(self, resource: Resource, stored: StoredObject) -> None:
        for owner in stored.obj["metadata"].get("ownerReferences") or ():
            kind = BY_KIND.get((owner["apiVersion"], owner["kind"]))
            if kind is None:
                return
            owner_object = self.store.get(kind, stored.namespace if kind.namespaced else "", owner["name"])
            if owner_object is not None and owner_object.obj["metadata"]["uid"] == owner["uid"]:
                return
        self.loop.delete(resource, stored)


class Namespaces(Controller):
    """Gives each namespace its default service account; empties a namespace that is being deleted."""

    name = "namespaces"

    def watches(self) -> dict[str, Keys]:
        return {**{resource.key: self._within for resource in NAMESPACED}, "/namespaces": itself}

    def _within(self, change: Change) -> Iterable[Key]:
        space = self.store.get(NAMESPACES, "", change.new.namespace)
        ending = space is not None and "deletionTimestamp" in space.obj["metadata"]
        return (("", change.new.namespace),) if ending and change.type != "ADDED" else ()

    def reconcile(self, namespace: str, name: str) -> float | None:
        stored = self.store.get(NAMESPACES, "", name)
        if stored is None:
            return None
        if "deletionTimestamp" not in stored.obj["metadata"]:
            self._furnish(name)
            return None
        remaining: list[tuple[Resource, StoredObject]] = []
        for resource in NAMESPACED:
            for dependent in self.store.every(resource, name):
                if "deletionTimestamp" not in dependent.obj["metadata"]:
                    self.loop.delete(resource, dependent)
            remaining += [(resource, dependent) for dependent in self.store.every(resource, name)]
        waits = not remaining and "conditions" not in stored.obj["status"]
        self.registry.modify(NAMESPACES, stored, lambda obj: _set_remaining(obj, remaining))
        if waits:
            return self.loop.seconds(LINGER)
        if not remaining:

            def release(obj: Obj) -> None:
                obj["spec"]["finalizers"] = [f for f in obj["spec"].get("finalizers") or () if f != "kubernetes"]

            self.registry.modify(NAMESPACES, stored, release)
        return None

    def _furnish(self, name: str) -> None:
        accounts = BY_KEY["/serviceaccounts"]
        if self.store.get(accounts, name, "default") is None:
            meta = {"name": "default", "namespace": name}
            self.loop.create(accounts, {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta})


def _set_remaining(obj: Obj, remaining: list[tuple[Resource, StoredObject]]) -> None:
    """Set the conditions that say which objects and which finalizers hold the namespace."""
    kinds = Counter(f"{resource.plural}.{resource.group}" for resource, _ in remaining)
    finalizers = Counter(f for _, stored in remaining for f in stored.obj["metadata"].get("finalizers") or ())
    for kind, reasons, text, counts in (
        (
            "NamespaceContentRemaining",
            ("SomeResourcesRemain", "ContentRemoved"),
            ("Some resources are remaining: ", "has"),
            kinds,
        ),
        (
            "NamespaceFinalizersRemaining",
            ("SomeFinalizersRemain", "ContentHasNoFinalizers"),
            ("Some content in the namespace has finalizers remaining: ", "in"),
            finalizers,
        ),
    ):
        listed = ", ".join(f"{name} {text[1]} {count} resource instances" for name, count in sorted(counts.items()))
        message = text[0] + listed if counts else ""
        set_condition(obj["status"], kind, "True" if counts else "False", reasons[not counts], message)
