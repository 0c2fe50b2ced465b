"""Forwards requests to the API server, unless a fault answers them, loses the answer or ends the watch."""

from __future__ import annotations

import asyncio
import hmac
import logging
from dataclasses import dataclass, field
from typing import Any, Protocol

import aiohttp
import orjson
from aiohttp import web
from aiohttp.web_request import BaseRequest
from multidict import CIMultiDict

from deploy.local.cluster_proxy.faults import API_FAULTS, ApiFaults, BadFault, check
from deploy.local.cluster_proxy.upstream import Upstream

log = logging.getLogger(__name__)

FAULTS_PATH = "/sandbox/faults"
HEALTH = ("/healthz", "/livez", "/readyz", "/version")
WRITES = ("POST", "PUT", "PATCH", "DELETE")
APPLY_PATCH = "application/apply-patch+yaml"
# Of one connection, not of the request.
HOP_BY_HOP = ("Connection", "Keep-Alive", "Transfer-Encoding", "Upgrade", "Host", "Content-Length", "Date", "Server")
REQUEST_SECONDS = 120.0


class PodFaults(Protocol):
    """Faults of pods and nodes, as the cluster behind the proxy can play them."""

    async def add(self, request: dict[str, Any]) -> dict[str, Any]: ...

    async def clear(self) -> None: ...

    async def listed(self) -> list[dict[str, Any]]: ...


@dataclass(slots=True, kw_only=True)
class Call:
    """A request to the API, as far as faults look at it. `namespace` is empty for requests in no namespace."""

    http: BaseRequest
    namespace: str = ""
    plural: str = ""
    name: str = ""

    @classmethod
    def of(cls, http: BaseRequest) -> Call | None:
        """Parse the path. None for discovery and everything else that is no object."""
        parts = [part for part in http.path.split("/") if part]
        path = parts[2:] if parts[:1] == ["api"] else parts[3:] if parts[:1] == ["apis"] else []
        if not path:
            return None
        if path[0] == "namespaces" and len(path) > 1:
            # A Namespace counts as inside itself.
            plural, name = ([*path[2:], "", ""])[:2] if len(path) > 2 else ("", "")
            return cls(http=http, namespace=path[1], plural=plural, name=name)
        return cls(http=http, plural=path[0], name=path[1] if len(path) > 1 else "")

    @property
    def is_write(self) -> bool:
        return self.http.method in WRITES

    @property
    def creates(self) -> bool:
        """Whether the request can create an object inside a namespace."""
        applies = self.http.method == "PATCH" and self.http.headers.get("Content-Type", "").startswith(APPLY_PATCH)
        return bool(self.plural and self.namespace) and (self.http.method == "POST" or applies)

    @property
    def is_watch(self) -> bool:
        return self.http.method == "GET" and self.http.query.get("watch") in ("true", "1")


@dataclass(eq=False, slots=True)
class Watch:
    """An open watch. Setting `ended` ends it after the bytes in `last`."""

    namespace: str
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    last: bytes = b""

    def end(self, last: bytes = b"") -> None:
        self.last = last
        self.ended.set()


class Proxy:
    """Handles requests. `token` is what clients of the proxy present."""

    def __init__(self, upstream: Upstream, pod_faults: PodFaults, session: aiohttp.ClientSession, token: str) -> None:
        self._upstream = upstream
        self._pod_faults = pod_faults
        self._session = session
        self._token = token
        self._faults = ApiFaults()
        self._watches: set[Watch] = set()
        # server_error answers 503 and 500 in turn.
        self._server_errors = 0

    async def handle(self, http: BaseRequest) -> web.StreamResponse:
        """Answer one HTTP request."""
        if http.path == "/sandbox/healthz":
            return web.Response(text="ok")
        if http.path.rstrip("/") == FAULTS_PATH:
            return await self._sandbox(http)
        if http.path not in HEALTH and not self._is_authenticated(http):
            return _status(401, "Unauthorized", "Unauthorized")
        call = Call.of(http)
        if call is None:
            return await self._forward(http)
        fault_response = self._fault_response(call)
        if fault_response is not None:
            return fault_response
        if call.is_watch:
            return await self._watch(call)
        response = await self._forward(http)
        if call.is_write and self._faults.strike("lost_reply", call.namespace):
            if http.transport is not None:
                http.transport.abort()
            raise ConnectionResetError("fault lost_reply")
        return response

    def _is_authenticated(self, http: BaseRequest) -> bool:
        scheme, _, token = http.headers.get("Authorization", "").partition(" ")
        return scheme.lower() == "bearer" and hmac.compare_digest(token.strip().encode(), self._token.encode())

    def _fault_response(self, call: Call) -> web.Response | None:
        """Return the answer of the fault that strikes the request, None where none does."""
        strike, where = self._faults.strike, call.namespace
        if strike("throttle", where):
            message = "Too many requests, please try again later."
            return _status(429, "TooManyRequests", message, retry_after=1)
        if strike("server_error", where):
            self._server_errors += 1
            if self._server_errors % 2 == 0:
                return _status(500, "InternalError", "Internal error occurred: etcdserver: request timed out")
            return _unavailable()
        about = {"name": call.name or "unknown", "kind": call.plural}
        if call.is_write and strike("conflict", where):
            why = "the object has been modified; please apply your changes to the latest version and try again"
            message = f'Operation cannot be fulfilled on {call.plural} "{about["name"]}": {why}'
            return _status(409, "Conflict", message, details=about)
        if call.creates and strike("quota", where):
            why = "exceeded quota: sandbox, requested: pods=1, used: pods=10, limited: pods=10"
            return _status(403, "Forbidden", f'{call.plural} "{about["name"]}" is forbidden: {why}', details=about)
        return None

    # ------------------------------------------------------------ forwarding

    def _request(self, http: BaseRequest, body: bytes | None, seconds: float | None) -> Any:
        headers = _end_to_end(http.headers)
        headers.pop("Authorization", None)
        return self._session.request(
            http.method,
            self._upstream.url + http.raw_path,
            headers={**headers, **self._upstream.headers},
            data=body or None,
            # The request goes on as it came: the API treats a missing Content-Type as JSON.
            skip_auto_headers=("Accept", "Accept-Encoding", "Content-Type", "User-Agent"),
            allow_redirects=False,
            timeout=aiohttp.ClientTimeout(total=seconds, sock_connect=10.0),
            ssl=self._upstream.tls or False,
        )

    async def _forward(self, http: BaseRequest) -> web.StreamResponse:
        follows = http.query.get("follow") in ("true", "1")
        try:
            async with self._request(
                http, await http.read(), None if follows else REQUEST_SECONDS
            ) as upstream_response:
                if not follows:
                    headers = _end_to_end(upstream_response.headers)
                    return web.Response(
                        status=upstream_response.status, headers=headers, body=await upstream_response.read()
                    )
                response = web.StreamResponse(
                    status=upstream_response.status, headers=_end_to_end(upstream_response.headers)
                )
                await response.prepare(http)
                async for chunk in upstream_response.content.iter_any():
                    await response.write(chunk)
                return response
        except (aiohttp.ClientError, TimeoutError) as exc:
            log.warning("%s %s: %r", http.method, http.path, exc)
            return _unavailable()

    async def _watch(self, call: Call) -> web.StreamResponse:
        headers = {"Content-Type": "application/json"}
        for fault, last in (("gone", _expired()), ("watch_close", b"")):
            if self._faults.strike(fault, call.namespace):
                return web.Response(body=last, headers=headers)
        watch = Watch(call.namespace)
        self._watches.add(watch)
        try:
            async with self._request(call.http, None, None) as upstream_response:
                response = web.StreamResponse(
                    status=upstream_response.status, headers=_end_to_end(upstream_response.headers)
                )
                await response.prepare(call.http)
                await self._copy(upstream_response.content, response, watch)
                return response
        except (aiohttp.ClientError, TimeoutError) as exc:
            log.warning("watch %s: %r", call.http.path, exc)
            return _unavailable()
        finally:
            self._watches.discard(watch)

    async def _copy(self, source: aiohttp.StreamReader, response: web.StreamResponse, watch: Watch) -> None:
        """Copy the stream to its end, or until a fault ends the watch. A stalled watch goes on after the fault."""
        ended = asyncio.ensure_future(watch.ended.wait())
        try:
            while not watch.ended.is_set():
                chunk = asyncio.ensure_future(source.readany())
                await asyncio.wait((chunk, ended), return_when=asyncio.FIRST_COMPLETED)
                if not chunk.done():
                    chunk.cancel()
                    break
                data = chunk.result()
                if not data:
                    break
                stalled = self._faults.strike("watch_stall", watch.namespace)
                if stalled is not None:
                    await stalled.wait_until_over()
                await response.write(data)
            await response.write(watch.last)
            await response.write_eof()
        except ConnectionResetError:
            # The client has disconnected.
            return
        finally:
            ended.cancel()

    # ------------------------------------------------------------ faults

    async def _sandbox(self, http: BaseRequest) -> web.Response:
        try:
            if http.method == "POST":
                request = check(orjson.loads(await http.read()))
                if request["fault"] not in API_FAULTS:
                    return web.json_response(await self._pod_faults.add(request), status=201)
                fault = self._faults.add(request)
                for watch in tuple(self._watches):
                    if fault.kind in ("gone", "watch_close") and fault.strikes(watch.namespace):
                        fault.hits += 1
                        watch.end(_expired() if fault.kind == "gone" else b"")
                return web.json_response(fault.as_json(), status=201)
            if http.method == "DELETE":
                self._faults.clear()
                await self._pod_faults.clear()
            elif http.method != "GET":
                return web.json_response({"error": "the methods are GET, POST and DELETE"}, status=405)
            listed = [fault.as_json() for fault in self._faults.active()]
            return web.json_response({"faults": listed + await self._pod_faults.listed()})
        except (BadFault, orjson.JSONDecodeError) as exc:
            return web.json_response({"error": str(exc)}, status=400)
        except (aiohttp.ClientError, TimeoutError) as exc:
            return web.json_response({"error": f"the cluster does not answer: {exc!r}"}, status=503)


def _end_to_end(headers: Any) -> CIMultiDict[str]:
    forwarded: CIMultiDict[str] = CIMultiDict(headers)
    for name in HOP_BY_HOP:
        forwarded.popall(name, None)
    return forwarded


def _body(code: int, reason: str, message: str, details: dict[str, Any] | None = None) -> bytes:
    body: dict[str, Any] = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure"}
    return orjson.dumps({**body, "message": message, "reason": reason, "details": details or {}, "code": code})


def _status(
    code: int, reason: str, message: str, *, details: dict[str, Any] | None = None, retry_after: int | None = None
) -> web.Response:
    if retry_after is not None:
        details = {**(details or {}), "retryAfterSeconds": retry_after}
    response = web.Response(
        body=_body(code, reason, message, details), status=code, headers={"Content-Type": "application/json"}
    )
    if retry_after is not None:
        response.headers["Retry-After"] = str(retry_after)
    return response


def _unavailable() -> web.Response:
    return _status(503, "ServiceUnavailable", "the server is currently unable to handle the request")


def _expired() -> bytes:
    """Return the line that ends a watch whose resource version is too old."""
    return b'{"type":"ERROR","object":' + _body(410, "Expired", "too old resource version: 1 (2)") + b"}\n"
