"""Latency of read routes, each against a bare FastAPI handler that runs the same SQL on the same rows."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import httpx
import psycopg
from fastapi import FastAPI
from fastapi.responses import Response
from psycopg.rows import dict_row
from pydantic_core import to_json
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.util import greenlet_spawn

from db.session import SET_CONTEXT, RlsContext
from tests.bench.driver import Statement, recorded_statements
from tests.bench.ground import API_ROLE, Ground
from tests.bench.results import Figure, Rule, percentile
from tests.support.api import ApiFixture, RegisteredUser, serve_api, settings

OWN_SUBSCRIPTIONS = 50
"""Subscriptions of the organization that reads; a page of the list shows all of them."""

WARM_UP_REQUESTS = 20


async def measure(ground: Ground, *, rows: int, requests: int) -> list[Figure]:
    """Read each route `requests` times, in turn with its bare handler, beside `rows` subscriptions of others."""
    start = datetime.now(UTC) - timedelta(days=1)
    ground.accounts("others", rows, start)
    ground.subscriptions("others", rows, start, start + timedelta(days=30))
    api_settings = settings(
        ground.url(API_ROLE), temporal_address=ground.temporal.address, revocation_refresh_seconds=600
    )
    async with serve_api(api_settings, ground.postgres.dsn(database="berth")) as api:
        customer = await api.register_verified_user()
        ground.subscriptions(
            "own", OWN_SUBSCRIPTIONS, start, start + timedelta(days=30), organization_id=customer.organization_id
        )
        ground.rows("ANALYZE")
        figures: list[Figure] = []
        for name, path in _routes(customer):
            figures += await _compare(api, customer, name, path, requests)
    return figures


def _routes(customer: RegisteredUser) -> Sequence[tuple[str, str]]:
    return (
        ("a subscription", "/subscriptions/sub_own-1"),
        (f"{OWN_SUBSCRIPTIONS} subscriptions", f"/subscriptions?limit={OWN_SUBSCRIPTIONS}"),
        ("an instance", "/instances/ins_own-1"),
        ("the wallet", "/billing/wallet"),
        ("transactions", "/billing/transactions"),
    )


async def _compare(api: ApiFixture, customer: RegisteredUser, name: str, path: str, requests: int) -> list[Figure]:
    await _read(customer.http, path)
    with recorded_statements() as sent:
        await _read(customer.http, path)
    statements = [
        (statement, parameters) for statement, parameters in sent if statement not in ("BEGIN", "COMMIT", SET_CONTEXT)
    ]
    bare = httpx.AsyncClient(
        transport=httpx.ASGITransport(_bare_application(api.context.sessions.kw["bind"], customer, statements)),
        base_url="http://bare",
    )
    measured: list[float] = []
    reference: list[float] = []
    async with bare:
        for number in range(requests + WARM_UP_REQUESTS):
            for client, target, seconds in ((bare, "/", reference), (customer.http, path, measured)):
                started = time.perf_counter()
                await _read(client, target)
                if number >= WARM_UP_REQUESTS:
                    seconds.append(1000 * (time.perf_counter() - started))
    return [
        Figure(
            name=f"read {name}, p50",
            value=percentile(measured, 50),
            unit="ms",
            reference=percentile(reference, 50),
            rule=Rule.RATIO_AT_MOST,
            target=1.5,
        ),
        Figure(
            name=f"read {name}, p99",
            value=percentile(measured, 99),
            unit="ms",
            reference=percentile(reference, 99),
            rule=Rule.VALUE_AT_MOST,
            target=200,
        ),
    ]


async def _read(client: httpx.AsyncClient, path: str) -> None:
    response = await client.get(path)
    assert response.status_code == 200, response.text


def _bare_application(engine: AsyncEngine, customer: RegisteredUser, statements: Sequence[Statement]) -> FastAPI:
    """A handler that runs `statements` in one transaction and round trip, as the API does, and answers rows as JSON."""
    application = FastAPI()
    context = RlsContext(organization_id=customer.organization_id, user_id=customer.user_id, role="USER")

    @application.get("/")
    async def read() -> Response:
        connection = await engine.raw_connection()
        raw = connection.driver_connection
        assert isinstance(raw, psycopg.AsyncConnection)
        cursors = [raw.cursor(row_factory=dict_row) for _ in statements]
        async with raw.pipeline():
            await raw.execute("BEGIN")
            await raw.execute(SET_CONTEXT, context.parameters())
            for cursor, (statement, parameters) in zip(cursors, statements, strict=True):
                await cursor.execute(statement.encode(), parameters)
            await raw.execute("COMMIT")
        rows = [row for cursor in cursors for row in await cursor.fetchall()]
        await greenlet_spawn(connection.close)
        return Response(to_json(rows), media_type="application/json")

    return application
