"""One sandbox per test, in process, with an endpoint for its webhooks."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest
import stripe
from aiohttp import web

from deploy.local.stripe import StripeSandbox
from tests.contracts.stripe.support import SECRET, WebhookReceiver, client, close_clients


@pytest.fixture(autouse=True)
async def _clients() -> AsyncIterator[None]:
    yield
    await close_clients()


@pytest.fixture
async def endpoint() -> AsyncIterator[WebhookReceiver]:
    receiver = WebhookReceiver()
    app = web.Application()
    app.router.add_post("/hook", receiver.receive)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    receiver.url = f"http://127.0.0.1:{runner.addresses[0][1]}/hook"
    yield receiver
    await runner.cleanup()


@pytest.fixture
async def sandbox(endpoint: WebhookReceiver) -> AsyncIterator[StripeSandbox]:
    async with StripeSandbox(webhook_url=endpoint.url, webhook_secret=SECRET) as running:
        yield running


@pytest.fixture
def gateway(sandbox: StripeSandbox) -> stripe.StripeClient:
    return client(sandbox.url)


@pytest.fixture
async def control(sandbox: StripeSandbox) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=sandbox.url, timeout=40) as client:
        yield client
