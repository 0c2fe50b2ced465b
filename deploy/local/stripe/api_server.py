"""The HTTP front: API keys, idempotency keys, faults and dispatch for `/v1`."""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import hashlib
import hmac
import json
import socket
import struct
import time
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from aiohttp import web

from deploy.local.stripe import routes
from deploy.local.stripe.errors import StripeError
from deploy.local.stripe.faults import AFTER_EXECUTION, BEFORE_EXECUTION, FaultInjector
from deploy.local.stripe.params import Params, decode_form
from deploy.local.stripe.request_context import API_VERSION, RequestContext, expand, generate_id
from deploy.local.stripe.store import IdempotentResponse, SandboxStore
from deploy.local.stripe.webhooks import WebhookDispatcher

IDEMPOTENCY_KEY_TTL = 24 * 3600.0


class StripeApi:
    """Answers `/v1`. Each request runs in one synchronous transaction, so requests never interleave."""

    def __init__(
        self,
        *,
        store: SandboxStore,
        faults: FaultInjector,
        deliverer: WebhookDispatcher,
        api_key: str | None,
        deliver: tuple[str, ...],
    ) -> None:
        self.store = store
        self.faults = faults
        self.deliverer = deliverer
        self.deliver = deliver
        self.base_url = ""
        self._api_key = api_key
        self._in_progress: dict[str, web.Request] = {}
        self._closing = asyncio.Event()

    def close(self) -> None:
        """Release delayed responses."""
        self._closing.set()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        request_id = generate_id("req_")[:18]
        if (fault := self.faults.consume(BEFORE_EXECUTION, request.method, request.path)) is not None:
            if fault.kind == "reset":
                return _reset_connection(request)
            # Like a failure at Stripe's edge: the request has no effect, and no response is stored for the key.
            failure = StripeError(500, "An unknown error occurred", kind="api_error")
            return _json_response(500, json.dumps(failure.body()), request_id)
        key = request.headers.get("Idempotency-Key") if request.method == "POST" else None
        try:
            self._authorize(request)
            text = (await request.read()).decode()
            status, body, replayed, first_id = self._execute_idempotently(request, text, key, request_id)
        except UnicodeDecodeError:
            status, body, replayed, first_id = 400, json.dumps(StripeError(400, "Invalid encoding").body()), False, None
        except StripeError as error:
            status, body, replayed, first_id = error.status, json.dumps(error.body()), False, None
        if (fault := self.faults.consume(AFTER_EXECUTION, request.method, request.path)) is not None:
            if fault.kind == "lost_reply":
                return _close_connection(request)
            await self._delay_response(request, key, fault.seconds or 0.0)
        return _json_response(status, body, request_id, key=key, replayed=replayed, first_id=first_id)

    async def _delay_response(self, request: web.Request, key: str | None, seconds: float) -> None:
        """Hold an answer. While its caller waits, the key counts as in use, as for a slow request at Stripe; once the
        caller has hung up, the same key gets the recorded answer."""
        if key is not None:
            self._in_progress.setdefault(key, request)
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._closing.wait()
        finally:
            if key is not None and self._in_progress.get(key) is request:
                del self._in_progress[key]

    def _authorize(self, request: web.Request) -> None:
        scheme, _, value = request.headers.get("Authorization", "").partition(" ")
        if scheme == "Basic":
            try:
                value = base64.b64decode(value, validate=True).decode().partition(":")[0]
            except (binascii.Error, UnicodeDecodeError):
                value = ""
        elif scheme != "Bearer":
            value = ""
        if not value:
            raise StripeError(401, "You did not provide an API key.")
        is_test_key = value.startswith("sk_test_") and len(value) > len("sk_test_")
        if not is_test_key or (self._api_key is not None and not hmac.compare_digest(value, self._api_key)):
            raise StripeError(401, f"Invalid API Key provided: {value[:8]}****{value[-4:]}")

    def _execute_idempotently(
        self, request: web.Request, text: str, key: str | None, request_id: str
    ) -> tuple[int, str, bool, str | None]:
        """Return (status, JSON text, replayed, id of the replayed request)."""
        if key is None:
            return (*(self._execute(request, text, None, request_id, "")), False, None)
        if not 0 < len(key) <= 255:
            raise StripeError(400, "Idempotency keys must be 1 to 255 characters.", kind="idempotency_error")
        # The order of the parameters is not significant.
        fields = sorted(parse_qsl(text, keep_blank_values=True))
        fingerprint = hashlib.sha256(json.dumps([request.path, fields]).encode()).hexdigest()
        holder = self._in_progress.get(key)
        if holder is not None and not _client_disconnected(holder):
            raise StripeError(
                409,
                "There is currently another in-progress request using this Stripe Idempotent Key "
                f"(that probably means you submitted twice, and the other request is still going through): {key}.",
                kind="idempotency_error",
                code="idempotency_key_in_use",
            )
        stored = self.store.get_response(key)
        if stored is None:
            return (*(self._execute(request, text, key, request_id, fingerprint)), False, None)
        if stored.fingerprint != fingerprint:
            raise StripeError(
                400,
                "Keys for idempotent requests can only be used with the same parameters they were first used with. "
                f"Try using a key other than '{key}' if you meant to execute a different request.",
                kind="idempotency_error",
            )
        return stored.status, stored.body, True, stored.request_id

    def _execute(
        self, request: web.Request, text: str, key: str | None, request_id: str, fingerprint: str
    ) -> tuple[int, str]:
        matched = routes.match(request.method, request.path)
        if matched is None:
            raise StripeError(404, f"Unrecognized request URL ({request.method}: {request.path}).")
        handler, identifiers = matched
        values = decode_form(text if request.method == "POST" else request.query_string)
        params = Params(values)
        paths = [path.removeprefix("data.") for path in params.texts("expand")]
        ctx = RequestContext(
            store=self.store,
            params=params,
            now=int(time.time()),
            subscribed_events=self.deliver,
            key=key,
            request_id=request_id,
            base_url=self.base_url,
        )
        with self.store.transaction():
            try:
                result: dict[str, Any] = handler(ctx, *identifiers)
                status = 200
                if result.get("object") in ("list", "search_result"):
                    result["data"] = [expand(ctx, entry, paths) for entry in result["data"]]
                else:
                    result = expand(ctx, result, paths)
            except StripeError as error:
                if not error.commit:
                    raise
                status, result = error.status, error.body()
            body = json.dumps(result, indent=2)
            if key is not None:
                response = IdempotentResponse(fingerprint=fingerprint, status=status, body=body, request_id=request_id)
                self.store.save_response(key, response, time.time())
        if request.method != "GET":
            self.deliverer.notify()
        return status, body


def _json_response(
    status: int,
    body: str,
    request_id: str,
    *,
    key: str | None = None,
    replayed: bool = False,
    first_id: str | None = None,
) -> web.Response:
    headers = {"Request-Id": request_id, "Stripe-Version": API_VERSION}
    if key is not None:
        headers["Idempotency-Key"] = key
    if replayed:
        headers["Idempotent-Replayed"] = "true"
        headers["Original-Request"] = first_id or ""
    return web.Response(status=status, text=body, content_type="application/json", headers=headers)


def _client_disconnected(request: web.Request) -> bool:
    return request.transport is None or request.transport.is_closing()


def _close_connection(request: web.Request) -> web.Response:
    if request.transport is not None:
        request.transport.close()
    return web.Response()


def _reset_connection(request: web.Request) -> web.Response:
    transport = request.transport
    if transport is not None:
        connection: socket.socket = transport.get_extra_info("socket")
        # Lingering for zero seconds turns the close into a reset.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()
    return web.Response()


def loopback_url(port: int) -> str:
    return urlsplit(f"http://127.0.0.1:{port}").geturl()
