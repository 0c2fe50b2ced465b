"""Objects by kind, namespace and name. A write gets a resource version, is logged to a file and published to listeners.

Returned objects are shared and must not be changed; `copy_of` makes a copy that may be.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson

from deploy.local.cluster.object_log import SLACK, ObjectLog, head
from deploy.local.cluster.resources import BY_KEY, Obj, Resource

# Writes per kind that a watch can still be started from; older versions are answered with 410.
HISTORY = 2_000


class StoredObject:
    """One version of one object: the parsed object and its JSON."""

    __slots__ = ("name", "namespace", "obj", "raw", "version")

    def __init__(self, namespace: str, name: str, obj: Obj, raw: bytes, version: int) -> None:
        self.namespace = namespace
        self.name = name
        self.obj = obj
        self.raw = raw
        self.version = version


class Change:
    """A write: `type` is ADDED, MODIFIED or DELETED. A deleted object's `new` is its last state."""

    __slots__ = ("new", "old", "resource", "type", "version")

    def __init__(
        self, type_: str, resource: Resource, new: StoredObject, old: StoredObject | None, version: int
    ) -> None:
        self.type = type_
        self.resource = resource
        self.new = new
        self.old = old
        self.version = version


def copy_of(stored: StoredObject) -> Obj:
    """Return a copy of the object that may be changed."""
    copy: Obj = orjson.loads(stored.raw)
    return copy


class ObjectStore:
    """Objects in memory, with an optional object log under `directory`."""

    def __init__(self, directory: Path | None = None) -> None:
        self.version = 1
        self._kinds: dict[str, dict[str, dict[str, StoredObject]]] = {key: {} for key in BY_KEY}
        self._dependents: dict[str, set[tuple[str, str, str]]] = {}
        self._history: dict[str, deque[Change]] = {key: deque() for key in BY_KEY}
        self._listeners: list[Callable[[Change], None]] = []
        self._object_log: ObjectLog | None = None
        if directory is not None:
            directory.mkdir(parents=True, exist_ok=True)
            self._object_log = ObjectLog(directory / "objects.jsonl")
            self._load(self._object_log)
            self._object_log.open()
        # A watch from before this start cannot be continued: its events are not kept.
        self._floor: dict[str, int] = dict.fromkeys(BY_KEY, self.version)

    def _load(self, object_log: ObjectLog) -> None:
        for line in object_log.read():
            self.version = max(self.version, line["rv"])
            spaces = self._kinds.get(line["k"])
            if spaces is None:
                continue
            if line["o"] is None:
                spaces.get(line["ns"], {}).pop(line["n"], None)
            else:
                obj = line["o"]
                stored = StoredObject(line["ns"], line["n"], obj, orjson.dumps(obj), line["rv"])
                spaces.setdefault(line["ns"], {})[line["n"]] = stored
        for key, spaces in self._kinds.items():
            for space in spaces.values():
                for stored in space.values():
                    self._index(key, None, stored)

    # ------------------------------------------------------------ reading

    def get(self, resource: Resource, namespace: str, name: str) -> StoredObject | None:
        space = self._kinds[resource.key].get(namespace)
        return space.get(name) if space else None

    def every(self, resource: Resource, namespace: str | None = None) -> Iterator[StoredObject]:
        """Iterate over the objects of a kind, in one namespace or in all, in no order."""
        spaces = self._kinds[resource.key]
        if namespace is not None:
            yield from list(spaces.get(namespace, {}).values())
            return
        for space in list(spaces.values()):
            yield from list(space.values())

    def dependents(self, uid: str) -> list[tuple[Resource, StoredObject]]:
        """Return the objects that name `uid` among their owners."""
        dependents = []
        for key, namespace, name in self._dependents.get(uid, ()):
            stored = self._kinds[key].get(namespace, {}).get(name)
            if stored is not None:
                dependents.append((BY_KEY[key], stored))
        return dependents

    def owned(self, uid: str, resource: Resource) -> list[StoredObject]:
        """Return the objects of one kind whose controller is `uid`."""
        return [
            stored
            for kind, stored in self.dependents(uid)
            if kind is resource
            and any(o["uid"] == uid and o.get("controller") for o in stored.obj["metadata"].get("ownerReferences", ()))
        ]

    def changes_since(self, resource: Resource, version: int) -> list[Change] | None:
        """Return the writes to the kind after `version`, oldest first; None if the history is too short."""
        if version < self._floor[resource.key]:
            return None
        history = self._history[resource.key]
        changes: list[Change] = []
        for change in reversed(history):
            if change.version <= version:
                break
            changes.append(change)
        changes.reverse()
        return changes

    def floor(self, resource: Resource) -> int:
        """Return the oldest version that a watch can start from."""
        return self._floor[resource.key]

    # ------------------------------------------------------------ writing

    def put(self, resource: Resource, obj: Obj) -> StoredObject:
        """Store the object under a new resource version. The caller must not change it afterwards."""
        meta = obj["metadata"]
        namespace, name = meta.get("namespace", ""), meta["name"]
        self.version += 1
        meta["resourceVersion"] = str(self.version)
        stored = StoredObject(namespace, name, obj, orjson.dumps(obj), self.version)
        space = self._kinds[resource.key].setdefault(namespace, {})
        old = space.get(name)
        if self._object_log is not None:
            self._object_log.append(head(resource.key, namespace, name, self.version), stored.raw)
        space[name] = stored
        self._index(resource.key, old, stored)
        self._publish(Change("MODIFIED" if old else "ADDED", resource, stored, old, self.version))
        return stored

    def remove(self, resource: Resource, namespace: str, name: str) -> StoredObject | None:
        """Remove the object; return its last state with the version of the removal, None where there was none."""
        space = self._kinds[resource.key].get(namespace, {})
        old = space.get(name)
        if old is None:
            return None
        self.version += 1
        if self._object_log is not None:
            self._object_log.append(head(resource.key, namespace, name, self.version), b"null")
        del space[name]
        if not space:
            self._kinds[resource.key].pop(namespace, None)
        self._index(resource.key, old, None)
        last = copy_of(old)
        last["metadata"]["resourceVersion"] = str(self.version)
        stored = StoredObject(namespace, name, last, orjson.dumps(last), self.version)
        self._publish(Change("DELETED", resource, stored, old, self.version))
        return stored

    def listen(self, listener: Callable[[Change], None]) -> Callable[[], None]:
        """Call `listener` after each write. Returns the function that ends this."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener) if listener in self._listeners else None

    def close(self) -> None:
        if self._object_log is not None:
            self._object_log.close()

    def _publish(self, change: Change) -> None:
        history = self._history[change.resource.key]
        history.append(change)
        if len(history) > HISTORY:
            self._floor[change.resource.key] = history.popleft().version
        for listener in tuple(self._listeners):
            listener(change)
        object_log = self._object_log
        if object_log is not None and object_log.lines > SLACK and object_log.lines > 3 * self._live():
            object_log.compact(self._heads())

    def _live(self) -> int:
        return sum(len(space) for spaces in self._kinds.values() for space in spaces.values())

    def _heads(self) -> Iterator[tuple[bytes, bytes]]:
        for key, spaces in self._kinds.items():
            for namespace, space in spaces.items():
                for name, stored in space.items():
                    yield head(key, namespace, name, stored.version), stored.raw
        # The newest version must be kept also where its object was deleted.
        yield head("", "", "", self.version), b"null"

    def _index(self, key: str, old: StoredObject | None, new: StoredObject | None) -> None:
        before: list[Any] = old.obj["metadata"].get("ownerReferences") or [] if old else []
        after: list[Any] = new.obj["metadata"].get("ownerReferences") or [] if new else []
        if not before and not after:
            return
        stored = new or old
        assert stored is not None
        where = (key, stored.namespace, stored.name)
        for owner in before:
            held = self._dependents.get(owner["uid"])
            if held is not None:
                held.discard(where)
                if not held:
                    del self._dependents[owner["uid"]]
        for owner in after:
            self._dependents.setdefault(owner["uid"], set()).add(where)
