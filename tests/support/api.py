"""The API in this process, against a real database, spoken to over HTTP without a socket."""

from __future__ import annotations

import base64
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import httpx
import psycopg
from fastapi import FastAPI
from psycopg.rows import dict_row
from pydantic import SecretStr

from api.app import create_app
from api.context import Context
from api.settings import Settings
from db.sealing import Sealer

JWT_SECRET = "a secret of tests that is long enough to sign with"
ENCRYPTION_KEY = base64.b64encode(bytes(range(32))).decode()
PASSWORD = "correct horse battery staple"
NOWHERE = "127.0.0.1:1"

_numbers = itertools.count(1)


def settings(database_url: str, **given: Any) -> Settings:
    """Limits are off and Temporal is away unless ``given`` says otherwise."""
    values: dict[str, Any] = {
        "environment": "sandbox",
        "api_database_url": SecretStr(database_url),
        "jwt_secret": SecretStr(JWT_SECRET),
        "encryption_key": SecretStr(ENCRYPTION_KEY),
        "rate_limit": "off",
        "temporal_address": NOWHERE,
        "revocation_refresh_seconds": 0.05,
    }
    return Settings(**(values | given))


@dataclass(slots=True)
class Account:
    """Somebody who registered; ``http`` carries their access token once they have signed in."""

    user_id: str
    organization_id: str
    email: str
    password: str
    http: httpx.AsyncClient
    tokens: dict[str, Any] = field(default_factory=dict)

    def key(self) -> dict[str, str]:
        """A header with a fresh idempotency key."""
        return {"Idempotency-Key": f"key-{next(_numbers)}"}


@dataclass(slots=True)
class Api:
    """One running application. ``http`` is anonymous; addresses are relative to ``/api/v1`` or begin with ``http:``."""

    app: FastAPI
    superuser_dsn: str
    http: httpx.AsyncClient
    _clients: list[httpx.AsyncClient] = field(default_factory=list)

    @property
    def context(self) -> Context:
        found: Context = self.app.state.context
        return found

    def give_orders_to(self, orchestrator: Any) -> None:
        """From now on orders go there, in place of the Temporal server of the settings."""
        self.app.state.context = replace(self.context, orchestrator=orchestrator)

    def client(self, **headers: str) -> httpx.AsyncClient:
        made = _client(self.app, **headers)
        self._clients.append(made)
        return made

    async def register(self, email: str | None = None, **given: Any) -> Account:
        """Register; the address is not verified and nobody is signed in yet."""
        wanted = {"email": email or f"user{next(_numbers)}@example.com", "password": PASSWORD, "name": "Ada"} | given
        answer = await self.http.post("/auth/register", json=wanted)
        assert answer.status_code == 201, answer.text
        data = answer.json()["data"]
        return Account(data["user"]["id"], data["organization"]["id"], wanted["email"], wanted["password"], self.http)

    async def login(self, account: Account) -> Account:
        answer = await self.http.post("/auth/login", json={"email": account.email, "password": account.password})
        assert answer.status_code == 200, answer.text
        account.tokens = answer.json()["data"]
        account.http = self.client(Authorization=f"Bearer {account.tokens['access_token']}")
        return account

    async def verify(self, account: Account) -> None:
        answer = await self.http.post("/auth/verify-email", json={"token": self.mailed_token(account.email)})
        assert answer.status_code == 200, answer.text

    async def customer(self, **given: Any) -> Account:
        """Somebody registered, verified and signed in."""
        account = await self.register(**given)
        await self.verify(account)
        return await self.login(account)

    async def administrator(self) -> Account:
        account = await self.register()
        await self.verify(account)
        self.execute("UPDATE users SET role = 'ADMINISTRATOR' WHERE id = %s", account.user_id)
        return await self.login(account)

    def mailed_token(self, email: str, kind: str = "email_verification") -> str:
        """The token of the latest queued mail of this kind, as the dispatcher would open it."""
        (row,) = self.rows(
            "SELECT n.id, n.secret_context FROM notifications n JOIN users u ON u.id = n.user_id"
            " WHERE lower(u.email) = lower(%s) AND n.kind = %s ORDER BY n.business_at DESC LIMIT 1",
            email,
            kind,
        )
        sealer = Sealer(self.context.settings.encryption_keys)
        return sealer.open_mapping(row["secret_context"], purpose=f"notifications/{row['id']}")["token"]

    def rows(self, query: str, *values: object) -> list[dict[str, Any]]:
        """Look past row-level security."""
        with psycopg.connect(self.superuser_dsn, row_factory=dict_row) as connection:
            return connection.execute(query.encode(), values).fetchall()

    def execute(self, statement: str, *values: object) -> None:
        with psycopg.connect(self.superuser_dsn) as connection:
            connection.execute(statement.encode(), values)

    async def close(self) -> None:
        for client in (*self._clients, self.http):
            await client.aclose()


def _client(app: FastAPI, **headers: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://api/api/v1", headers=headers)


@asynccontextmanager
async def serving(told: Settings, superuser_dsn: str) -> AsyncIterator[Api]:
    """Start the application, and stop it afterwards."""
    app = create_app(told)
    async with app.router.lifespan_context(app):
        api = Api(app, superuser_dsn, _client(app))
        try:
            yield api
        finally:
            await api.close()


def error_of(answer: httpx.Response) -> dict[str, Any]:
    """The error of an answer, after checking that it is the envelope and nothing else."""
    content = answer.json()
    assert set(content) == {"success", "error", "timestamp", "request_id"}, content
    assert content["success"] is False
    assert set(content["error"]) == {"code", "message", "details"}, content
    assert content["request_id"] == answer.headers["X-Request-ID"]
    assert answer.headers["Content-Type"] == "application/json"
    error: dict[str, Any] = content["error"]
    return error
