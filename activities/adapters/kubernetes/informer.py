"""Shared informer: one watch per kind for all instances of the installation.

One watch per instance would need as many connections as there are orders. The cache may be stale: each waiting activity
also reads its namespace directly every few seconds (resync), so a watch that stops silently delays it by seconds.
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
from activities.adapters.kubernetes.client import KubernetesClient
from activities.adapters.kubernetes.ownership import installation_selector
from activities.adapters.kubernetes.resources import resource_path
from activities.service_templates.manifests import Manifest

KINDS = ("Pod", "Deployment", "StatefulSet", "Job")

WATCH_SECONDS = 240
IDLE_TIMEOUT_SECONDS = 90.0
"""The API server sends a bookmark about once a minute. A longer silence means that the connection is lost."""

RETRY_INITIAL_INTERVAL = 0.2
RETRY_MAXIMUM_INTERVAL = 10.0


class ChangeWaiter:
    """Waits for a change in one namespace."""

    def __init__(self) -> None:
        self._changed = asyncio.Event()

    def wake(self) -> None:
        self._changed.set()

    async def wait(self, seconds: float) -> bool:
        """Return whether an object changed within ``seconds`` or since the last call."""
        try:
            async with asyncio.timeout(seconds):
                await self._changed.wait()
        except TimeoutError:
            return False
        self._changed.clear()
        return True


class Informer:
    """Shared watches of one installation. The first subscription starts them; ``close`` stops them."""

    def __init__(self, client: KubernetesClient, installation_id: str) -> None:
        self._client = client
        self._selector = installation_selector(installation_id)
        self._lock = threading.Lock()
        self._cache: dict[str, dict[str, dict[str, Manifest]]] = {kind: defaultdict(dict) for kind in KINDS}
        self._synced: set[str] = set()
        self._subscribers: dict[str, set[ChangeWaiter]] = defaultdict(set)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._threads: list[threading.Thread] = []
        self._streams: dict[str, urllib3.response.BaseHTTPResponse] = {}
        self._closing = threading.Event()
        self.relist_count = 0

    def subscribe(self, namespace: str) -> ChangeWaiter:
        self._start()
        waiter = ChangeWaiter()
        self._subscribers[namespace].add(waiter)
        return waiter

    def unsubscribe(self, namespace: str, subscription: ChangeWaiter) -> None:
        self._subscribers[namespace].discard(subscription)
        if not self._subscribers[namespace]:
            del self._subscribers[namespace]

    def objects(self, kind: str, namespace: str) -> list[Manifest] | None:
        """Return the cached objects, or None while the kind has not been listed."""
        with self._lock:
            if kind not in self._synced:
                return None
            return list(self._cache[kind].get(namespace, {}).values())

    def close(self) -> None:
        self._closing.set()
        with self._lock:
            streams = list(self._streams.values())
        for stream in streams:
            _close_stream(stream)
        for thread in self._threads:
            thread.join(timeout=5)

    def _start(self) -> None:
        self._loop = asyncio.get_running_loop()
        if self._threads:
            return
        for kind in KINDS:
            thread = threading.Thread(target=self._watch_loop, args=(kind,), name=f"watch-{kind}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def _watch_loop(self, kind: str) -> None:
        """List, then watch from the listed version. After an error list again, otherwise continue."""
        version: str | None = None
        backoff = RETRY_INITIAL_INTERVAL
        while not self._closing.is_set():
            try:
                if version is None:
                    version = self._list(kind)
                    backoff = RETRY_INITIAL_INTERVAL
                version = self._watch(kind, version)
            except errors.ClusterError:
                version = None
            except (urllib3.exceptions.HTTPError, OSError, ValueError):
                # The connection was lost: events may have been missed.
                version = None
            if version is None and self._closing.wait(backoff + random.uniform(0, backoff)):  # noqa: S311 - jitter
                return
            backoff = min(backoff * 2, RETRY_MAXIMUM_INTERVAL)

    def _list(self, kind: str) -> str:
        status, headers, data = self._client.request(
            "GET", resource_path(kind), query={"labelSelector": self._selector}
        )
        if status >= 400:
            raise errors.from_response(status, headers, data)
        response = orjson.loads(data)
        listed: dict[str, dict[str, Manifest]] = defaultdict(dict)
        for item in response.get("items") or []:
            listed[item["metadata"]["namespace"]][item["metadata"]["name"]] = _without_managed_fields(item)
        with self._lock:
            self._cache[kind] = listed
            self._synced.add(kind)
            self.relist_count += 1
        self._notify(None)
        return str(response["metadata"]["resourceVersion"])

    def _watch(self, kind: str, version: str) -> str | None:
        """Process one stream to its end. Return the version to continue from, or None if a new list is needed."""
        query = {
            "watch": "true",
            "labelSelector": self._selector,
            "resourceVersion": version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(WATCH_SECONDS + random.randrange(60)),  # noqa: S311 - spread
        }
        stream = self._client.stream(resource_path(kind), query, idle_timeout_seconds=IDLE_TIMEOUT_SECONDS)
        with self._lock:
            self._streams[kind] = stream
        events = 0
        try:
            if stream.status >= 400:
                raise errors.from_response(stream.status, stream.headers, stream.data)
            for line in _lines(stream):
                event: dict[str, Any] = orjson.loads(line)
                if event["type"] == "ERROR":
                    raise errors.from_watch_error(event["object"])
                version = event["object"]["metadata"]["resourceVersion"]
                events += 1
                if event["type"] != "BOOKMARK":
                    self._apply_event(kind, event["type"], event["object"])
        finally:
            with self._lock:
                self._streams.pop(kind, None)
            stream.release_conn() if self._closing.is_set() else stream.close()
        # A stream without events may end immediately again and again. A new list applies the backoff.
        return version if events else None

    def _apply_event(self, kind: str, event_type: str, changed: Manifest) -> None:
        namespace, name = changed["metadata"]["namespace"], changed["metadata"]["name"]
        with self._lock:
            if event_type == "DELETED":
                self._cache[kind][namespace].pop(name, None)
                if not self._cache[kind][namespace]:
                    del self._cache[kind][namespace]
            else:
                self._cache[kind][namespace][name] = _without_managed_fields(changed)
        self._notify(namespace)

    def _notify(self, namespace: str | None) -> None:
        loop = self._loop
        if loop is None or self._closing.is_set():
            return
        try:
            loop.call_soon_threadsafe(self._wake, namespace)
        except RuntimeError:
            # The event loop is closed, and with it all waiting activities.
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
    remainder = b""
    for chunk in stream.stream(1 << 16):
        *lines, remainder = (remainder + chunk).split(b"\n")
        yield from (line for line in lines if line.strip())


def _close_stream(stream: urllib3.response.BaseHTTPResponse) -> None:
    try:
        stream.shutdown()
    except (RuntimeError, OSError, ValueError):
        # The stream is already closed or not yet open.
        return


def _without_managed_fields(manifest: Manifest) -> Manifest:
    manifest["metadata"].pop("managedFields", None)
    return manifest
