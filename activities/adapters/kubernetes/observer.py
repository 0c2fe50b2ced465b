"""One watch per kind for everything that Berth runs, shared by all that wait for something in this process.

A wait needs to know soon that something changed, and a stream per instance would be as many connections as orders. What
is seen here is a hint and a cache: whoever waits also looks for himself from time to time, so that a watch that died
without a word costs seconds, not the order.
"""

from __future__ import annotations

import asyncio
import random
import threading
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import orjson
import urllib3

from activities.adapters.kubernetes import errors
from activities.adapters.kubernetes.gateway import KubernetesGateway, Object
from activities.adapters.kubernetes.kinds import path
from activities.templates import MANAGED_BY, MANAGER

KINDS = ("Pod", "Deployment", "StatefulSet", "Job")
SELECTOR = f"{MANAGED_BY}={MANAGER}"

WATCH_SECONDS = 240
SILENCE_SECONDS = 90.0
"""The API sends a bookmark about once a minute: longer silence means that nobody is there any more."""

FIRST_PAUSE = 0.2
LONGEST_PAUSE = 10.0


class Subscription:
    """Wakes when something in one namespace changed."""

    def __init__(self) -> None:
        self._changed = asyncio.Event()

    def wake(self) -> None:
        self._changed.set()

    async def wait(self, seconds: float) -> bool:
        """Return whether something changed within ``seconds`` or since the last call."""
        try:
            async with asyncio.timeout(seconds):
                await self._changed.wait()
        except TimeoutError:
            return False
        self._changed.clear()
        return True


class Observer:
    """The shared watches. They start with the first subscription; ``close`` ends them."""

    def __init__(self, gateway: KubernetesGateway) -> None:
        self._gateway = gateway
        self._lock = threading.Lock()
        self._seen: dict[str, dict[str, dict[str, Object]]] = {kind: defaultdict(dict) for kind in KINDS}
        self._synced: set[str] = set()
        self._subscribers: dict[str, set[Subscription]] = defaultdict(set)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._threads: list[threading.Thread] = []
        self._streams: dict[str, urllib3.response.BaseHTTPResponse] = {}
        self._closing = threading.Event()
        self.relists = 0

    def subscribe(self, namespace: str) -> Subscription:
        self._start()
        made = Subscription()
        self._subscribers[namespace].add(made)
        return made

    def unsubscribe(self, namespace: str, subscription: Subscription) -> None:
        self._subscribers[namespace].discard(subscription)
        if not self._subscribers[namespace]:
            del self._subscribers[namespace]

    def objects(self, kind: str, namespace: str) -> list[Object] | None:
        """Return what was last seen, or None while the kind has not been listed."""
        with self._lock:
            if kind not in self._synced:
                return None
            return list(self._seen[kind].get(namespace, {}).values())

    def close(self) -> None:
        self._closing.set()
        with self._lock:
            streams = list(self._streams.values())
        for stream in streams:
            _shut(stream)
        for thread in self._threads:
            thread.join(timeout=5)

    def _start(self) -> None:
        self._loop = asyncio.get_running_loop()
        if self._threads:
            return
        for kind in KINDS:
            thread = threading.Thread(target=self._run, args=(kind,), name=f"watch-{kind}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def _run(self, kind: str) -> None:
        """List, watch from there; after 410 or anything unexpected list anew, after a quiet end go on from there."""
        version: str | None = None
        pause = FIRST_PAUSE
        while not self._closing.is_set():
            try:
                if version is None:
                    version = self._list(kind)
                    pause = FIRST_PAUSE
                version = self._watch(kind, version)
            except errors.ClusterError:
                version = None
            except (urllib3.exceptions.HTTPError, OSError, ValueError):
                # The stream broke or fell silent in the middle: what was missed is unknown.
                version = None
            if version is None and self._closing.wait(pause + random.uniform(0, pause)):  # noqa: S311 - jitter
                return
            pause = min(pause * 2, LONGEST_PAUSE)

    def _list(self, kind: str) -> str:
        status, headers, data = self._gateway.request("GET", path(kind), query={"labelSelector": SELECTOR})
        if status >= 400:
            raise errors.from_response(status, headers, data)
        answer = orjson.loads(data)
        seen: dict[str, dict[str, Object]] = defaultdict(dict)
        for found in answer.get("items") or []:
            seen[found["metadata"]["namespace"]][found["metadata"]["name"]] = _trimmed(found)
        with self._lock:
            self._seen[kind] = seen
            self._synced.add(kind)
            self.relists += 1
        self._notify(None)
        return str(answer["metadata"]["resourceVersion"])

    def _watch(self, kind: str, version: str) -> str | None:
        """Follow one stream to its end. Return where to go on from, None when only a list can tell."""
        query = {
            "watch": "true",
            "labelSelector": SELECTOR,
            "resourceVersion": version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(WATCH_SECONDS + random.randrange(60)),  # noqa: S311 - spread
        }
        stream = self._gateway.stream(path(kind), query, silence_seconds=SILENCE_SECONDS)
        with self._lock:
            self._streams[kind] = stream
        events = 0
        try:
            if stream.status >= 400:
                raise errors.from_response(stream.status, stream.headers, stream.data)
            for line in _lines(stream):
                event: dict[str, Any] = orjson.loads(line)
                if event["type"] == "ERROR":
                    raise errors.from_event(event["object"])
                version = event["object"]["metadata"]["resourceVersion"]
                events += 1
                if event["type"] != "BOOKMARK":
                    self._take(kind, event["type"], event["object"])
        finally:
            with self._lock:
                self._streams.pop(kind, None)
            stream.release_conn() if self._closing.is_set() else stream.close()
        # A stream that ends at once, again and again, is a fault somewhere: then look for ourselves.
        return version if events else None

    def _take(self, kind: str, what: str, found: Object) -> None:
        namespace, name = found["metadata"]["namespace"], found["metadata"]["name"]
        with self._lock:
            if what == "DELETED":
                self._seen[kind][namespace].pop(name, None)
                if not self._seen[kind][namespace]:
                    del self._seen[kind][namespace]
            else:
                self._seen[kind][namespace][name] = _trimmed(found)
        self._notify(namespace)

    def _notify(self, namespace: str | None) -> None:
        loop = self._loop
        if loop is None or self._closing.is_set():
            return
        try:
            loop.call_soon_threadsafe(self._wake, namespace)
        except RuntimeError:
            # The loop has ended before us; so have all that waited on it.
            self._closing.set()

    def _wake(self, namespace: str | None) -> None:
        if namespace is not None:
            for subscription in self._subscribers.get(namespace, ()):
                subscription.wake()
            return
        for subscriptions in self._subscribers.values():
            for subscription in subscriptions:
                subscription.wake()


def _lines(stream: urllib3.response.BaseHTTPResponse) -> Iterator[bytes]:
    rest = b""
    for chunk in stream.stream(1 << 16):
        *lines, rest = (rest + chunk).split(b"\n")
        yield from (line for line in lines if line.strip())


def _shut(stream: urllib3.response.BaseHTTPResponse) -> None:
    try:
        stream.shutdown()
    except (RuntimeError, OSError, ValueError):
        # It has ended by itself, or has not begun.
        return


def _trimmed(found: Object) -> Object:
    found["metadata"].pop("managedFields", None)
    return found
