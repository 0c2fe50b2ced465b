"""A webhook endpoint that checks what it gets with the official library, and clients for the sandbox."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import stripe
from aiohttp import web

from tests.support.wait import wait_until

SECRET = "whsec_contract"
KEY = "sk_test_contract"
_transports: list[stripe.HTTPXClient] = []


@dataclass(slots=True)
class WebhookReceiver:
    """Records verified events in order of arrival; responds with `statuses` one by one, then 200."""

    url: str = ""
    events: list[dict[str, Any]] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    refused: int = 0

    async def receive(self, request: web.Request) -> web.Response:
        payload = await request.read()
        try:
            stripe.Webhook.construct_event(payload, request.headers["Stripe-Signature"], SECRET)
        except stripe.SignatureVerificationError:
            self.refused += 1
            return web.Response(status=400)
        self.events.append(await request.json())
        return web.Response(status=self.statuses.pop(0) if self.statuses else 200)

    def types(self, subject: str | None = None) -> list[str]:
        return [
            event["type"]
            for event in self.events
            if subject is None
            or subject in (event["data"]["object"]["id"], event["data"]["object"].get("payment_intent"))
        ]

    async def until(self, *types: str, subject: str | None = None) -> list[dict[str, Any]]:
        await wait_until(
            lambda: set(types) <= set(self.types(subject)), description=f"webhooks {types}, got {self.types()}"
        )
        return [event for event in self.events if event["type"] in types]


def client(url: str, *, retries: int = 0, timeout: float = 10.0, key: str = KEY) -> stripe.StripeClient:
    """Over httpx, plain calls and `…_async` ones."""
    transport = stripe.HTTPXClient(timeout=timeout, allow_sync_methods=True)
    _transports.append(transport)
    return stripe.StripeClient(
        key,
        base_addresses={"api": url},
        max_network_retries=retries,
        http_client=transport,
    )


async def close_clients() -> None:
    """Close the connections of every client of the test."""
    while _transports:
        transport = _transports.pop()
        transport.close()  # type: ignore[no-untyped-call]  # the library leaves it untyped
        await transport.close_async()  # type: ignore[no-untyped-call]  # as above
