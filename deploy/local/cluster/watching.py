"""Watches: a stream of changes from a resource version on, with bookmarks, selectors and 410."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

import orjson

from deploy.local.cluster import errors
from deploy.local.cluster.resources import Obj, Resource
from deploy.local.cluster.selectors import Match
from deploy.local.cluster.store import Change, Record, Store

BOOKMARK_EVERY = 60.0
# Changes that a slow reader may fall behind before its watch is closed.
BACKLOG = 20_000

Encode = Callable[[Record], bytes]


def event(type_: str, body: bytes) -> bytes:
    """One line of a watch stream."""
    return b'{"type":"' + type_.encode() + b'","object":' + body + b"}\n"


def error_event(problem: errors.ApiError) -> bytes:
    return event("ERROR", orjson.dumps(problem.status()))


class Watch:
    """One watcher's queue of encoded lines. `close` ends it silently, as a lost connection would."""

    def __init__(
        self, store: Store, resource: Resource, namespace: str | None, match: Match | None, encode: Encode
    ) -> None:
        self.store = store
        self.resource = resource
        self.namespace = namespace
        self.match = match
        self.encode = encode
        self.version = store.version
        self.lines: deque[bytes] = deque()
        self.wake = asyncio.Event()
        self.closed = False
        self._stop: Callable[[], None] = lambda: None

    def start(self, version: int) -> None:
        """Take up every change after `version` (0: from now). 410 where they are no longer known."""
        if version > 0:
            missed = self.store.changes_since(self.resource, version)
            if missed is None:
                raise errors.expired(version, self.store.floor(self.resource))
            for change in missed:
                self._take(change)
        self._stop = self.store.listen(self._take)

    def push(self, line: bytes) -> None:
        self.lines.append(line)
        self.wake.set()

    def bookmark(self, *, initial_end: bool = False) -> None:
        """A BOOKMARK at the store's present version."""
        meta: Obj = {"resourceVersion": str(self.store.version), "creationTimestamp": None}
        if initial_end:
            meta["annotations"] = {"k8s.io/initial-events-end": "true"}
        body: Obj = {"kind": self.resource.kind, "apiVersion": self.resource.api_version, "metadata": meta}
        self.push(event("BOOKMARK", orjson.dumps(body)))

    def close(self) -> None:
        self._stop()
        self.closed = True
        self.wake.set()

    def fail(self, problem: errors.ApiError) -> None:
        """Tell the watcher and end."""
        self.push(error_event(problem))
        self.close()

    def _take(self, change: Change) -> None:
        if change.resource is not self.resource:
            return
        if self.namespace is not None and change.new.namespace != self.namespace:
            return
        self.version = change.version
        type_ = change.type
        if self.match is not None:
            before = change.old is not None and self.match(change.old.obj)
            after = type_ != "DELETED" and self.match(change.new.obj)
            if not before and not after:
                return
            type_ = "DELETED" if before and not after else "ADDED" if after and not before else type_
        self.push(event(type_, self.encode(change.new)))
        if len(self.lines) > BACKLOG:
            self.close()
