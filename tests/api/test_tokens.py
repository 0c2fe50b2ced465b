"""S2: what is not a token of ours, for us, now, is refused; and S4: guessing is slow and learns nothing."""

from __future__ import annotations

import base64
import json
import statistics
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import jwt
import pytest

from api.tokens import ALGORITHM, AUDIENCE, ISSUER, Caller, Tokens
from tests.support.api import JWT_SECRET, PASSWORD, Account, Api, error_of, serving, settings
from tests.support.databases import Database


def part(content: dict[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(content).encode()).decode().rstrip("=")


def claims_of(account: Account) -> dict[str, Any]:
    found: dict[str, Any] = jwt.decode(account.tokens["access_token"], options={"verify_signature": False})
    return found


def forged(claims: dict[str, Any], *, secret: str = JWT_SECRET, algorithm: str = ALGORITHM, kid: str = "1") -> str:
    return jwt.encode(claims, secret, algorithm=algorithm, headers={"kid": kid})


async def refused(api: Api, token: str) -> httpx.Response:
    answer = await api.http.get("/users/me", headers={"Authorization": f"Bearer {token}"})
    assert answer.status_code == 401, token
    assert error_of(answer)["code"] == "UNAUTHENTICATED"
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    return answer


@pytest.mark.scenario("S2")
async def test_only_our_own_living_tokens_are_accepted(api: Api) -> None:
    ada = await api.customer()
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
    nothing = f"{part({'alg': 'none', 'typ': 'JWT', 'kid': '1'})}.{body}."
    raised = part(claims | {"role": "ADMINISTRATOR"})
    other_signature = ("A" if signature[0] != "A" else "B") + signature[1:]
    for token in (
        nothing,
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
        answer = await api.http.get("/users/me", headers={b"Authorization": f"Bearer {token}".encode()})
        assert (answer.status_code, error_of(answer)["code"]) == (401, "UNAUTHENTICATED"), token[:40]

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
async def test_a_scheme_other_than_bearer_and_no_header_at_all(api: Api) -> None:
    ada = await api.customer()
    token = ada.tokens["access_token"]
    for header in (f"Basic {token}", token, "Bearer", "bearer "):
        answer = await api.http.get("/users/me", headers={"Authorization": header})
        assert answer.status_code == 401, header
    assert (await api.http.get("/users/me")).status_code == 401
    assert (await api.http.get("/users/me", params={"access_token": token})).status_code == 401
    assert (await api.http.get("/users/me", headers={"Cookie": f"access_token={token}"})).status_code == 401


def test_keys_rotate_without_ending_sessions() -> None:
    caller = Caller(
        user_id="usr_1", organization_id="org_1", role="USER", membership="owner", email_verified=True,
        timezone="UTC", session_id="ses_1",
    )  # fmt: skip
    lifetime, at = timedelta(minutes=15), datetime.now(UTC)
    old, new = ("2026", b"o" * 40), ("2027", b"n" * 40)
    token = Tokens([old], lifetime=lifetime).issue(caller, at)
    rotated = Tokens([new, old], lifetime=lifetime)
    assert rotated.read(token) == caller
    fresh = rotated.issue(caller, at)
    assert jwt.get_unverified_header(fresh)["kid"] == "2027"
    assert jwt.decode(fresh, new[1], algorithms=[ALGORITHM], audience=AUDIENCE, issuer=ISSUER)["sub"] == "usr_1"


@pytest.mark.scenario("S4")
async def test_guessing_is_limited_by_address_and_by_account(database: Database) -> None:
    told = settings(database.api_url, rate_limit="on")
    async with serving(told, database.superuser_dsn()) as api:
        ada = await api.register()
        wrong = {"email": ada.email, "password": "not this one"}
        answers = [await api.http.post("/auth/login", json=wrong) for _ in range(6)]
        assert [answer.status_code for answer in answers] == [401] * 5 + [429]
        error = error_of(answers[-1])
        assert error["code"] == "RATE_LIMITED"
        assert 1 <= int(answers[-1].headers["Retry-After"]) <= 60
        assert answers[-1].headers["RateLimit-Remaining"] == "0"
        assert [int(answer.headers["RateLimit-Remaining"]) for answer in answers[:5]] == [4, 3, 2, 1, 0]
        # The right password from the same address waits as well.
        assert (await api.http.post("/auth/login", json=wrong | {"password": PASSWORD})).status_code == 429

        # From other addresses the account's own limit holds; an account that does not exist has the same one.
        for email in (ada.email, "nobody@example.com"):
            transport_answers = []
            for number in range(12):
                transport = httpx.ASGITransport(api.app, client=(f"10.0.{len(email)}.{number}", 1))
                async with httpx.AsyncClient(transport=transport, base_url="http://api/api/v1") as elsewhere:
                    body = {"email": email.upper(), "password": "not this one"}
                    transport_answers.append((await elsewhere.post("/auth/login", json=body)).status_code)
            assert transport_answers[-1] == 429, email
        # Others are not affected.
        transport = httpx.ASGITransport(api.app, client=("10.9.9.9", 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://api/api/v1") as elsewhere:
            body = {"email": "third@example.com", "password": PASSWORD}
            assert (await elsewhere.post("/auth/login", json=body)).status_code == 401


@pytest.mark.scenario("S4")
async def test_nothing_tells_whether_an_account_exists(api: Api) -> None:
    ada = await api.register()

    async def tried(path: str, body: dict[str, str]) -> tuple[httpx.Response, float]:
        began = time.perf_counter()
        answer = await api.http.post(path, json=body)
        return answer, time.perf_counter() - began

    for path in ("/auth/login", "/auth/forgot-password"):
        known: list[float] = []
        unknown: list[float] = []
        for number in range(12):
            here, seconds = await tried(path, {"email": ada.email, "password": "not this one"})
            known.append(seconds)
            there, seconds = await tried(path, {"email": f"no{number}@example.com", "password": "not this one"})
            unknown.append(seconds)
            assert here.status_code == there.status_code
            ours, theirs = here.json(), there.json()
            assert {**ours, "timestamp": "", "request_id": ""} == {**theirs, "timestamp": "", "request_id": ""}
            assert set(here.headers) == set(there.headers)
        # Hashing dominates sign-in: without it an unknown address would answer several times faster.
        ratio = min(unknown) / min(known)
        assert 1 / 3 < ratio < 3, (path, statistics.median(known), statistics.median(unknown))


async def test_limits_are_by_user_and_higher_for_administrators(database: Database) -> None:
    told = settings(database.api_url)
    async with serving(told, database.superuser_dsn()) as api:
        ada, root = await api.customer(), await api.administrator()
        tokens = (ada.tokens["access_token"], root.tokens["access_token"])
    limited = settings(database.api_url, rate_limit="on")
    async with serving(limited, database.superuser_dsn()) as api:
        for token, limit in zip(tokens, ("100", "200"), strict=True):
            answer = await api.http.get("/users/me", headers={"Authorization": f"Bearer {token}"})
            assert answer.status_code == 200
            assert answer.headers["RateLimit-Limit"] == limit
            assert answer.headers["RateLimit-Remaining"] == str(int(limit) - 1)
        statuses = [(await api.http.get("/users/me")).status_code for _ in range(102)]
        assert statuses.count(401) == 100
        assert statuses[-1] == 429
        # Whoever is signed in is counted apart from their address.
        answer = await api.http.get("/users/me", headers={"Authorization": f"Bearer {tokens[0]}"})
        assert answer.status_code == 200
