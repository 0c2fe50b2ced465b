"""The API in this process, against a real database, called over HTTP without a socket."""

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
from api.app_context import AppContext
from api.settings import ApiSettings
from db.encryption import FieldEncryption

JWT_SECRET = "a secret of tests that is long enough to sign with"
ENCRYPTION_KEY = base64.b64encode(bytes(range(32))).decode()
PASSWORD = "correct horse battery staple"
UNREACHABLE_ADDRESS = "127.0.0.1:1"

_numbers = itertools.count(1)


def settings(database_url: str, **overrides: Any) -> ApiSettings:
    """Return settings of the API: without rate limits and with an unreachable Temporal unless ``overrides`` differ.

    Raises:
        TypeError: An override is not a setting, which the settings themselves would ignore.
    """
    if unknown := overrides.keys() - ApiSettings.model_fields.keys():
        raise TypeError(f"not a setting of the API: {', '.join(sorted(unknown))}")
    values: dict[str, Any] = {
        "environment": "sandbox",
        "api_database_url": SecretStr(database_url),
        "jwt_secret": SecretStr(JWT_SECRET),
        "encryption_key": SecretStr(ENCRYPTION_KEY),
        "rate_limit": "off",
        "temporal_address": UNREACHABLE_ADDRESS,
        "revocation_refresh_seconds": 0.05,
    }
    return ApiSettings(**(values | overrides))


@dataclass(slots=True)
class RegisteredUser:
    """A registered user. ``http`` carries the access token after sign-in."""

    user_id: str
    organization_id: str
    email: str
    password: str
    http: httpx.AsyncClient
    tokens: dict[str, Any] = field(default_factory=dict)

    def idempotency_header(self) -> dict[str, str]:
        """Return a header with a fresh idempotency key."""
        return {"Idempotency-Key": f"key-{next(_numbers)}"}


@dataclass(slots=True)
class ApiFixture:
    """A running application. ``http`` is anonymous; paths are relative to ``/api/v1`` or begin with ``http:``."""

    app: FastAPI
    superuser_dsn: str
    http: httpx.AsyncClient
    _clients: list[httpx.AsyncClient] = field(default_factory=list)

    @property
    def context(self) -> AppContext:
        context: AppContext = self.app.state.context
        return context

    def use_workflow_client(self, workflows: Any) -> None:
        """Send commands to this client from now on instead of the Temporal server of the settings."""
        self.app.state.context = replace(self.context, workflows=workflows)

    def client(self, **headers: str) -> httpx.AsyncClient:
        client = _client(self.app, **headers)
        self._clients.append(client)
        return client

    async def register(self, email: str | None = None, **fields: Any) -> RegisteredUser:
        """Register a user whose address is not verified and who is not signed in."""
        registration = {
            "email": email or f"user{next(_numbers)}@example.com",
            "password": PASSWORD,
            "name": "Ada",
        } | fields
        response = await self.http.post("/auth/register", json=registration)
        assert response.status_code == 201, response.text
        data = response.json()["data"]
        return RegisteredUser(
            data["user"]["id"], data["organization"]["id"], registration["email"], registration["password"], self.http
        )

    async def login(self, user: RegisteredUser) -> RegisteredUser:
        response = await self.http.post("/auth/login", json={"email": user.email, "password": user.password})
        assert response.status_code == 200, response.text
        user.tokens = response.json()["data"]
        user.http = self.client(Authorization=f"Bearer {user.tokens['access_token']}")
        return user

    async def verify(self, user: RegisteredUser) -> None:
        response = await self.http.post("/auth/verify-email", json={"token": self.latest_mail_token(user.email)})
        assert response.status_code == 200, response.text

    async def register_verified_user(self, **fields: Any) -> RegisteredUser:
        """Return a user who is registered, verified and signed in."""
        user = await self.register(**fields)
        await self.verify(user)
        return await self.login(user)

    async def administrator(self) -> RegisteredUser:
        user = await self.register()
        await self.verify(user)
        self.execute("UPDATE users SET role = 'ADMINISTRATOR' WHERE id = %s", user.user_id)
        return await self.login(user)

    def latest_mail_token(self, email: str, kind: str = "email_verification") -> str:
        """Return the token in the latest queued mail of this kind, decrypted as the dispatcher does."""
        (row,) = self.query_as_superuser(
            "SELECT n.id, n.encrypted_context FROM notifications n JOIN users u ON u.id = n.user_id"
            " WHERE lower(u.email) = lower(%s) AND n.kind = %s ORDER BY n.occurred_at DESC LIMIT 1",
            email,
            kind,
        )
        encryption = FieldEncryption(self.context.settings.encryption_keys)
        return encryption.decrypt_mapping(row["encrypted_context"], purpose=f"notifications/{row['id']}")["token"]

    def query_as_superuser(self, query: str, *values: object) -> list[dict[str, Any]]:
        """Query without row-level security."""
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
async def serve_api(api_settings: ApiSettings, superuser_dsn: str) -> AsyncIterator[ApiFixture]:
    """Start the application, and stop it afterwards."""
    app = create_app(api_settings)
    async with app.router.lifespan_context(app):
        api = ApiFixture(app, superuser_dsn, _client(app))
        try:
            yield api
        finally:
            await api.close()


def parse_error(response: httpx.Response) -> dict[str, Any]:
    """Return the error of a response. Asserts that the response is the error envelope and has no other fields."""
    content = response.json()
    assert set(content) == {"success", "error", "timestamp", "request_id"}, content
    assert content["success"] is False
    assert set(content["error"]) == {"code", "message", "details"}, content
    assert content["request_id"] == response.headers["X-Request-ID"]
    assert response.headers["Content-Type"] == "application/json"
    error: dict[str, Any] = content["error"]
    return error
