"""GET, LIST and WATCH, and how objects are rendered: plain, as a table, as metadata only."""

from __future__ import annotations

import asyncio
import base64
import binascii
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import orjson
from aiohttp import web

from deploy.local.cluster import errors, selectors, tables
from deploy.local.cluster.resources import Obj, Resource
from deploy.local.cluster.selectors import Match
from deploy.local.cluster.store import Record
from deploy.local.cluster.watching import BOOKMARK_EVERY, Watch, error_event, event

if TYPE_CHECKING:
    from deploy.local.cluster.server import Api, Request


def shape(request: Request) -> str:
    """`Table`, `PartialObjectMetadata` or the empty string for whole objects. 406 where JSON is not accepted."""
    accept = request.http.headers.get("Accept", "*/*")
    for clause in accept.split(","):
        clause = clause.strip()
        if clause.startswith(("application/json", "*/*", "application/*")):
            if "as=Table" in clause:
                return "Table"
            if "as=PartialObjectMetadata" in clause:
                return "PartialObjectMetadata"
            return ""
    if "yaml" in accept or not accept:
        return ""
    raise errors.not_acceptable()


def _json(body: bytes, status: int = 200) -> web.Response:
    return web.Response(
        body=body, status=status, headers={"Content-Type": "application/json", "Cache-Control": "no-cache, private"}
    )


def rendered(request: Request, obj: Obj, status: int = 200) -> web.Response:
    """One object as the client asked for it."""
    form = shape(request)
    if form == "Table":
        meta = {"resourceVersion": obj["metadata"].get("resourceVersion", "")}
        obj = tables.table(request.resource, [obj], meta, request.query.get("includeObject", "Metadata"))
    elif form:
        obj = tables.partial(obj)
    return _json(orjson.dumps(obj), status)


def one(api: Api, request: Request) -> web.Response:
    """GET of one object."""
    record = api.registry.get(request.resource, request.where, request.name)
    if shape(request):
        return rendered(request, record.obj)
    return _json(record.raw)


def selector(request: Request) -> Match | None:
    """Both selectors of a list or watch as one test."""
    by_label = selectors.labels(request.query.get("labelSelector", ""))
    by_field = selectors.fields(request.resource, request.query.get("fieldSelector", ""))
    if by_label and by_field:
        return lambda obj: by_label(obj) and by_field(obj)
    return by_label or by_field


def _select(api: Api, request: Request) -> list[Record]:
    match = selector(request)
    found = [r for r in api.store.every(request.resource, request.namespace) if match is None or match(r.obj)]
    found.sort(key=lambda r: (r.namespace, r.name))
    return found


def _version(request: Request) -> int:
    text = request.query.get("resourceVersion", "")
    if not text:
        return 0
    if not text.isdigit():
        why = f'resourceVersion: Invalid value: "{text}": strconv.ParseUint: parsing "{text}": invalid syntax'
        if request.query.get("watch"):
            raise errors.ApiError(500, "", why)
        raise errors.bad_request(f"invalid resource version: {why}")
    return int(text)


def listed(api: Api, request: Request) -> web.Response:
    """LIST, in pages where `limit` asks for them."""
    asked = _version(request)
    if asked > api.store.version:
        raise errors.ApiError(
            504,
            "Timeout",
            f"Timeout: Too large resource version: {asked}, current: {api.store.version}",
            causes=[{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}],
            retry_after=1,
        )
    if request.query.get("resourceVersionMatch") == "Exact" and asked < api.store.version:
        raise errors.ApiError(410, "Expired", "The resourceVersion for the provided list is too old.")
    found = _select(api, request)
    meta: Obj = {"resourceVersion": str(api.store.version)}
    limit = int(request.query.get("limit") or 0)
    after = request.query.get("continue", "")
    if after:
        try:
            token = orjson.loads(base64.urlsafe_b64decode(after + "=" * (-len(after) % 4)))
            start = (token["ns"], token["name"])
        except (binascii.Error, orjson.JSONDecodeError, KeyError, TypeError):
            raise errors.bad_request("invalid continue token: continue key is not valid: decoding error") from None
        found = [r for r in found if (r.namespace, r.name) > start]
    if limit and len(found) > limit:
        meta["remainingItemCount"] = len(found) - limit
        found = found[:limit]
        token = {"ns": found[-1].namespace, "name": found[-1].name, "rv": api.store.version}
        meta["continue"] = base64.urlsafe_b64encode(orjson.dumps(token)).decode().rstrip("=")
    form = shape(request)
    resource = request.resource
    if form == "Table":
        include = request.query.get("includeObject", "Metadata")
        return _json(orjson.dumps(tables.table(resource, [r.obj for r in found], meta, include)))
    if form:
        items = [tables.partial(r.obj) for r in found]
        return _json(
            orjson.dumps(
                {"kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1", "metadata": meta, "items": items}
            )
        )
    head = {"kind": f"{resource.kind}List", "apiVersion": resource.api_version, "metadata": meta}
    return _json(orjson.dumps(head)[:-1] + b',"items":[' + b",".join(r.raw for r in found) + b"]}")


def deleted_all(api: Api, request: Request, options: Obj, *, dry_run: bool) -> web.Response:
    """DELETE of a collection: answers with what it deleted."""
    found = _select(api, request)
    answers = []
    for record in found:
        try:
            obj, _ = api.registry.delete(
                request.resource, record.namespace, record.name, dict(options), dry_run=dry_run
            )
            answers.append(obj)
        except errors.ApiError as exc:
            if exc.code != 404:
                raise
    resource = request.resource
    return _json(
        orjson.dumps(
            {
                "kind": f"{resource.kind}List",
                "apiVersion": resource.api_version,
                "metadata": {"resourceVersion": str(api.store.version)},
                "items": answers,
            }
        )
    )


# ---------------------------------------------------------------- watching


def _encoder(request: Request) -> Callable[[Record], bytes]:
    form = shape(request)
    resource: Resource = request.resource
    if not form:
        return lambda record: record.raw
    if form != "Table":
        return lambda record: orjson.dumps(tables.partial(record.obj))
    include = request.query.get("includeObject", "Metadata")

    def encode(record: Record) -> bytes:
        meta = {"resourceVersion": str(record.version)}
        return orjson.dumps(tables.table(resource, [record.obj], meta, include))

    return encode


async def watch(api: Api, request: Request) -> web.StreamResponse:
    """WATCH until the timeout, the client's leaving or a fault."""
    version = _version(request)
    encode = _encoder(request)
    watcher = Watch(api.store, request.resource, request.namespace, selector(request), encode)
    scope = request.where
    gone: errors.ApiError | None = None
    if api.faults.any("gone") and api.faults.strike("gone", scope):
        gone = errors.expired(version, api.store.version)
    else:
        try:
            _begin(api, request, watcher, version)
        except errors.ApiError as exc:
            gone = exc
    response = web.StreamResponse(headers={"Content-Type": "application/json", "Cache-Control": "no-cache, private"})
    await response.prepare(request.http)
    if gone is not None:
        await response.write(error_event(gone))
        await response.write_eof()
        return response
    if api.faults.any("watch_close") and api.faults.strike("watch_close", scope):
        watcher.close()
    api.watches.add(watcher)
    try:
        await _stream(response, watcher, request)
    except ConnectionResetError:
        # The client has left: nobody is waiting for an end.
        pass
    finally:
        watcher.close()
        api.watches.discard(watcher)
    return response


def _begin(api: Api, request: Request, watcher: Watch, version: int) -> None:
    initial = request.query.get("sendInitialEvents") == "true"
    if initial or version == 0:
        # From nowhere: what there is comes first, as if it had just been added.
        for record in _select(api, request):
            watcher.push(event("ADDED", watcher.encode(record)))
        watcher.start(0)
        if initial and request.query.get("allowWatchBookmarks") == "true":
            watcher.bookmark(initial_end=True)
    else:
        watcher.start(version)


async def _stream(response: web.StreamResponse, watcher: Watch, request: Request) -> None:
    limit = request.query.get("timeoutSeconds")
    end = time.monotonic() + (float(limit) if limit else 3600.0)
    marks = request.query.get("allowWatchBookmarks") in ("true", "1")
    next_mark = time.monotonic() + BOOKMARK_EVERY
    while True:
        while watcher.lines:
            chunk = b"".join(watcher.lines)
            watcher.lines.clear()
            await response.write(chunk)
        if watcher.closed:
            break
        now = time.monotonic()
        if now >= end:
            if marks:
                watcher.bookmark()
                await response.write(b"".join(watcher.lines))
            break
        if marks and now >= next_mark:
            watcher.bookmark()
            next_mark = now + BOOKMARK_EVERY
            continue
        watcher.wake.clear()
        until = min(end, next_mark) if marks else end
        try:
            async with asyncio.timeout(until - now):
                await watcher.wake.wait()
        except TimeoutError:
            continue
    await response.write_eof()
