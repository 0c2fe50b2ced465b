"""Around every request: its id, its bounds in time, its line in the log, its figures, and the headers of the answer."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Mapping
from typing import Any

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.errors import failure, response, translated, unavailable
from api.ids import new_id
from api.metrics import Metrics

log = structlog.get_logger("api.requests")

REQUEST_ID = re.compile(r"[A-Za-z0-9._:\-]{1,128}")
QUIET = frozenset({"/health", "/metrics"})
PAGES = ("/docs", "/redoc")

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
# Swagger UI and ReDoc are ours to serve; they style their elements one by one and work in a worker of their own.
DOCS_CSP = (
    "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; worker-src blob:;"
    " frame-ancestors 'none'; base-uri 'none'"
)

_NOBODY: Mapping[str, float] = {}


class Around:
    """The outermost of our layers. Nothing that goes wrong inside leaves it as anything but the envelope."""

    def __init__(
        self, app: ASGIApp, *, metrics: Metrics, seconds: float, https: bool, patient: Mapping[str, float] = _NOBODY
    ) -> None:
        """``patient``: paths that may take longer than ``seconds``, and how long."""
        self._app = app
        self._metrics = metrics
        self._seconds = seconds
        self._patient = patient
        self._https = https

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if REQUEST_ID.fullmatch(given) else new_id("req")
        state: dict[str, Any] = scope.setdefault("state", {})
        state["request_id"] = request_id
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=request_id)
        answer = _Answer(send, self._headers(scope, request_id), state)
        began = time.perf_counter()
        with self._metrics.in_flight.track_inprogress():
            await self._bounded(scope, receive, answer, request_id)
        self._note(scope, answer.status, time.perf_counter() - began)

    async def _bounded(self, scope: Scope, receive: Receive, answer: _Answer, request_id: str) -> None:
        """Answer in time even where the work cannot be interrupted: it is then left to end by itself."""
        seconds = self._patient.get(scope["path"], self._seconds)
        work = asyncio.ensure_future(self._app(scope, receive, answer.send))
        try:
            await asyncio.wait({work}, timeout=seconds)
            while not work.done() and answer.status is not None:
                # It is answering; a stream may take its time.
                await asyncio.wait({work})
        except asyncio.CancelledError:
            work.cancel()
            raise
        if not work.done():
            answer.close()
            work.cancel()
            work.add_done_callback(_forget)
            log.error("request timed out", seconds=seconds)
            await response(unavailable("What this takes"), request_id)(scope, receive, answer.final)
            return
        error = None if work.cancelled() else work.exception()
        if work.cancelled():
            error = TimeoutError()
        if error is None:
            return
        if answer.status is not None:
            log.error("answer cut short", error=type(error).__name__)
            raise error
        told = translated(error)
        made = response(told, request_id) if told is not None else failure(error, request_id)
        await made(scope, receive, answer.send)

    def _headers(self, scope: Scope, request_id: str) -> Mapping[str, str]:
        found = {
            **HEADERS,
            "X-Request-ID": request_id,
            "Content-Security-Policy": DOCS_CSP if scope["path"].startswith(PAGES) else STRICT_CSP,
        }
        if self._https:
            found["Strict-Transport-Security"] = "max-age=31536000; includeSubDomains"
        return found

    def _note(self, scope: Scope, status: int | None, seconds: float) -> None:
        route = template(scope)
        method = scope["method"]
        self._metrics.answered(method, route, status or 0, seconds)
        if route in QUIET:
            return
        caller = scope["state"].get("caller")
        log.info(
            "request",
            method=method,
            route=route,
            path=scope["path"][:200],
            status=status or 0,
            duration_ms=round(seconds * 1000, 2),
            account=getattr(caller, "organization_id", None),
            user=getattr(caller, "user_id", None),
        )


def template(scope: Scope) -> str:
    """The matched route as it was declared (``/api/v1/subscriptions/{id}``), so that labels stay few."""
    path = getattr(scope.get("route"), "path", None)
    return str(path) if path else "unmatched"


class _Answer:
    """Adds headers as the answer starts, and knows whether it has."""

    def __init__(self, send: Send, headers: Mapping[str, str], state: Mapping[str, Any]) -> None:
        self._send = send
        self._headers = headers
        self._state = state
        self._open = True
        self.status: int | None = None

    async def send(self, message: Message) -> None:
        if self._open:
            await self.final(message)

    async def final(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            for name, value in (*self._headers.items(), *self._state.get("headers", {}).items()):
                headers.setdefault(name, value)
        await self._send(message)

    def close(self) -> None:
        self._open = False


def _forget(work: asyncio.Future[None]) -> None:
    """Its outcome no longer interests anybody; asking for it keeps the event loop from complaining."""
    if not work.cancelled():
        work.exception()
