"""Around every request: its id, its bounds in time, its line in the log, its figures, and the headers of the answer."""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from collections.abc import Mapping, Sequence
from typing import Any

import structlog
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.errors import error_response, internal_error_response, timeout_error, to_api_error
from api.metrics import ApiMetrics

log = structlog.get_logger("api.requests")

REQUEST_ID = re.compile(r"[A-Za-z0-9._:\-]{1,128}")
UNLOGGED_ROUTES = frozenset({"/health", "/metrics"})
DOCS_PREFIXES = ("/docs", "/redoc")

HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
STRICT_CSP = (
    "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'; style-src 'unsafe-inline'"
)
# Swagger UI and ReDoc are ours to serve; they style their elements one by one and run in a web worker.
DOCS_CSP = (
    "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; worker-src blob:;"
    " frame-ancestors 'none'; base-uri 'none'"
)

_NO_OVERRIDES: Mapping[str, float] = {}


RawHeader = tuple[bytes, bytes]
"""Name, in lower case, and value of a header, as ASGI messages have them."""


def _encode_headers(headers: Mapping[str, str]) -> list[RawHeader]:
    return [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]


class RequestMiddleware:
    """The outermost of our layers. Nothing that goes wrong inside leaves it as anything but the envelope."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        metrics: ApiMetrics,
        seconds: float,
        https: bool,
        patient: Mapping[str, float] = _NO_OVERRIDES,
    ) -> None:
        """``patient``: paths that may take longer than ``seconds``, and how long."""
        self._app = app
        self._metrics = metrics
        self._seconds = seconds
        self._timeout_overrides = patient
        strict_transport = {"Strict-Transport-Security": "max-age=31536000; includeSubDomains"} if https else {}
        self._headers = _encode_headers({**HEADERS, "Content-Security-Policy": STRICT_CSP, **strict_transport})
        self._docs_headers = _encode_headers({**HEADERS, "Content-Security-Policy": DOCS_CSP, **strict_transport})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        requested_id = Headers(scope=scope).get("x-request-id", "")
        request_id = requested_id if REQUEST_ID.fullmatch(requested_id) else f"req_{secrets.token_hex(12)}"
        state: dict[str, Any] = scope.setdefault("state", {})
        state["request_id"] = request_id
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=request_id)
        headers = self._docs_headers if scope["path"].startswith(DOCS_PREFIXES) else self._headers
        response = _ResponseSender(send, [*headers, *_encode_headers({"X-Request-ID": request_id})], state)
        began = time.perf_counter()
        self._metrics.in_flight.inc()
        try:
            await self._run_with_timeout(scope, receive, response, request_id)
        finally:
            self._metrics.in_flight.dec()
        self._log_request(scope, response.status, time.perf_counter() - began)

    async def _run_with_timeout(
        self, scope: Scope, receive: Receive, response: _ResponseSender, request_id: str
    ) -> None:
        """Answer in time even where the work cannot be interrupted: it is then left to end by itself."""
        seconds = self._timeout_overrides.get(scope["path"], self._seconds)
        work = asyncio.ensure_future(self._app(scope, receive, response.send))
        try:
            await asyncio.wait({work}, timeout=seconds)
            while not work.done() and response.status is not None:
                # It is answering; a stream may take its time.
                await asyncio.wait({work})
        except asyncio.CancelledError:
            work.cancel()
            raise
        if not work.done():
            response.discard_further()
            work.cancel()
            work.add_done_callback(_consume_exception)
            log.error("request.timed_out", seconds=seconds)
            await error_response(timeout_error(seconds), request_id)(scope, receive, response.send_unchecked)
            return
        error = None if work.cancelled() else work.exception()
        if work.cancelled():
            error = TimeoutError()
        if error is None:
            return
        if response.status is not None:
            log.error("response.interrupted", error=type(error).__name__)
            raise error
        api_error = to_api_error(error)
        substitute = (
            error_response(api_error, request_id)
            if api_error is not None
            else internal_error_response(error, request_id)
        )
        await substitute(scope, receive, response.send)

    def _log_request(self, scope: Scope, status: int | None, seconds: float) -> None:
        route = route_template(scope)
        method = scope["method"]
        self._metrics.record_request(method, route, status or 0, seconds)
        if route in UNLOGGED_ROUTES:
            return
        caller = scope["state"].get("caller")
        log.info(
            "request.completed",
            method=method,
            route=route,
            path=scope["path"][:200],
            status=status or 0,
            duration_ms=round(seconds * 1000, 2),
            account=getattr(caller, "organization_id", None),
            user=getattr(caller, "user_id", None),
        )


def route_template(scope: Scope) -> str:
    """The matched route as it was declared (``/api/v1/subscriptions/{id}``), so that labels stay few."""
    path = getattr(scope.get("route"), "path", None)
    return str(path) if path else "unmatched"


class _ResponseSender:
    """Adds headers as the answer starts, and knows whether it has."""

    def __init__(self, send: Send, headers: Sequence[RawHeader], state: Mapping[str, Any]) -> None:
        self._send = send
        self._headers = headers
        self._state = state
        self._open = True
        self.status: int | None = None

    async def send(self, message: Message) -> None:
        if self._open:
            await self.send_unchecked(message)

    async def send_unchecked(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            present = {name for name, _ in message["headers"]}
            additional = (*self._headers, *_encode_headers(self._state.get("headers", {})))
            message["headers"] = [*message["headers"], *(header for header in additional if header[0] not in present)]
        await self._send(message)

    def discard_further(self) -> None:
        self._open = False


def _consume_exception(work: asyncio.Future[None]) -> None:
    """Retrieve the exception of abandoned work: the event loop logs exceptions that are never retrieved."""
    if not work.cancelled():
        work.exception()
