"""Every answer has the one shape; every refusal a code; a fault of ours says nothing but its number."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from fastapi import APIRouter
from sqlalchemy import text
from sqlalchemy.exc import DataError, IntegrityError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from api import logs
from api.deps import Work
from api.envelope import Envelope, Schema, ok
from api.errors import STATUS_OF_RULE
from api.openapi import schema
from tests.support.api import JWT_SECRET, Api, error_of, serving, settings
from tests.support.databases import Database
from tests.support.wait import PATIENCE
from workflows.client import NotRunning, Unavailable
from workflows.rules.errors import Refusal, RuleBroken

SECRET = "hunter2-of-the-test"


def raising(errors: list[BaseException]) -> APIRouter:
    router = APIRouter()

    @router.get("/api/v1/raises/{number}")
    async def raises(number: int) -> None:
        raise errors[number]

    return router


def database_error(kind: type[Any]) -> Exception:
    error: Exception = kind(f"SELECT '{SECRET}'", {"password": SECRET}, Exception(f"detail {SECRET}"))
    return error


ANSWERS: list[tuple[BaseException, int, str]] = [
    *((RuleBroken(code, "A sentence.", {"fact": "1"}), STATUS_OF_RULE[code], code.value) for code in Refusal),
    (Unavailable(), 503, "UNAVAILABLE"),
    (NotRunning(), 409, "ILLEGAL_MOVE"),
    (PoolTimeout(), 503, "UNAVAILABLE"),
    (database_error(OperationalError), 503, "UNAVAILABLE"),
    (database_error(IntegrityError), 409, "CONFLICT"),
    (database_error(DataError), 422, "VALIDATION_ERROR"),
    (ConnectionRefusedError(), 503, "UNAVAILABLE"),
    (ZeroDivisionError(SECRET), 500, "INTERNAL_ERROR"),
    (RuntimeError(SECRET), 500, "INTERNAL_ERROR"),
]


async def test_every_class_of_error_has_its_status_code_and_shape(api: Api) -> None:
    assert set(STATUS_OF_RULE) == set(Refusal)
    api.app.include_router(raising([error for error, _, _ in ANSWERS]))
    for number, (error, status, code) in enumerate(ANSWERS):
        answer = await api.http.get(f"/raises/{number}")
        found = error_of(answer)
        assert (answer.status_code, found["code"]) == (status, code), error
        assert SECRET not in answer.text
        assert ("Retry-After" in answer.headers) == (status == 503)
        if isinstance(error, RuleBroken):
            assert (found["message"], found["details"]) == ("A sentence.", {"fact": "1"})


async def test_unknown_addresses_and_methods_are_coded_too(api: Api) -> None:
    answer = await api.http.get("/no-such-thing")
    assert (answer.status_code, error_of(answer)["code"]) == (404, "NOT_FOUND")
    answer = await api.http.delete("/auth/login")
    assert (answer.status_code, error_of(answer)["code"]) == (405, "METHOD_NOT_ALLOWED")
    assert answer.headers["Allow"] == "POST"


async def test_a_success_has_the_envelope_and_the_headers(api: Api) -> None:
    ada = await api.customer()
    answer = await ada.http.get("/users/me", headers={"X-Request-ID": "mine-7"})
    content = answer.json()
    assert set(content) == {"success", "data", "message", "timestamp"}
    assert content["success"] is True
    assert content["timestamp"].endswith("Z")
    assert answer.headers["X-Request-ID"] == "mine-7"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["X-Frame-Options"] == "DENY"
    assert answer.headers["Cache-Control"] == "no-store"
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    hostile = await ada.http.get("/users/me", headers={"X-Request-ID": "a b<script>"})
    assert hostile.headers["X-Request-ID"].startswith("req_")


async def test_other_origins_are_told_only_what_is_configured(database: Database) -> None:
    told = settings(database.api_url, cors_origins=("https://portal.example",))
    preflight = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    async with serving(told, database.superuser_dsn()) as api:
        good = await api.http.options("/auth/login", headers=preflight | {"Origin": "https://portal.example"})
        assert good.headers["Access-Control-Allow-Origin"] == "https://portal.example"
        bad = await api.http.options("/auth/login", headers=preflight | {"Origin": "https://evil.example"})
        assert "Access-Control-Allow-Origin" not in bad.headers


async def test_a_failing_commit_is_not_answered_with_success(api: Api) -> None:
    router = APIRouter()

    @router.post("/api/v1/writes")
    async def writes(session: Work) -> Envelope[Schema]:
        await session.execute(text("SET CONSTRAINTS ALL DEFERRED"))
        await session.execute(
            text("CREATE TEMP TABLE late (n int UNIQUE DEFERRABLE INITIALLY DEFERRED) ON COMMIT DROP")
        )
        await session.execute(text("INSERT INTO late VALUES (1), (1)"))
        return ok(Schema())

    api.app.include_router(router)
    ada = await api.customer()
    answer = await ada.http.post("/writes")
    assert (answer.status_code, error_of(answer)["code"]) == (409, "CONFLICT")


async def test_work_that_hangs_is_answered_in_time(database: Database) -> None:
    router = APIRouter()
    ended = asyncio.Event()

    @router.get("/api/v1/hangs")
    async def hangs() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with serving(settings(database.api_url, request_seconds=0.2), database.superuser_dsn()) as api:
        api.app.include_router(router)
        answer = await asyncio.wait_for(api.http.get("/hangs"), PATIENCE)
        assert (answer.status_code, error_of(answer)["code"]) == (503, "UNAVAILABLE")
        await asyncio.wait_for(ended.wait(), PATIENCE)


@pytest.fixture
def log_text() -> Iterator[io.StringIO]:
    """Everything that is logged while the test runs, at the most talkative level."""
    stream = io.StringIO()
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    logs.configure(level="DEBUG")
    ours = root.handlers[0]
    assert isinstance(ours, logging.StreamHandler)
    ours.setStream(stream)
    yield stream
    root.handlers, root.level = handlers, level
    structlog.reset_defaults()


@pytest.mark.scenario("S12")
async def test_no_secret_and_no_personal_datum_reaches_logs_metrics_or_errors(api: Api, log_text: io.StringIO) -> None:
    email, name = "ada.lovelace@example.com", "Ada Augusta King"
    ada = await api.register(email, name=name, password=SECRET)
    ada.password = SECRET
    verification = api.mailed_token(email)
    outside = api.client()
    await outside.get("http://api/verify-email", params={"token": verification})
    await api.verify(ada)
    await api.login(ada)
    await ada.http.get("/users/me")
    errors: list[str] = []
    for path, body in (
        ("/auth/login", {"email": email, "password": SECRET + "x"}),
        ("/auth/register", {"email": email, "password": SECRET, "name": name}),
        ("/auth/register", {"email": "not-an-address-" + SECRET, "password": SECRET, "name": name}),
        ("/auth/refresh", {"refresh_token": SECRET}),
        ("/auth/reset-password", {"token": SECRET, "password": SECRET}),
        ("/auth/login", {"email": {"nested": SECRET}, "password": [SECRET]}),
    ):
        answer = await api.http.post(path, json=body)
        assert 400 <= answer.status_code < 500
        errors.append(answer.text)
    answer = await api.http.post("/auth/login", content=b'{"password": "' + SECRET.encode() + b'"')
    errors.append(answer.text)
    api.app.include_router(raising([database_error(OperationalError), ZeroDivisionError(SECRET)]))
    for number in range(2):
        errors.append((await api.http.get(f"/raises/{number}")).text)
    await ada.http.post("/auth/forgot-password", json={"email": email})
    reset = api.mailed_token(email, "password_reset")
    metrics = (await api.http.get("http://api/metrics")).text
    written = log_text.getvalue()
    assert '"event": "request"' in written

    secrets = [SECRET, verification, reset, ada.tokens["access_token"], ada.tokens["refresh_token"], JWT_SECRET]
    for where, content in (("log", written), ("errors", "".join(errors)), ("metrics", metrics)):
        for secret in (*secrets, "$argon2", email, name):
            assert secret not in content, (where, secret[:12])
    # And nothing of it rests readable in the database, where the hashes are.
    dump = json.dumps([api.rows(f"SELECT to_jsonb(t)::text AS row FROM {t} t") for t in RESTING], default=str)
    for secret in secrets:
        assert secret not in dump, secret[:12]


RESTING = ("users", "sessions", "refresh_tokens", "one_time_tokens", "notifications", "audit_log", "revoked_tokens")


async def test_each_request_is_one_line_with_its_number_account_and_route(api: Api, log_text: io.StringIO) -> None:
    ada = await api.customer()
    await ada.http.get("/users/me/sessions", headers={"X-Request-ID": "mine-8"})
    (line,) = [
        found
        for found in map(json.loads, log_text.getvalue().splitlines())
        if found.get("request_id") == "mine-8" and found["event"] == "request"
    ]
    assert (line["route"], line["status"], line["account"]) == (
        "/api/v1/users/me/sessions", 200, ada.organization_id,
    )  # fmt: skip
    assert line["duration_ms"] > 0


async def test_figures_are_by_route_template(api: Api) -> None:
    ada = await api.customer()
    await ada.http.delete("/users/me/sessions/ses_1")
    await ada.http.delete("/users/me/sessions/ses_2")
    await api.http.get("/no-such-thing/7")
    await api.http.request("BREW", "/no-such-thing")
    text_ = (await api.http.get("http://api/metrics")).text
    assert (
        'berth_http_requests_total{method="DELETE",route="/api/v1/users/me/sessions/{session_id}",status="404"} 2.0'
        in text_
    )
    assert 'route="unmatched"' in text_
    assert "ses_1" not in text_
    assert "BREW" not in text_
    assert "berth_http_request_seconds_bucket" in text_


async def test_metrics_can_be_fenced(database: Database) -> None:
    async with serving(settings(database.api_url, metrics_allow=("10.0.0.0/8",)), database.superuser_dsn()) as api:
        assert (await api.http.get("http://api/metrics")).status_code == 404


def test_the_schema_names_no_sandbox_and_documents_refusals() -> None:
    found = schema()
    assert not [path for path in found["paths"] if "sandbox" in path]
    login = found["paths"]["/api/v1/auth/login"]["post"]
    assert {"200", "401", "422", "429", "503"} <= set(login["responses"])
    assert login["responses"]["401"]["content"]["application/json"]["schema"]["$ref"].endswith("/ErrorEnvelope")
    ids = [operation["operationId"] for path in found["paths"].values() for operation in path.values()]
    assert len(ids) == len(set(ids))


async def test_health_asks_nobody_and_status_names_each_dependency(api: Api) -> None:
    health = await api.http.get("http://api/health")
    assert (health.status_code, health.json()["status"], health.json()["data"]) == (200, "ok", {"status": "ok"})
    status = await api.http.get("http://api/status")
    assert status.status_code == 200
    found = status.json()["data"]
    assert found["status"] == "degraded"
    assert found["dependencies"]["database"]["status"] == "ok"
    assert found["dependencies"]["temporal"]["status"] == "unavailable"
    assert "problem" not in found["dependencies"]["temporal"]
    root = await api.administrator()
    told = (await root.http.get("http://api/status")).json()["data"]["dependencies"]
    assert told["temporal"]["problem"]
    assert told["database"]["details"]["version"]
    ada = await api.customer()
    assert "problem" not in (await ada.http.get("http://api/status")).text
