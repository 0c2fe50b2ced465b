"""Every response has the envelope, every error a code, and an internal error reveals only its request id."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from fastapi import APIRouter
from sqlalchemy import text
from sqlalchemy.exc import DataError, IntegrityError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from api import logs
from api.dependencies.transactions import Session
from api.errors import STATUS_BY_ERROR_CODE
from api.openapi import build_schema
from api.response_envelope import Instant, JsonResponse, Meta, ResponseModel, format_instant, list_response, success
from api.schemas.subscriptions import TimelineOut
from tests.support.api import JWT_SECRET, ApiFixture, parse_error, serve_api, settings
from tests.support.databases import DatabaseFixture
from tests.support.log_capture import capture_log
from tests.support.wait import DEFAULT_TIMEOUT
from workflows.rpc_errors import TemporalUnavailable, WorkflowNotRunning
from workflows.rules.errors import ErrorCode, RuleViolation

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


EXPECTED_ERRORS: list[tuple[BaseException, int, str]] = [
    *(
        (RuleViolation(code, "A sentence.", {"fact": "1"}), STATUS_BY_ERROR_CODE[code], code.value)
        for code in ErrorCode
    ),
    (TemporalUnavailable(), 503, "UNAVAILABLE"),
    (WorkflowNotRunning(), 409, "ILLEGAL_MOVE"),
    (PoolTimeout(), 503, "UNAVAILABLE"),
    (database_error(OperationalError), 503, "UNAVAILABLE"),
    (database_error(IntegrityError), 409, "CONFLICT"),
    (database_error(DataError), 422, "VALIDATION_ERROR"),
    (ConnectionRefusedError(), 503, "UNAVAILABLE"),
    (ZeroDivisionError(SECRET), 500, "INTERNAL_ERROR"),
    (RuntimeError(SECRET), 500, "INTERNAL_ERROR"),
]


async def test_every_class_of_error_has_its_status_code_and_shape(api: ApiFixture) -> None:
    assert set(STATUS_BY_ERROR_CODE) == set(ErrorCode)
    api.app.include_router(raising([exception for exception, _, _ in EXPECTED_ERRORS]))
    for number, (exception, status, code) in enumerate(EXPECTED_ERRORS):
        response = await api.http.get(f"/raises/{number}")
        error = parse_error(response)
        assert (response.status_code, error["code"]) == (status, code), exception
        assert SECRET not in response.text
        assert ("Retry-After" in response.headers) == (status == 503)
        if isinstance(exception, RuleViolation):
            assert (error["message"], error["details"]) == ("A sentence.", {"fact": "1"})


async def test_unknown_paths_and_methods_have_error_codes(api: ApiFixture) -> None:
    response = await api.http.get("/no-such-thing")
    assert (response.status_code, parse_error(response)["code"]) == (404, "NOT_FOUND")
    response = await api.http.delete("/auth/login")
    assert (response.status_code, parse_error(response)["code"]) == (405, "METHOD_NOT_ALLOWED")
    assert response.headers["Allow"] == "POST"


async def test_a_success_has_the_envelope_and_the_headers(api: ApiFixture) -> None:
    ada = await api.register_verified_user()
    response = await ada.http.get("/users/me", headers={"X-Request-ID": "mine-7"})
    content = response.json()
    assert set(content) == {"success", "data", "message", "timestamp"}
    assert content["success"] is True
    assert content["timestamp"].endswith("Z")
    assert response.headers["X-Request-ID"] == "mine-7"
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.headers["X-Frame-Options"] == "DENY"
    assert response.headers["Cache-Control"] == "no-store"
    assert "default-src 'none'" in response.headers["Content-Security-Policy"]
    assert "Strict-Transport-Security" not in response.headers
    hostile = await ada.http.get("/users/me", headers={"X-Request-ID": "a b<script>"})
    assert hostile.headers["X-Request-ID"].startswith("req_")
    assert (await ada.http.get("/users/me")).headers["X-Request-ID"] != hostile.headers["X-Request-ID"]
    page = await api.http.get("http://api/docs")
    assert page.headers["Content-Security-Policy"].startswith("default-src 'self'")
    script = await api.http.get("http://api/docs/assets/swagger-ui.css")
    assert script.headers.get_list("Cache-Control") == ["public, max-age=86400"]


async def test_cross_origin_headers_follow_the_configuration(database: DatabaseFixture) -> None:
    api_settings = settings(database.api_url, cors_origins=("https://portal.example",))
    preflight = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    async with serve_api(api_settings, database.superuser_dsn()) as api:
        good = await api.http.options("/auth/login", headers=preflight | {"Origin": "https://portal.example"})
        assert good.headers["Access-Control-Allow-Origin"] == "https://portal.example"
        bad = await api.http.options("/auth/login", headers=preflight | {"Origin": "https://evil.example"})
        assert "Access-Control-Allow-Origin" not in bad.headers


async def test_a_failed_commit_is_an_error_response(api: ApiFixture) -> None:
    router = APIRouter()

    @router.post("/api/v1/writes")
    async def writes(session: Session) -> JsonResponse:
        await session.execute(text("SET CONSTRAINTS ALL DEFERRED"))
        await session.execute(
            text("CREATE TEMP TABLE late (n int UNIQUE DEFERRABLE INITIALLY DEFERRED) ON COMMIT DROP")
        )
        await session.execute(text("INSERT INTO late VALUES (1), (1)"))
        return success(ResponseModel())

    api.app.include_router(router)
    ada = await api.register_verified_user()
    response = await ada.http.post("/writes")
    assert (response.status_code, parse_error(response)["code"]) == (409, "CONFLICT")


async def test_a_hanging_request_times_out(database: DatabaseFixture) -> None:
    router = APIRouter()
    ended = asyncio.Event()

    @router.get("/api/v1/hangs")
    async def hangs() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with serve_api(settings(database.api_url, request_timeout_seconds=0.2), database.superuser_dsn()) as api:
        api.app.include_router(router)
        response = await asyncio.wait_for(api.http.get("/hangs"), DEFAULT_TIMEOUT)
        assert (response.status_code, parse_error(response)["code"]) == (503, "UNAVAILABLE")
        await asyncio.wait_for(ended.wait(), DEFAULT_TIMEOUT)


class InstantOut(ResponseModel):
    at: Instant


@pytest.mark.parametrize(
    ("at", "text"),
    [
        (datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), "2026-01-02T03:04:05Z"),
        (datetime(2026, 1, 2, 3, 4, 5, 120_000, tzinfo=ZoneInfo("UTC")), "2026-01-02T03:04:05.120000Z"),
        (datetime(2026, 7, 2, 3, 4, 5, 1, tzinfo=ZoneInfo("Europe/Berlin")), "2026-07-02T01:04:05.000001Z"),
        (datetime(2026, 7, 2, 3, 4, tzinfo=timezone(-timedelta(hours=3, minutes=30))), "2026-07-02T06:34:00Z"),
    ],
)
def test_an_instant_is_written_in_utc_whatever_its_zone(at: datetime, text: str) -> None:
    resource, with_fields = InstantOut(at=at), frozenset({"at"})
    assert json.loads(bytes(success(resource).body))["data"] == {"at": text}
    page = list_response([resource], Meta(next_cursor=None, limit=1), with_fields)
    assert json.loads(bytes(page.body))["data"] == [{"at": text}]
    assert format_instant(at) == text


def test_a_list_returns_the_requested_members_and_the_id() -> None:
    event = TimelineOut(at=datetime(2026, 1, 2, tzinfo=UTC), kind="instance.ready", message="Ready.", ref=None)
    item = {"id": "tl_1", **event}
    page = list_response([item], Meta(next_cursor=None, limit=1), frozenset({"at", "kind", "unknown"}))
    assert json.loads(bytes(page.body))["data"] == [
        {"id": "tl_1", "at": "2026-01-02T00:00:00Z", "kind": "instance.ready"}
    ]


@pytest.fixture
def log_text() -> Iterator[io.StringIO]:
    """Everything that is logged during the test, at level DEBUG."""
    with capture_log(logs.configure_logging, level="DEBUG") as written:
        yield written


@pytest.mark.scenario("S12")
async def test_logs_metrics_and_errors_hold_no_secrets_or_personal_data(api: ApiFixture, log_text: io.StringIO) -> None:
    email, name = "ada.lovelace@example.com", "Ada Augusta King"
    ada = await api.register(email, name=name, password=SECRET)
    ada.password = SECRET
    verification = api.latest_mail_token(email)
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
        response = await api.http.post(path, json=body)
        assert 400 <= response.status_code < 500
        errors.append(response.text)
    response = await api.http.post("/auth/login", content=b'{"password": "' + SECRET.encode() + b'"')
    errors.append(response.text)
    api.app.include_router(raising([database_error(OperationalError), ZeroDivisionError(SECRET)]))
    for number in range(2):
        errors.append((await api.http.get(f"/raises/{number}")).text)
    await ada.http.post("/auth/forgot-password", json={"email": email})
    reset = api.latest_mail_token(email, "password_reset")
    metrics = (await api.http.get("http://api/metrics")).text
    written = log_text.getvalue()
    assert '"event": "request.completed"' in written

    secrets = [SECRET, verification, reset, ada.tokens["access_token"], ada.tokens["refresh_token"], JWT_SECRET]
    for where, content in (("log", written), ("errors", "".join(errors)), ("metrics", metrics)):
        for secret in (*secrets, "$argon2", email, name):
            assert secret not in content, (where, secret[:12])
    # And nothing of it rests readable in the database, where the hashes are.
    dump = json.dumps(
        [api.query_as_superuser(f"SELECT to_jsonb(t)::text AS row FROM {t} t") for t in RESTING], default=str
    )
    for secret in secrets:
        assert secret not in dump, secret[:12]


RESTING = (
    "users",
    "user_sessions",
    "refresh_tokens",
    "one_time_tokens",
    "notifications",
    "audit_log",
    "revoked_sessions",
)


async def test_each_request_is_logged_as_one_line_with_its_id_account_and_route(
    api: ApiFixture, log_text: io.StringIO
) -> None:
    ada = await api.register_verified_user()
    await ada.http.get("/users/me/sessions", headers={"X-Request-ID": "mine-8"})
    (line,) = [
        event
        for event in map(json.loads, log_text.getvalue().splitlines())
        if event.get("request_id") == "mine-8" and event["event"] == "request.completed"
    ]
    assert (line["route"], line["status"], line["account"]) == (
        "/api/v1/users/me/sessions", 200, ada.organization_id,
    )  # fmt: skip
    assert line["duration_ms"] > 0


async def test_metrics_are_labelled_by_route_template(api: ApiFixture) -> None:
    ada = await api.register_verified_user()
    await ada.http.delete("/users/me/sessions/ses_1")
    await ada.http.delete("/users/me/sessions/ses_2")
    await api.http.delete("/users/me/sessions/ses_3")
    await api.http.get("/no-such-thing/7")
    await api.http.request("BREW", "/no-such-thing")
    text_ = (await api.http.get("http://api/metrics")).text
    counted = 'berth_http_requests_total{method="DELETE",route="/api/v1/users/me/sessions/{session_id}",status='
    assert f'{counted}"404"}} 2.0' in text_
    assert f'{counted}"401"}} 1.0' in text_
    assert 'route="unmatched"' in text_
    assert "ses_1" not in text_
    assert "BREW" not in text_
    assert "berth_http_request_duration_seconds_bucket" in text_


async def test_metrics_are_limited_to_allowed_networks(database: DatabaseFixture) -> None:
    async with serve_api(
        settings(database.api_url, metrics_allowed_networks=("10.0.0.0/8",)), database.superuser_dsn()
    ) as api:
        assert (await api.http.get("http://api/metrics")).status_code == 404


def test_the_schema_omits_sandbox_routes_and_documents_errors() -> None:
    schema = build_schema()
    assert not [path for path in schema["paths"] if "sandbox" in path]
    login = schema["paths"]["/api/v1/auth/login"]["post"]
    assert {"200", "401", "422", "429", "503"} <= set(login["responses"])
    assert login["responses"]["401"]["content"]["application/json"]["schema"]["$ref"].endswith("/ErrorEnvelope")
    ids = [operation["operationId"] for path in schema["paths"].values() for operation in path.values()]
    assert len(ids) == len(set(ids))


async def test_health_checks_no_dependency_and_status_names_each(api: ApiFixture) -> None:
    health = await api.http.get("http://api/health")
    assert (health.status_code, health.json()["status"], health.json()["data"]) == (200, "ok", {"status": "ok"})
    status = await api.http.get("http://api/status")
    assert status.status_code == 200
    report = status.json()["data"]
    assert report["status"] == "degraded"
    assert report["dependencies"]["database"]["status"] == "ok"
    assert report["dependencies"]["temporal"]["status"] == "unavailable"
    assert "problem" not in report["dependencies"]["temporal"]
    administrator = await api.administrator()
    api_settings = (await administrator.http.get("http://api/status")).json()["data"]["dependencies"]
    assert api_settings["temporal"]["problem"]
    assert api_settings["database"]["details"]["version"]
    ada = await api.register_verified_user()
    assert "problem" not in (await ada.http.get("http://api/status")).text
