"""Watches: the changes of a kind from a resource version on, with bookmarks, selectors and 410."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable

import orjson
from aiohttp import web
from aiohttp.web_request import BaseRequest

from deploy.local.cluster import errors
from deploy.local.cluster.resources import Obj, Resource
from deploy.local.cluster.selectors import Match
from deploy.local.cluster.store import Change, ObjectStore, StoredObject

BOOKMARK_SECONDS = 60.0
# A reader that falls further behind is disconnected.
BACKLOG = 20_000


def event(kind: str, body: bytes) -> bytes:
    """Return one line of a watch stream."""
    return b'{"type":"' + kind.encode() + b'","object":' + body + b"}\n"


class Watch:
    """The queue of one watch: encoded lines that its connection has not taken yet."""

    def __init__(self, store: ObjectStore, resource: Resource, namespace: str | None, match: Match | None) -> None:
        self._store = store
        self._resource = resource
        self._namespace = namespace
        self._match = match
        self.lines: deque[bytes] = deque()
        self.wake = asyncio.Event()
        self.closed = False
        self._stop: Callable[[], None] = lambda: None

    def start(self, version: int) -> None:
        """Queue the changes after `version` (0: from now on). Raises 410 where they are no longer known."""
        if version > 0:
            missed = self._store.changes_since(self._resource, version)
            if missed is None:
                raise errors.expired(version, self._store.floor(self._resource))
            for change in missed:
                self._take(change)
        self._stop = self._store.listen(self._take)

    def push(self, line: bytes) -> None:
        self.lines.append(line)
        self.wake.set()

    def bookmark(self, *, initial_events_end: bool = False) -> None:
        meta: Obj = {"resourceVersion": str(self._store.version), "creationTimestamp": None}
        if initial_events_end:
            meta["annotations"] = {"k8s.io/initial-events-end": "true"}
        body = {"kind": self._resource.kind, "apiVersion": self._resource.api_version, "metadata": meta}
        self.push(event("BOOKMARK", orjson.dumps(body)))

    def close(self) -> None:
        """End the watch without an error event."""
        self._stop()
        self.closed = True
        self.wake.set()

    def _take(self, change: Change) -> None:
        if change.resource is not self._resource or self._namespace not in (None, change.new.namespace):
            return
        kind = change.type
        if self._match is not None:
            before = change.old is not None and self._match(change.old.obj)
            after = kind != "DELETED" and self._match(change.new.obj)
            if not before and not after:
                return
            kind = "DELETED" if before and not after else "ADDED" if after and not before else kind
        self.push(event(kind, change.new.raw))
        if len(self.lines) > BACKLOG:
            self.close()


async def stream(
    http: BaseRequest, watch: Watch, version: int, present: Callable[[], list[StoredObject]]
) -> web.StreamResponse:
    """Answer a WATCH until its timeout, or until the client or the server ends it.

    Args:
        version: To start from; 0 begins with the objects that `present` returns.
    """
    query = http.query
    initial, marks = query.get("sendInitialEvents") == "true", query.get("allowWatchBookmarks") == "true"
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    await response.prepare(http)
    try:
        if initial or not version:
            for stored in present():
                watch.push(event("ADDED", stored.raw))
            watch.start(0)
            if initial and marks:
                watch.bookmark(initial_events_end=True)
        else:
            watch.start(version)
        await _write(response, watch, float(query.get("timeoutSeconds") or 3600), marks=marks)
        await response.write_eof()
    except errors.ApiError as exc:
        await response.write(event("ERROR", orjson.dumps(exc.status())))
        await response.write_eof()
    except ConnectionResetError:
        # The client has disconnected.
        pass
    finally:
        watch.close()
    return response


async def _write(response: web.StreamResponse, watch: Watch, seconds: float, *, marks: bool) -> None:
    end = time.monotonic() + seconds
    next_mark = time.monotonic() + BOOKMARK_SECONDS
    while True:
        if watch.lines:
            chunk = b"".join(watch.lines)
            watch.lines.clear()
            await response.write(chunk)
            continue
        now = time.monotonic()
        if watch.closed or now >= end:
            return
        if marks and now >= next_mark:
            watch.bookmark()
            next_mark = now + BOOKMARK_SECONDS
            continue
        watch.wake.clear()
        try:
            async with asyncio.timeout(min(end, next_mark) - now):
                await watch.wake.wait()
        except TimeoutError:
            continue
