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

from deploy.local.stripe.control import Control, refusals
from deploy.local.stripe.faults import Faults
from deploy.local.stripe.front import KEY_LIFETIME, Front, loopback_url
from deploy.local.stripe.localstripe import LocalStripe
from deploy.local.stripe.store import Store
from deploy.local.stripe.webhooks import Deliverer, Endpoint

DELIVERED = ("payment_intent.*", "charge.refunded", "charge.dispute.*", "refund.*", "setup_intent.*")
_LOCK_SECONDS = 5.0


class StripeSandbox:
    """Listens on loopback while entered.

    `port` 0 chooses a free one. Without `state_dir` everything is kept in a folder that ends with the sandbox.
    Without `webhook_url` events are stored and wait; `deliver_to` sets the endpoint later. `api_key` None accepts
    every `sk_test_…` key. `localstripe` False leaves out the process behind (payments do not need it); it is left
    out as well where the package is not installed. `events` are the type patterns the endpoint subscribes to.
    """

    def __init__(
        self,
        *,
        webhook_url: str | None = None,
        webhook_secret: str = "whsec_sandbox",  # noqa: S107
        state_dir: Path | str | None = None,
        port: int = 0,
        api_key: str | None = None,
        localstripe: bool = True,
        events: tuple[str, ...] = DELIVERED,
    ) -> None:
        self._webhook_url = webhook_url
        self._secret = webhook_secret
        self._own_state = state_dir is None
        self._state = Path(state_dir) if state_dir is not None else None
        self._port = port
        self._api_key = api_key
        self._localstripe = localstripe and LocalStripe.installed()
        self._events = events
        self._lock: int | None = None
        self._runner: web.AppRunner | None = None
        self._store: Store | None = None
        self._deliverer: Deliverer | None = None
        self._backend: LocalStripe | None = None
        self._front: Front | None = None
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

    @property
    def localstripe_pid(self) -> int | None:
        return self._backend.pid if self._backend is not None else None

    def deliver_to(self, url: str) -> None:
        """Set or move the webhook endpoint; what waits is sent there."""
        self._webhook_url = url
        if self._deliverer is not None:
            self._deliverer.endpoint = Endpoint(url=url, secret=self._secret)
            self._deliverer.notify()

    async def _start(self) -> None:
        if self._state is None:
            self._state = Path(tempfile.mkdtemp(prefix="stripe-sandbox-"))
        self._state.mkdir(parents=True, exist_ok=True)
        self._lock = await _lock(self._state / "lock")
        self._store = Store(self._state / "stripe.sqlite")
        self._store.forget_answers(time.time() - KEY_LIFETIME)
        faults = Faults()
        endpoint = None if self._webhook_url is None else Endpoint(url=self._webhook_url, secret=self._secret)
        self._deliverer = Deliverer(self._store, faults, endpoint)
        if self._localstripe:
            self._backend = LocalStripe(self._state)
            await self._backend.start()
        front = self._front = Front(
            store=self._store,
            faults=faults,
            deliverer=self._deliverer,
            backend=self._backend,
            api_key=self._api_key,
            deliver=self._events,
        )
        app = web.Application(middlewares=[refusals], client_max_size=1 << 20)
        app.add_routes(Control(front).routes())
        app.router.add_route("*", "/v1/{path:.*}", front.handle)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self._port, reuse_address=True)
        await site.start()
        self.url = front.base_url = loopback_url(int(self._runner.addresses[0][1]))
        await self._deliverer.start()

    async def _stop(self) -> None:
        if self._front is not None:
            self._front.close()
        if self._runner is not None:
            await self._runner.cleanup()
        if self._deliverer is not None:
            await self._deliverer.stop()
        if self._backend is not None:
            await self._backend.stop()
        if self._store is not None:
            self._store.close()
        if self._lock is not None:
            os.close(self._lock)
        if self._own_state and self._state is not None:
            shutil.rmtree(self._state, ignore_errors=True)
            self._state = None


async def _lock(path: Path) -> int:
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
