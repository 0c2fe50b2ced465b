"""Objects by kind, namespace and name; every write has a resource version, is journalled and told to whoever listens.

Objects handed out are shared: read them, never change them. `thaw` makes a copy to change.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson

from deploy.local.cluster.journal import SLACK, Journal, head
from deploy.local.cluster.resources import BY_KEY, Obj, Resource

# Writes per kind that a watch can still be started from; older versions are answered with 410.
HISTORY = 2_000


class Record:
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

    def __init__(self, type_: str, resource: Resource, new: Record, old: Record | None, version: int) -> None:
        self.type = type_
        self.resource = resource
        self.new = new
        self.old = old
        self.version = version


def thaw(record: Record) -> Obj:
    """A copy of the object that may be changed."""
    copy: Obj = orjson.loads(record.raw)
    return copy


class Store:
    """In memory, with an optional journal under `directory`."""

    def __init__(self, directory: Path | None = None) -> None:
        self.version = 1
        self._kinds: dict[str, dict[str, dict[str, Record]]] = {key: {} for key in BY_KEY}
        self._dependents: dict[str, set[tuple[str, str, str]]] = {}
        self._history: dict[str, deque[Change]] = {key: deque() for key in BY_KEY}
        self._listeners: list[Callable[[Change], None]] = []
        self._journal: Journal | None = None
        if directory is not None:
            directory.mkdir(parents=True, exist_ok=True)
            self._journal = Journal(directory / "objects.jsonl")
            self._load(self._journal)
            self._journal.open()
        # A watch from before this start cannot be continued: its events are gone.
        self._floor: dict[str, int] = dict.fromkeys(BY_KEY, self.version)

    def _load(self, journal: Journal) -> None:
        for line in journal.read():
            self.version = max(self.version, line["rv"])
            spaces = self._kinds.get(line["k"])
            if spaces is None:
                continue
            if line["o"] is None:
                spaces.get(line["ns"], {}).pop(line["n"], None)
            else:
                obj = line["o"]
                record = Record(line["ns"], line["n"], obj, orjson.dumps(obj), line["rv"])
                spaces.setdefault(line["ns"], {})[line["n"]] = record
        for key, spaces in self._kinds.items():
            for space in spaces.values():
                for record in space.values():
                    self._index(key, None, record)

    # ------------------------------------------------------------ reading

    def get(self, resource: Resource, namespace: str, name: str) -> Record | None:
        space = self._kinds[resource.key].get(namespace)
        return space.get(name) if space else None

    def every(self, resource: Resource, namespace: str | None = None) -> Iterator[Record]:
        """Every object of a kind, in one namespace or in all, in no order."""
        spaces = self._kinds[resource.key]
        if namespace is not None:
            yield from list(spaces.get(namespace, {}).values())
            return
        for space in list(spaces.values()):
            yield from list(space.values())

    def count(self, resource: Resource, namespace: str) -> int:
        return len(self._kinds[resource.key].get(namespace, {}))

    def dependents(self, uid: str) -> list[tuple[Resource, Record]]:
        """Objects that name `uid` among their owners."""
        found = []
        for key, namespace, name in self._dependents.get(uid, ()):
            record = self._kinds[key].get(namespace, {}).get(name)
            if record is not None:
                found.append((BY_KEY[key], record))
        return found

    def owned(self, uid: str, resource: Resource) -> list[Record]:
        """Objects of one kind whose controller is `uid`."""
        return [
            record
            for kind, record in self.dependents(uid)
            if kind is resource
            and any(o["uid"] == uid and o.get("controller") for o in record.obj["metadata"].get("ownerReferences", ()))
        ]

    def changes_since(self, resource: Resource, version: int) -> list[Change] | None:
        """Every write to the kind after `version`, oldest first; None where that is no longer known."""
        if version < self._floor[resource.key]:
            return None
        history = self._history[resource.key]
        found: list[Change] = []
        for change in reversed(history):
            if change.version <= version:
                break
            found.append(change)
        found.reverse()
        return found

    def floor(self, resource: Resource) -> int:
        """The oldest version that a watch can start from."""
        return self._floor[resource.key]

    def forget_history(self) -> None:
        """Compaction: from now on watches can only start from the present."""
        for key, history in self._history.items():
            history.clear()
            self._floor[key] = self.version

    # ------------------------------------------------------------ writing

    def put(self, resource: Resource, obj: Obj) -> Record:
        """Store the object (which this store now owns) under a new resource version."""
        meta = obj["metadata"]
        namespace, name = meta.get("namespace", ""), meta["name"]
        self.version += 1
        meta["resourceVersion"] = str(self.version)
        record = Record(namespace, name, obj, orjson.dumps(obj), self.version)
        space = self._kinds[resource.key].setdefault(namespace, {})
        old = space.get(name)
        if self._journal is not None:
            self._journal.append(head(resource.key, namespace, name, self.version), record.raw)
        space[name] = record
        self._index(resource.key, old, record)
        self._tell(Change("MODIFIED" if old else "ADDED", resource, record, old, self.version))
        return record

    def remove(self, resource: Resource, namespace: str, name: str) -> Record | None:
        """Remove the object; its last state (with the version of its removal), or None where there was none."""
        space = self._kinds[resource.key].get(namespace, {})
        old = space.get(name)
        if old is None:
            return None
        self.version += 1
        if self._journal is not None:
            self._journal.append(head(resource.key, namespace, name, self.version), b"null")
        del space[name]
        if not space:
            self._kinds[resource.key].pop(namespace, None)
        self._index(resource.key, old, None)
        last = thaw(old)
        last["metadata"]["resourceVersion"] = str(self.version)
        record = Record(namespace, name, last, orjson.dumps(last), self.version)
        self._tell(Change("DELETED", resource, record, old, self.version))
        return record

    def listen(self, listener: Callable[[Change], None]) -> Callable[[], None]:
        """Call `listener` after each write; returns what ends that."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener) if listener in self._listeners else None

    def close(self) -> None:
        if self._journal is not None:
            self._journal.close()

    def _tell(self, change: Change) -> None:
        history = self._history[change.resource.key]
        history.append(change)
        if len(history) > HISTORY:
            self._floor[change.resource.key] = history.popleft().version
        for listener in tuple(self._listeners):
            listener(change)
        journal = self._journal
        if journal is not None and journal.lines > SLACK and journal.lines > 3 * self._live():
            journal.compact(self._heads())

    def _live(self) -> int:
        return sum(len(space) for spaces in self._kinds.values() for space in spaces.values())

    def _heads(self) -> Iterator[tuple[bytes, bytes]]:
        for key, spaces in self._kinds.items():
            for namespace, space in spaces.items():
                for name, record in space.items():
                    yield head(key, namespace, name, record.version), record.raw
        # The newest version must survive even where its object is gone.
        yield head("", "", "", self.version), b"null"

    def _index(self, key: str, old: Record | None, new: Record | None) -> None:
        before: list[Any] = old.obj["metadata"].get("ownerReferences") or [] if old else []
        after: list[Any] = new.obj["metadata"].get("ownerReferences") or [] if new else []
        if not before and not after:
            return
        record = new or old
        assert record is not None
        where = (key, record.namespace, record.name)
        for owner in before:
            held = self._dependents.get(owner["uid"])
            if held is not None:
                held.discard(where)
                if not held:
                    del self._dependents[owner["uid"]]
        for owner in after:
            self._dependents.setdefault(owner["uid"], set()).add(where)
