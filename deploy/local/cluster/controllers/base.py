"""The loop that all controllers run in: a change marks keys, marked keys are reconciled soon after, in turn."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Any

from deploy.local.cluster.errors import ApiError
from deploy.local.cluster.faults import Faults
from deploy.local.cluster.naming import suffix
from deploy.local.cluster.registry import CONTROLLER, Registry
from deploy.local.cluster.resources import BY_KEY, Obj, Resource
from deploy.local.cluster.store import Change, Record, Store
from deploy.local.cluster.times import now

log = logging.getLogger(__name__)

Key = tuple[str, str]
Keys = Callable[[Change], Iterable[Key]]

# Keys reconciled in one go before requests get their turn again.
BATCH = 40
# Changes within this many seconds of each other are looked at once.
SETTLE = 0.004
EVENTS = BY_KEY["/events"]
EVENTS_KEPT = 5_000


class Controller:
    """One controller. `watches` says which keys a change to a kind concerns."""

    name = ""

    def __init__(self, world: World) -> None:
        self.world = world
        self.store = world.store
        self.registry = world.registry
        self.faults = world.faults

    def watches(self) -> dict[str, Keys]:
        raise NotImplementedError

    def reconcile(self, namespace: str, name: str) -> float | None:
        """Bring one object nearer to what it should be; seconds until it must be looked at again, if it must."""
        raise NotImplementedError


def own(change: Change) -> Iterable[Key]:
    """The changed object itself."""
    return ((change.new.namespace, change.new.name),)


def controller_of(obj: Obj) -> Obj | None:
    """The owner reference that controls the object."""
    for owner in obj["metadata"].get("ownerReferences") or ():
        if owner.get("controller"):
            found: Obj = owner
            return found
    return None


def owner_of(kind: str) -> Keys:
    """The controlling owner of that kind."""

    def keys(change: Change) -> Iterable[Key]:
        owner = controller_of(change.new.obj)
        return ((change.new.namespace, owner["name"]),) if owner and owner["kind"] == kind else ()

    return keys


def reference(resource: Resource, obj: Obj) -> Obj:
    """An owner reference to `obj` as its controller."""
    meta = obj["metadata"]
    return {
        "apiVersion": resource.api_version,
        "kind": resource.kind,
        "name": meta["name"],
        "uid": meta["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }


def condition(status: Obj, kind: str, value: str, reason: str = "", message: str = "", **more: Any) -> bool:
    """Set a condition in `status`; the transition time moves only with the value. Whether anything changed."""
    conditions: list[Obj] = status.setdefault("conditions", [])
    wanted: Obj = {"type": kind, "status": value, **more}
    if reason:
        wanted["reason"] = reason
    if message:
        wanted["message"] = message
    for index, old in enumerate(conditions):
        if old["type"] == kind:
            same = {k: old.get(k) for k in ("status", "reason", "message")} == {
                k: wanted.get(k) for k in ("status", "reason", "message")
            }
            if same:
                return False
            wanted["lastTransitionTime"] = old.get("lastTransitionTime") if old["status"] == value else now()
            conditions[index] = wanted
            return True
    wanted["lastTransitionTime"] = now()
    conditions.append(wanted)
    return True


def has_condition(obj: Obj, kind: str, value: str = "True") -> bool:
    return any(c["type"] == kind and c["status"] == value for c in (obj.get("status") or {}).get("conditions") or ())


class World:
    """What controllers share: the store, the clock's pace, events, and the queue."""

    def __init__(self, store: Store, registry: Registry, faults: Faults, speed: float) -> None:
        self.store = store
        self.registry = registry
        self.faults = faults
        self.speed = speed
        self.controllers: dict[str, Controller] = {}
        self._by_kind: dict[str, list[tuple[str, Keys]]] = {}
        self._ready: dict[tuple[str, str, str], None] = {}
        self._later: dict[tuple[str, str, str], tuple[float, asyncio.TimerHandle]] = {}
        self._failures: dict[tuple[str, str, str], int] = {}
        self._handle: asyncio.Handle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._events = 0
        self._stop: Callable[[], None] = lambda: None

    # ------------------------------------------------------------ running

    def start(self, controllers: list[Controller]) -> None:
        """Run the controllers on the current event loop, beginning with everything there is."""
        self._loop = asyncio.get_running_loop()
        for controller in controllers:
            self.controllers[controller.name] = controller
            for kind, keys in controller.watches().items():
                self._by_kind.setdefault(kind, []).append((controller.name, keys))
        self._stop = self.store.listen(self._changed)
        for kind in self._by_kind:
            for record in self.store.every(BY_KEY[kind]):
                self._changed(Change("ADDED", BY_KEY[kind], record, None, record.version))

    def stop(self) -> None:
        self._stop()
        if self._handle is not None:
            self._handle.cancel()
        for _, handle in self._later.values():
            handle.cancel()
        self._later.clear()
        self._ready.clear()

    def enqueue(self, controller: str, namespace: str, name: str, delay: float = 0.0) -> None:
        """Have the key reconciled after `delay` seconds (real ones)."""
        if self._loop is None:
            return
        key = (controller, namespace, name)
        if delay <= 0:
            self._ready[key] = None
            self._schedule(SETTLE)
            return
        due = self._loop.time() + delay
        waiting = self._later.get(key)
        if waiting is not None:
            if waiting[0] <= due:
                return
            waiting[1].cancel()
        self._later[key] = (due, self._loop.call_later(delay, self._due, key))

    def _due(self, key: tuple[str, str, str]) -> None:
        self._later.pop(key, None)
        self._ready[key] = None
        self._schedule(0.0)

    def _schedule(self, delay: float) -> None:
        if self._handle is None and self._loop is not None:
            self._handle = self._loop.call_later(delay, self._flush) if delay else self._loop.call_soon(self._flush)

    def _changed(self, change: Change) -> None:
        for controller, keys in self._by_kind.get(change.resource.key, ()):
            for namespace, name in keys(change):
                self.enqueue(controller, namespace, name)

    def _flush(self) -> None:
        self._handle = None
        batch = list(self._ready)[:BATCH]
        for key in batch:
            del self._ready[key]
        for key in batch:
            self._reconcile(key)
        if self._ready:
            self._schedule(0.0 if len(batch) == BATCH else SETTLE)

    def _reconcile(self, key: tuple[str, str, str]) -> None:
        try:
            again = self.controllers[key[0]].reconcile(key[1], key[2])
        except ApiError as exc:
            again = self._backoff(key)
            log.debug("%s %s/%s: %s", *key, exc)
        except Exception:
            again = self._backoff(key)
            log.exception("%s failed on %s/%s", *key)
        else:
            self._failures.pop(key, None)
        if again is not None:
            self.enqueue(*key, max(again, 0.001))

    def _backoff(self, key: tuple[str, str, str]) -> float:
        count = self._failures[key] = self._failures.get(key, 0) + 1
        return float(min(0.1 * 2 ** min(count, 8), 10.0))

    # ------------------------------------------------------------ helpers

    def seconds(self, real: float) -> float:
        """A pretended duration in real seconds."""
        return real / self.speed

    def event(self, obj: Obj, reason: str, message: str, *, source: str, type_: str = "Normal") -> None:
        """Record an Event about `obj`; the same one again raises its count."""
        meta = obj["metadata"]
        namespace = meta.get("namespace") or "default"
        space = self.store.get(BY_KEY["/namespaces"], "", namespace)
        if space is None or space.obj["metadata"].get("deletionTimestamp"):
            return
        about = {
            "kind": obj["kind"],
            "namespace": namespace,
            "name": meta["name"],
            "uid": meta["uid"],
            "apiVersion": obj["apiVersion"],
            "resourceVersion": meta.get("resourceVersion", ""),
        }
        name = f"{meta['name'][:200]}.{abs(hash((meta['uid'], reason, message))):016x}"
        stamp = now()
        old = self.store.get(EVENTS, namespace, name)
        if old is not None:

            def again(event: Obj) -> None:
                event["count"] = event.get("count", 1) + 1
                event["lastTimestamp"] = stamp

            self.registry.modify(EVENTS, old, again)
            return
        self.store.put(
            EVENTS,
            {
                "kind": "Event",
                "apiVersion": "v1",
                "metadata": {"name": name, "namespace": namespace, "uid": f"{suffix(12)}", "creationTimestamp": stamp},
                "involvedObject": about,
                "reason": reason,
                "message": message,
                "source": {"component": source},
                "firstTimestamp": stamp,
                "lastTimestamp": stamp,
                "count": 1,
                "type": type_,
                "eventTime": None,
                "reportingComponent": source,
                "reportingInstance": "",
            },
        )
        self._events += 1
        if self._events > EVENTS_KEPT:
            self._trim()

    def _trim(self) -> None:
        """Forget the older half of the events."""
        records = sorted(self.store.every(EVENTS), key=lambda r: r.version)
        for record in records[: len(records) // 2]:
            self.store.remove(EVENTS, record.namespace, record.name)
        self._events = len(records) - len(records) // 2

    def create(self, resource: Resource, obj: Obj) -> Obj:
        """Create as a controller, through all checks."""
        return self.registry.create(resource, obj["metadata"].get("namespace", ""), obj, CONTROLLER)

    def delete(self, resource: Resource, record: Record, policy: str = "Background") -> None:
        """Delete as a controller; gone already is fine."""
        try:
            self.registry.delete(resource, record.namespace, record.name, {"propagationPolicy": policy})
        except ApiError as exc:
            if exc.code != 404:
                raise
