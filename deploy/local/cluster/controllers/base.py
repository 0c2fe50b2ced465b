"""The loop of all controllers: a change enqueues keys, and enqueued keys are reconciled soon after, in turn."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Callable, Iterable
from typing import Any

import orjson

from deploy.local.cluster.errors import ApiError
from deploy.local.cluster.faults import FaultInjector
from deploy.local.cluster.registry import CONTROLLER, Registry
from deploy.local.cluster.resources import BY_KEY, EVENTS, NAMESPACES, Obj, Resource
from deploy.local.cluster.store import Change, ObjectStore, StoredObject
from deploy.local.cluster.times import now

log = logging.getLogger(__name__)

Key = tuple[str, str]
Keys = Callable[[Change], Iterable[Key]]

# Keys reconciled in one go before requests are served again.
BATCH_SIZE = 40
# Changes within this many seconds of each other are reconciled once.
SETTLE_SECONDS = 0.004
EVENTS_KEPT = 5_000


class Controller:
    """One controller. `watches` says which keys a change to a kind concerns."""

    name = ""

    def __init__(self, loop: ControlLoop) -> None:
        self.loop = loop
        self.store = loop.store
        self.registry = loop.registry
        self.faults = loop.faults

    def watches(self) -> dict[str, Keys]:
        raise NotImplementedError

    def reconcile(self, namespace: str, name: str) -> float | None:
        """Bring one object nearer to its desired state.

        Returns:
            Seconds until the object must be reconciled again; None where the next change is enough.
        """
        raise NotImplementedError


def itself(change: Change) -> Iterable[Key]:
    """Return the key of the changed object."""
    return ((change.new.namespace, change.new.name),)


def controller_of(obj: Obj) -> Obj | None:
    """Return the owner reference of the object's controller."""
    owners: list[Obj] = obj["metadata"].get("ownerReferences") or []
    return next((owner for owner in owners if owner.get("controller")), None)


def owner_of(kind: str) -> Keys:
    """Return the function that gives the key of the controlling owner of that kind."""

    def keys(change: Change) -> Iterable[Key]:
        owner = controller_of(change.new.obj)
        return ((change.new.namespace, owner["name"]),) if owner and owner["kind"] == kind else ()

    return keys


def owner_reference(resource: Resource, obj: Obj) -> Obj:
    """Return an owner reference to `obj` as the controller."""
    meta = obj["metadata"]
    about = {"apiVersion": resource.api_version, "kind": resource.kind, "name": meta["name"], "uid": meta["uid"]}
    return {**about, "controller": True, "blockOwnerDeletion": True}


def set_condition(status: Obj, kind: str, value: str, reason: str = "", message: str = "", **more: Any) -> None:
    """Set a condition in `status`. The transition time changes only with the value."""
    conditions: list[Obj] = status.setdefault("conditions", [])
    condition: Obj = {"type": kind, "status": value, **({"reason": reason} if reason else {})}
    if message:
        condition["message"] = message
    for index, old in enumerate(conditions):
        if old["type"] != kind:
            continue
        if any(old.get(key) != condition.get(key) for key in ("status", "reason", "message")):
            since = old["lastTransitionTime"] if old["status"] == value else now()
            conditions[index] = {**condition, **more, "lastTransitionTime": since}
        return
    conditions.append({**condition, **more, "lastTransitionTime": now()})


def has_condition(obj: Obj, kind: str, value: str = "True") -> bool:
    conditions = (obj.get("status") or {}).get("conditions") or ()
    return any(c["type"] == kind and c["status"] == value for c in conditions)


def digest(value: Any) -> str:
    """Return a short hash of a JSON value that names may contain."""
    data = orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
    return hashlib.blake2b(data, digest_size=5).hexdigest()


class ControlLoop:
    """Runs the controllers, and holds what they share: the store, the speed of simulated delays, and events."""

    def __init__(self, store: ObjectStore, registry: Registry, faults: FaultInjector, speed: float) -> None:
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
        """Run the controllers on the current event loop, beginning with every object in the store."""
        self._loop = asyncio.get_running_loop()
        for controller in controllers:
            self.controllers[controller.name] = controller
            for kind, keys in controller.watches().items():
                self._by_kind.setdefault(kind, []).append((controller.name, keys))
        self._stop = self.store.listen(self._changed)
        for kind in self._by_kind:
            for stored in self.store.every(BY_KEY[kind]):
                self._changed(Change("ADDED", BY_KEY[kind], stored, None, stored.version))

    def stop(self) -> None:
        self._stop()
        if self._handle is not None:
            self._handle.cancel()
        for _, handle in self._later.values():
            handle.cancel()
        self._later.clear()
        self._ready.clear()

    def enqueue(self, controller: str, namespace: str, name: str, delay: float = 0.0) -> None:
        """Reconcile the key after `delay` seconds (real ones)."""
        if self._loop is None:
            return
        key = (controller, namespace, name)
        if delay <= 0:
            self._ready[key] = None
            self._schedule(SETTLE_SECONDS)
            return
        due = self._loop.time() + delay
        waiting = self._later.get(key)
        if waiting is not None:
            if waiting[0] <= due:
                return
            waiting[1].cancel()
        self._later[key] = (due, self._loop.call_later(delay, self._due, key))

    def enqueue_all(self, controller: str, resource: Resource) -> None:
        """Reconcile every object of a kind."""
        for stored in self.store.every(resource):
            self.enqueue(controller, stored.namespace, stored.name)

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
        batch = list(self._ready)[:BATCH_SIZE]
        for key in batch:
            del self._ready[key]
        for key in batch:
            self._reconcile(key)
        if self._ready:
            self._schedule(0.0 if len(batch) == BATCH_SIZE else SETTLE_SECONDS)

    def _reconcile(self, key: tuple[str, str, str]) -> None:
        try:
            delay = self.controllers[key[0]].reconcile(key[1], key[2])
        except ApiError as exc:
            delay = self._backoff(key)
            log.debug("%s %s/%s: %s", *key, exc)
        except Exception:
            delay = self._backoff(key)
            log.exception("%s failed on %s/%s", *key)
        else:
            self._failures.pop(key, None)
        if delay is not None:
            self.enqueue(*key, max(delay, 0.001))

    def _backoff(self, key: tuple[str, str, str]) -> float:
        count = self._failures[key] = self._failures.get(key, 0) + 1
        return float(min(0.1 * 2 ** min(count, 8), 10.0))

    # ------------------------------------------------------------ helpers

    def seconds(self, simulated: float) -> float:
        """Return a simulated delay in real seconds."""
        return simulated / self.speed

    def create(self, resource: Resource, obj: Obj) -> Obj:
        """Create an object as a controller, with every check of the API."""
        return self.registry.create(resource, obj["metadata"].get("namespace", ""), obj, CONTROLLER)

    def delete(self, resource: Resource, stored: StoredObject, **body: Any) -> None:
        """Delete an object as a controller, unless it is deleted already."""
        try:
            self.registry.delete(resource, stored.namespace, stored.name, body)
        except ApiError as exc:
            if exc.code != 404:
                raise

    def event(self, obj: Obj, reason: str, message: str, *, source: str, warning: bool = False) -> None:
        """Record an Event about `obj`. A repeated one raises the count of the first."""
        meta, stamp = obj["metadata"], now()
        namespace = meta.get("namespace") or "default"
        space = self.store.get(NAMESPACES, "", namespace)
        if space is None or space.obj["metadata"].get("deletionTimestamp"):
            return
        name = f"{meta['name'][:200]}.{digest([meta['uid'], reason, message])}"
        old = self.store.get(EVENTS, namespace, name)
        if old is not None:
            repeated = {"count": old.obj["count"] + 1, "lastTimestamp": stamp}
            self.registry.modify(EVENTS, old, lambda event: event.update(repeated))
            return
        about = {"kind": obj["kind"], "apiVersion": obj["apiVersion"], "namespace": namespace}
        self.store.put(
            EVENTS,
            {
                "kind": "Event",
                "apiVersion": "v1",
                "metadata": {"name": name, "namespace": namespace, "uid": name, "creationTimestamp": stamp},
                "involvedObject": {**about, "name": meta["name"], "uid": meta["uid"]},
                "reason": reason,
                "message": message,
                "source": {"component": source},
                "firstTimestamp": stamp,
                "lastTimestamp": stamp,
                "count": 1,
                "type": "Warning" if warning else "Normal",
            },
        )
        self._events += 1
        if self._events > EVENTS_KEPT:
            records = sorted(self.store.every(EVENTS), key=lambda stored: stored.version)
            for stored in records[: len(records) // 2]:
                self.store.remove(EVENTS, stored.namespace, stored.name)
            self._events = len(records) - len(records) // 2
