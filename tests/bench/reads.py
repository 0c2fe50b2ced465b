"""Latency of read routes, each against a bare FastAPI handler that runs the same SQL on the same rows."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import psycopg
from fastapi import FastAPI
from fastapi.responses import Response
from pydantic_core import to_json

from db.session import SET_CONTEXT, SessionFactory, begin_with_rls_context
from tests.bench.ground import API_ROLE, Ground
from tests.bench.results import Figure, Rule, percentile
from tests.support.api import ApiFixture, RegisteredUser, serve_api, settings

OWN_SUBSCRIPTIONS = 50
"""Subscriptions of the organization that reads; a page of the list shows all of them."""

WARM_UP_REQUESTS = 20

Statement = tuple[str, Any]


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
        _give_subscriptions(ground, customer, start)
        ground.rows("ANALYZE")
        figures: list[Figure] = []
        for name, path in _routes(customer):
            figures += await _compare(api, customer, name, path, requests)
    return figures


def _give_subscriptions(ground: Ground, customer: RegisteredUser, start: datetime) -> None:
    """Write subscriptions of separate organizations and move them to `customer`."""
    ground.accounts("own", OWN_SUBSCRIPTIONS, start)
    ground.subscriptions("own", OWN_SUBSCRIPTIONS, start, start + timedelta(days=30))
    # One statement: each row refers to the other's organization.
    ground.rows(
        "WITH moved AS (UPDATE subscriptions SET organization_id = %s WHERE organization_id LIKE 'org_own-%%')"
        " UPDATE instances SET organization_id = %s WHERE organization_id LIKE 'org_own-%%'",
        customer.organization_id,
        customer.organization_id,
    )


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
    with _recorded() as statements:
        await _read(customer.http, path)
    bare = httpx.AsyncClient(
        transport=httpx.ASGITransport(_bare_application(api.context.sessions, customer, list(statements))),
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


@contextmanager
def _recorded() -> Iterator[list[Statement]]:
    """Record the statements that the driver gets, without those that begin and end a transaction."""
    statements: list[Statement] = []
    execute = psycopg.AsyncCursor.execute

    async def recording(self: Any, query: Any, params: Any = None, **options: Any) -> Any:
        text = query.decode() if isinstance(query, bytes) else str(query)
        if text not in ("BEGIN", "COMMIT", SET_CONTEXT):
            statements.append((text, params))
        return await execute(self, query, params, **options)

    psycopg.AsyncCursor.execute = recording  # type: ignore[method-assign]
    try:
        yield statements
    finally:
        psycopg.AsyncCursor.execute = execute  # type: ignore[method-assign]


def _bare_application(sessions: SessionFactory, customer: RegisteredUser, statements: Sequence[Statement]) -> FastAPI:
    """A handler that runs `statements` in one transaction, begun as the API's are, and answers their rows as JSON."""
    application = FastAPI()

    @application.get("/")
    async def read() -> Response:
        rows: list[dict[str, Any]] = []
        async with sessions() as session:
            await begin_with_rls_context(
                session, organization_id=customer.organization_id, user_id=customer.user_id, role="USER"
            )
            connection = await session.connection()
            for statement, parameters in statements:
                result = await connection.exec_driver_sql(statement, parameters or None)
                if result.returns_rows:
                    rows += [dict(row) for row in result.mappings()]
            await session.commit()
        return Response(to_json(rows), media_type="application/json")

    return application
