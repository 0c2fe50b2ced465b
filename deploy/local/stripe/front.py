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

from aiohttp import ClientError, ClientSession, ClientTimeout, web

from deploy.local.stripe import routes
from deploy.local.stripe.context import API_VERSION, Context, expand, new_id
from deploy.local.stripe.errors import StripeError
from deploy.local.stripe.faults import AFTER_DEED, BEFORE_DEED, Faults
from deploy.local.stripe.localstripe import LocalStripe
from deploy.local.stripe.params import Params, decode
from deploy.local.stripe.store import Answer, Store
from deploy.local.stripe.webhooks import Deliverer

KEY_LIFETIME = 24 * 3600.0


class Front:
    """Answers `/v1`. One request's deed is one synchronous transaction, so requests never interleave inside one."""

    def __init__(
        self,
        *,
        store: Store,
        faults: Faults,
        deliverer: Deliverer,
        backend: LocalStripe | None,
        api_key: str | None,
        deliver: tuple[str, ...],
    ) -> None:
        self.store = store
        self.faults = faults
        self.deliverer = deliverer
        self.backend = backend
        self.deliver = deliver
        self.base_url = ""
        self._api_key = api_key
        self._busy: dict[str, web.Request] = {}
        self._closing = asyncio.Event()

    def close(self) -> None:
        """Let go of held answers."""
        self._closing.set()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        request_id = new_id("req_")[:18]
        if (fault := self.faults.take(BEFORE_DEED, request.method, request.path)) is not None:
            if fault.kind == "reset":
                return _reset(request)
            # Like a failure at Stripe's edge: nothing happened, and nothing is remembered for the key.
            failure = StripeError(500, "An unknown error occurred", kind="api_error")
            return _reply(500, json.dumps(failure.body()), request_id)
        key = request.headers.get("Idempotency-Key") if request.method == "POST" else None
        try:
            self._authorize(request)
            text = (await request.read()).decode()
            status, body, replayed, first_id = await self._answer(request, text, key, request_id)
        except UnicodeDecodeError:
            status, body, replayed, first_id = 400, json.dumps(StripeError(400, "Invalid encoding").body()), False, None
        except StripeError as refusal:
            status, body, replayed, first_id = refusal.status, json.dumps(refusal.body()), False, None
        if (fault := self.faults.take(AFTER_DEED, request.method, request.path)) is not None:
            if fault.kind == "lost_reply":
                return _drop(request)
            await self._stall(request, key, fault.seconds or 0.0)
        return _reply(status, body, request_id, key=key, replayed=replayed, first_id=first_id)

    async def _stall(self, request: web.Request, key: str | None, seconds: float) -> None:
        """Hold an answer. While its caller waits, the key counts as in use, as for a slow request at Stripe; once the
        caller has hung up, the same key gets the recorded answer."""
        if key is not None:
            self._busy.setdefault(key, request)
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._closing.wait()
        finally:
            if key is not None and self._busy.get(key) is request:
                del self._busy[key]

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
        known = value.startswith("sk_test_") and len(value) > len("sk_test_")
        if not known or (self._api_key is not None and not hmac.compare_digest(value, self._api_key)):
            raise StripeError(401, f"Invalid API Key provided: {value[:8]}****{value[-4:]}")

    async def _answer(
        self, request: web.Request, text: str, key: str | None, request_id: str
    ) -> tuple[int, str, bool, str | None]:
        """(status, JSON text, replayed, id of the request that was replayed)."""
        if key is None:
            return (*(await self._execute(request, text, None, request_id, "")), False, None)
        if not 0 < len(key) <= 255:
            raise StripeError(400, "Idempotency keys must be 1 to 255 characters.", kind="idempotency_error")
        # The order in which a client happened to write its parameters is no difference.
        fields = sorted(parse_qsl(text, keep_blank_values=True))
        fingerprint = hashlib.sha256(json.dumps([request.path, fields]).encode()).hexdigest()
        holder = self._busy.get(key)
        if holder is not None and not _gone(holder):
            raise StripeError(
                409,
                "There is currently another in-progress request using this Stripe Idempotent Key "
                f"(that probably means you submitted twice, and the other request is still going through): {key}.",
                kind="idempotency_error",
                code="idempotency_key_in_use",
            )
        known = self.store.answer(key)
        if known is None:
            return (*(await self._execute(request, text, key, request_id, fingerprint)), False, None)
        if known.fingerprint != fingerprint:
            raise StripeError(
                400,
                "Keys for idempotent requests can only be used with the same parameters they were first used with. "
                f"Try using a key other than '{key}' if you meant to execute a different request.",
                kind="idempotency_error",
            )
        return known.status, known.body, True, known.request_id

    async def _execute(
        self, request: web.Request, text: str, key: str | None, request_id: str, fingerprint: str
    ) -> tuple[int, str]:
        found = routes.match(request.method, request.path)
        if found is None:
            if routes.owned(request.path) or self.backend is None:
                raise StripeError(404, f"Unrecognized request URL ({request.method}: {request.path}).")
            return await self._forward(request, text, key, request_id, fingerprint)
        handler, identifiers = found
        values = decode(text if request.method == "POST" else request.query_string)
        params = Params(values)
        paths = [path.removeprefix("data.") for path in params.texts("expand")]
        ctx = Context(
            store=self.store,
            params=params,
            now=int(time.time()),
            deliver=self.deliver,
            key=key,
            request_id=request_id,
            base_url=self.base_url,
        )
        with self.store.transaction():
            try:
                shown: dict[str, Any] = handler(ctx, *identifiers)
                status = 200
                if shown.get("object") in ("list", "search_result"):
                    shown["data"] = [expand(ctx, entry, paths) for entry in shown["data"]]
                else:
                    shown = expand(ctx, shown, paths)
            except StripeError as refusal:
                if not refusal.keep:
                    raise
                status, shown = refusal.status, refusal.body()
            body = json.dumps(shown, indent=2)
            if key is not None:
                answer = Answer(fingerprint=fingerprint, status=status, body=body, request_id=request_id)
                self.store.record(key, answer, time.time())
        if request.method != "GET":
            self.deliverer.notify()
        return status, body

    async def _forward(
        self, request: web.Request, text: str, key: str | None, request_id: str, fingerprint: str
    ) -> tuple[int, str]:
        """Products, coupons and whatever else localstripe keeps."""
        backend = self.backend
        if backend is None:
            raise StripeError(501, "localstripe is not running.", kind="api_error")
        if key is not None:
            self._busy[key] = request
        try:
            base = await backend.url()
            headers = {
                name: request.headers[name] for name in ("Authorization", "Content-Type") if name in request.headers
            }
            async with (
                ClientSession(timeout=ClientTimeout(total=30)) as session,
                session.request(request.method, base + request.path_qs, data=text, headers=headers) as reply,
            ):
                status, body = reply.status, await reply.text()
        except (ClientError, TimeoutError, OSError) as refused:
            raise StripeError(
                503, f"localstripe did not answer: {type(refused).__name__}", kind="api_error"
            ) from refused
        finally:
            if key is not None:
                self._busy.pop(key, None)
        if key is not None and (status < 400 or status == 402):
            answer = Answer(fingerprint=fingerprint, status=status, body=body, request_id=request_id)
            with self.store.transaction():
                self.store.record(key, answer, time.time())
        return status, body


def _reply(
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


def _gone(request: web.Request) -> bool:
    return request.transport is None or request.transport.is_closing()


def _drop(request: web.Request) -> web.Response:
    if request.transport is not None:
        request.transport.close()
    return web.Response()


def _reset(request: web.Request) -> web.Response:
    transport = request.transport
    if transport is not None:
        connection: socket.socket = transport.get_extra_info("socket")
        # Lingering for zero seconds turns the close into a reset.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()
    return web.Response()


def loopback_url(port: int) -> str:
    return urlsplit(f"http://127.0.0.1:{port}").geturl()
