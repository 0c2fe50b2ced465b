"""The whole sandbox as one object: `async with StripeSandbox(...) as sandbox: sandbox.url`."""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from aiohttp import web

from deploy.local.stripe.api_server import IDEMPOTENCY_KEY_TTL, StripeApi, loopback_url
from deploy.local.stripe.faults import FaultInjector
from deploy.local.stripe.sandbox_api import SandboxApi, error_middleware
from deploy.local.stripe.store import SandboxStore
from deploy.local.stripe.webhooks import WebhookDispatcher, WebhookEndpoint

DEFAULT_WEBHOOK_EVENTS = (
    "payment_intent.*", "charge.refunded", "charge.refund.*", "charge.dispute.*", "refund.*", "setup_intent.*",
)  # fmt: skip
_LOCK_SECONDS = 5.0


class StripeSandbox:
    """Listens on loopback while entered.

    `port` 0 chooses a free one. Without `state_dir` everything is kept in a folder that ends with the sandbox.
    Without `webhook_url` events are stored and wait; `set_webhook_url` sets the endpoint later. `api_key` None accepts
    every `sk_test_…` key. `events` are the type patterns the endpoint subscribes to.
    """

    def __init__(
        self,
        *,
        webhook_url: str | None = None,
        webhook_secret: str = "whsec_sandbox",  # noqa: S107
        state_dir: Path | str | None = None,
        port: int = 0,
        api_key: str | None = None,
        events: tuple[str, ...] = DEFAULT_WEBHOOK_EVENTS,
    ) -> None:
        self._webhook_url = webhook_url
        self._secret = webhook_secret
        self._owns_state_dir = state_dir is None
        self._state = Path(state_dir) if state_dir is not None else None
        self._port = port
        self._api_key = api_key
        self._events = events
        self._lock: int | None = None
        self._runner: web.AppRunner | None = None
        self._store: SandboxStore | None = None
        self._deliverer: WebhookDispatcher | None = None
        self._api_server: StripeApi | None = None
        self.url = ""

    async def __aenter__(self) -> Self:
        try:
            await self._start()
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, raised: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stop()

    def set_webhook_url(self, url: str) -> None:
        """Set or move the webhook endpoint; what waits is sent there."""
        self._webhook_url = url
        if self._deliverer is not None:
            self._deliverer.endpoint = WebhookEndpoint(url=url, secret=self._secret)
            self._deliverer.notify()

    async def _start(self) -> None:
        if self._state is None:
            self._state = Path(tempfile.mkdtemp(prefix="stripe-sandbox-"))
        self._state.mkdir(parents=True, exist_ok=True)
        self._lock = await _acquire_state_lock(self._state / "lock")
        self._store = SandboxStore(self._state / "stripe.sqlite")
        self._store.delete_responses(time.time() - IDEMPOTENCY_KEY_TTL)
        faults = FaultInjector()
        endpoint = None if self._webhook_url is None else WebhookEndpoint(url=self._webhook_url, secret=self._secret)
        self._deliverer = WebhookDispatcher(self._store, faults, endpoint)
        front = self._api_server = StripeApi(
            store=self._store,
            faults=faults,
            deliverer=self._deliverer,
            api_key=self._api_key,
            deliver=self._events,
        )
        app = web.Application(middlewares=[error_middleware], client_max_size=1 << 20)
        app.add_routes(SandboxApi(front).routes())
        app.router.add_route("*", "/v1/{path:.*}", front.handle)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self._port, reuse_address=True)
        await site.start()
        self.url = front.base_url = loopback_url(int(self._runner.addresses[0][1]))
        await self._deliverer.start()

    async def _stop(self) -> None:
        if self._api_server is not None:
            self._api_server.close()
        if self._runner is not None:
            await self._runner.cleanup()
        if self._deliverer is not None:
            await self._deliverer.stop()
        if self._store is not None:
            self._store.close()
        if self._lock is not None:
            os.close(self._lock)
        if self._owns_state_dir and self._state is not None:
            shutil.rmtree(self._state, ignore_errors=True)
            self._state = None


async def _acquire_state_lock(path: Path) -> int:
    """Hold the state folder for ourselves; the kernel lets go of it however this process ends."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    until = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return handle
        except BlockingIOError:
            if time.monotonic() > until:
                os.close(handle)
                raise RuntimeError(f"another sandbox uses {path.parent}") from None
            await asyncio.sleep(0.05)
