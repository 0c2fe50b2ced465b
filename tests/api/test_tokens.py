"""S2: only valid tokens of this installation are accepted. S4: sign-in attempts are limited and reveal nothing."""

from __future__ import annotations

import base64
import itertools
import json
import statistics
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import jwt
import pytest
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute

from api import routers
from api.dependencies.authentication import BearerScheme
from api.registration import FORGOT_PASSWORD_MIN_SECONDS
from api.tokens import ALGORITHM, AUDIENCE, ISSUER, AccessTokens, Caller, InvalidToken
from tests.support.api import JWT_SECRET, PASSWORD, ApiFixture, RegisteredUser, parse_error, serve_api, settings
from tests.support.databases import DatabaseFixture


def part(content: dict[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(content).encode()).decode().rstrip("=")


def claims_of(account: RegisteredUser) -> dict[str, Any]:
    claims: dict[str, Any] = jwt.decode(account.tokens["access_token"], options={"verify_signature": False})
    return claims


def forged(claims: dict[str, Any], *, secret: str = JWT_SECRET, algorithm: str = ALGORITHM, kid: str = "1") -> str:
    return jwt.encode(claims, secret, algorithm=algorithm, headers={"kid": kid})


async def refused(api: ApiFixture, token: str) -> httpx.Response:
    response = await api.http.get("/users/me", headers={"Authorization": f"Bearer {token}"})
    assert response.status_code == 401, token
    assert parse_error(response)["code"] == "UNAUTHENTICATED"
    assert response.headers["WWW-Authenticate"] == "Bearer"
    return response


@pytest.mark.scenario("S2")
async def test_only_valid_unexpired_tokens_are_accepted(api: ApiFixture) -> None:
    ada = await api.register_verified_user()
    claims = claims_of(ada)
    good = ada.tokens["access_token"]
    assert (await api.http.get("/users/me", headers={"Authorization": f"Bearer {forged(claims)}"})).status_code == 200

    past = int((datetime.now(UTC) - timedelta(minutes=1)).timestamp())
    changed: list[dict[str, Any]] = [
        {"exp": past}, {"aud": "somebody-else"}, {"aud": [AUDIENCE, "other"]}, {"iss": "mallory"},
        {"iat": int(time.time()) + 3600}, {"sub": 7}, {"role": None},
    ]  # fmt: skip
    for change in changed:
        await refused(api, forged(claims | change))
    for missing in ("exp", "aud", "iss", "sub", "sid", "org", "role", "jti", "iat"):
        await refused(api, forged({name: value for name, value in claims.items() if name != missing}))

    header, body, signature = good.split(".")
    unsigned = f"{part({'alg': 'none', 'typ': 'JWT', 'kid': '1'})}.{body}."
    raised = part(claims | {"role": "ADMINISTRATOR"})
    other_signature = ("A" if signature[0] != "A" else "B") + signature[1:]
    for token in (
        unsigned,
        f"{part({'alg': 'None', 'kid': '1'})}.{body}.{signature}",
        f"{header}.{raised}.{signature}",
        f"{header}.{body}.{other_signature}",
        f"{header}.{body}.",
        f"{header}.{body}",
        "not-a-token",
        "",
        "é.ü.ö",
        "x" * 10_000,
    ):
        response = await api.http.get("/users/me", headers={b"Authorization": f"Bearer {token}".encode()})
        assert (response.status_code, parse_error(response)["code"]) == (401, "UNAUTHENTICATED"), token[:40]

    await refused(api, forged(claims, secret="another secret that is also long enough for this"))
    await refused(api, forged(claims, secret=JWT_SECRET * 2, algorithm="HS512"))
    await refused(api, forged(claims, kid="2"))
    await refused(api, forged(claims, kid="../../etc/passwd"))
    await refused(api, jwt.encode(claims, JWT_SECRET, algorithm=ALGORITHM))  # names no key
    await refused(api, ada.tokens["refresh_token"])

    await ada.http.post("/auth/logout")
    await refused(api, good)
    # Revocation is of the session: a token forged for it under the right key is refused as well.
    await refused(api, forged(claims | {"jti": "another"}))


@pytest.mark.scenario("S2")
async def test_a_missing_header_or_another_scheme_is_rejected(api: ApiFixture) -> None:
    ada = await api.register_verified_user()
    token = ada.tokens["access_token"]
    for header in (f"Basic {token}", token, "Bearer", "bearer "):
        response = await api.http.get("/users/me", headers={"Authorization": header})
        assert response.status_code == 401, header
    assert (await api.http.get("/users/me")).status_code == 401
    assert (await api.http.get("/users/me", params={"access_token": token})).status_code == 401
    assert (await api.http.get("/users/me", headers={"Cookie": f"access_token={token}"})).status_code == 401


def test_keys_rotate_without_ending_sessions() -> None:
    caller = Caller(
        user_id="usr_1", organization_id="org_1", platform_role="USER", organization_role="owner", email_verified=True,
        timezone="UTC", session_id="ses_1",
    )  # fmt: skip
    lifetime, at = timedelta(minutes=15), datetime.now(UTC)
    old, new = ("2026", b"o" * 40), ("2027", b"n" * 40)
    token = AccessTokens([old], lifetime=lifetime).issue(caller, at)
    rotated = AccessTokens([new, old], lifetime=lifetime)
    assert rotated.verify(token) == caller
    fresh = rotated.issue(caller, at)
    assert jwt.get_unverified_header(fresh)["kid"] == "2027"
    assert jwt.decode(fresh, new[1], algorithms=[ALGORITHM], audience=AUDIENCE, issuer=ISSUER)["sub"] == "usr_1"


@pytest.mark.scenario("S4")
async def test_sign_in_attempts_are_limited_by_address_and_by_account(database: DatabaseFixture) -> None:
    api_settings = settings(database.api_url, rate_limit="on")
    async with serve_api(api_settings, database.superuser_dsn()) as api:
        ada = await api.register()
        wrong = {"email": ada.email, "password": "not this one"}
        responses = [await api.http.post("/auth/login", json=wrong) for _ in range(6)]
        assert [response.status_code for response in responses] == [401] * 5 + [429]
        error = parse_error(responses[-1])
        assert error["code"] == "RATE_LIMITED"
        assert 1 <= int(responses[-1].headers["Retry-After"]) <= 60
        assert responses[-1].headers["RateLimit-Remaining"] == "0"
        assert [int(response.headers["RateLimit-Remaining"]) for response in responses[:5]] == [4, 3, 2, 1, 0]
        # The right password from the same address waits as well.
        assert (await api.http.post("/auth/login", json=wrong | {"password": PASSWORD})).status_code == 429

        # The limit of the account holds from other addresses, in any case of its letters, and for unknown accounts too.
        for email in (ada.email, "unknown@example.com"):
            statuses = []
            for number in range(12):
                transport = httpx.ASGITransport(api.app, client=(f"10.0.{len(email)}.{number}", 1))
                async with httpx.AsyncClient(transport=transport, base_url="http://api/api/v1") as elsewhere:
                    body = {"email": email.upper() if number % 2 else email, "password": "not this one"}
                    statuses.append((await elsewhere.post("/auth/login", json=body)).status_code)
            assert statuses[-1] == 429, email
        # Others are not affected.
        transport = httpx.ASGITransport(api.app, client=("10.9.9.9", 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://api/api/v1") as elsewhere:
            body = {"email": "third@example.com", "password": PASSWORD}
            assert (await elsewhere.post("/auth/login", json=body)).status_code == 401


@pytest.mark.scenario("S4")
@pytest.mark.parametrize("path", ["/auth/login", "/auth/forgot-password"])
async def test_no_spelling_of_an_address_has_a_limit_of_its_own(database: DatabaseFixture, path: str) -> None:
    async with serve_api(settings(database.api_url, rate_limit="on"), database.superuser_dsn()) as api:
        await api.register("iris.kiki@example.com")
        statuses = []
        # PostgreSQL lowers the dotted capital to "i", Python to two characters.
        for number, local in enumerate(itertools.islice(itertools.product("i\u0130", repeat=3), 7)):
            email = "{}r{}s.k{}ki@example.com".format(*local)
            body = {"email": email} | ({"password": "not this one"} if path == "/auth/login" else {})
            async with _from_address(api, f"10.0.0.{number}") as elsewhere:
                statuses.append((await elsewhere.post(path, json=body)).status_code)
        assert statuses[4] != 429
        assert statuses[5:] == [429, 429]


@pytest.mark.scenario("S4")
async def test_the_addresses_of_an_ipv6_network_share_a_limit(database: DatabaseFixture) -> None:
    async with serve_api(settings(database.api_url, rate_limit="on"), database.superuser_dsn()) as api:
        statuses = []
        for number in range(1, 8):
            login = {"email": f"user{number}@example.com", "password": "not this one"}
            async with _from_address(api, f"2001:db8:0:7:{number}::1") as elsewhere:
                statuses.append((await elsewhere.post("/auth/login", json=login)).status_code)
        assert statuses == [401] * 5 + [429] * 2
        body = {"email": "user9@example.com", "password": "not this one"}
        async with _from_address(api, "2001:db8:0:8::1") as neighbour:
            assert (await neighbour.post("/auth/login", json=body)).status_code == 401


def _from_address(api: ApiFixture, address: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(api.app, client=(address, 1)), base_url="http://api/api/v1")


@pytest.mark.scenario("S4")
async def test_responses_do_not_reveal_whether_an_account_exists(api: ApiFixture) -> None:
    ada = await api.register()

    async def tried(path: str, body: dict[str, str]) -> tuple[httpx.Response, float]:
        began = time.perf_counter()
        response = await api.http.post(path, json=body)
        return response, time.perf_counter() - began

    for path, status, times in (("/auth/login", 401, 12), ("/auth/forgot-password", 200, 2)):
        existing: list[float] = []
        missing: list[float] = []
        password = {"password": "not this one"} if path == "/auth/login" else {}
        for number in range(times):
            here, seconds = await tried(path, {"email": ada.email} | password)
            existing.append(seconds)
            there, seconds = await tried(path, {"email": f"no{number}@example.com"} | password)
            missing.append(seconds)
            assert here.status_code == there.status_code == status
            existing_body, missing_body = here.json(), there.json()
            assert {**existing_body, "timestamp": "", "request_id": ""} == {
                **missing_body,
                "timestamp": "",
                "request_id": "",
            }
            assert set(here.headers) == set(there.headers)
        if path == "/auth/forgot-password":
            assert min(existing + missing) >= FORGOT_PASSWORD_MIN_SECONDS
            continue
        # Hashing dominates sign-in: without it the response for an unknown address would be several times faster.
        ratio = min(missing) / min(existing)
        assert 1 / 3 < ratio < 3, (path, statistics.median(existing), statistics.median(missing))


async def test_rate_limits_apply_by_user_and_are_higher_for_administrators(database: DatabaseFixture) -> None:
    api_settings = settings(database.api_url)
    async with serve_api(api_settings, database.superuser_dsn()) as api:
        ada, administrator = await api.register_verified_user(), await api.administrator()
        tokens = (ada.tokens["access_token"], administrator.tokens["access_token"])
    limited = settings(database.api_url, rate_limit="on")
    async with serve_api(limited, database.superuser_dsn()) as api:
        for token, limit in zip(tokens, ("100", "200"), strict=True):
            response = await api.http.get("/users/me", headers={"Authorization": f"Bearer {token}"})
            assert response.status_code == 200
            assert response.headers["RateLimit-Limit"] == limit
            assert response.headers["RateLimit-Remaining"] == str(int(limit) - 1)
        statuses = [(await api.http.get("/users/me")).status_code for _ in range(102)]
        assert statuses.count(401) == 100
        assert statuses[-1] == 429
        # A signed-in caller has a limit apart from the limit of the address.
        response = await api.http.get("/users/me", headers={"Authorization": f"Bearer {tokens[0]}"})
        assert response.status_code == 200


def _bearer_schemes(dependant: Dependant) -> Iterator[BearerScheme]:
    for dependency in dependant.dependencies:
        call: Any = dependency.call
        if isinstance(call, BearerScheme):
            yield call
        yield from _bearer_schemes(dependency)


def test_no_route_counts_a_request_twice_against_the_limit_of_its_user() -> None:
    routes = [route for route in routers.all_routes(sandbox=True) if isinstance(route, APIRoute)]
    schemes = {route.unique_id: {id(scheme) for scheme in _bearer_schemes(route.dependant)} for route in routes}
    assert len(schemes["subscriptions_list_subscriptions"]) == 1
    assert [name for name, route_schemes in schemes.items() if len(route_schemes) > 1] == []


def test_a_token_that_was_verified_is_refused_once_it_has_expired() -> None:
    now = datetime.now(UTC)
    clock = [now.timestamp()]
    tokens = AccessTokens([("1", JWT_SECRET.encode())], lifetime=timedelta(minutes=5), clock=lambda: clock[0])
    caller = Caller(
        user_id="usr_1", organization_id="org_1", platform_role="USER", organization_role="owner",
        email_verified=True, timezone="UTC", session_id="ses_1",
    )  # fmt: skip
    expired = tokens.issue(caller, now - timedelta(minutes=6))
    with pytest.raises(InvalidToken):
        tokens.verify(expired)
    token = tokens.issue(caller, now - timedelta(minutes=4))
    assert tokens.verify(token) == tokens.verify(token) == caller
    with pytest.raises(InvalidToken):
        tokens.verify(f"{token[:-2]}xx")
    # Without keys, only the stored result of the verification could accept the token.
    tokens._keys.clear()
    assert tokens.verify(token) == caller
    clock[0] += 120
    with pytest.raises(InvalidToken):
        tokens.verify(token)
