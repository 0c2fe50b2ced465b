"""S4: what others do to an account, its mails and its cards is limited, and its owner is not kept out by it."""

from __future__ import annotations

import re
import time

import httpx
import pytest
from limits import RateLimitItemPerMinute

from api import ratelimit
from api.registration import FORGOT_PASSWORD_MIN_SECONDS
from tests.support.api import PASSWORD, ApiFixture, parse_error, serve_api, settings
from tests.support.databases import DatabaseFixture


def _from_address(api: ApiFixture, address: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(api.app, client=(address, 1)), base_url="http://api/api/v1")


async def _try(api: ApiFixture, address: str, email: str, password: str) -> int:
    """Try to sign in from ``address``, and return the status."""
    async with _from_address(api, address) as client:
        return (await client.post("/auth/login", json={"email": email, "password": password})).status_code


async def _use_up_account_limit(api: ApiFixture, email: str) -> None:
    assert [await _try(api, "10.6.6.6", email, "not this one") for _ in range(6)] == [401] * 5 + [429]


@pytest.mark.scenario("S4")
async def test_tries_of_others_do_not_keep_the_owner_out(database: DatabaseFixture) -> None:
    async with serve_api(settings(database.api_url, rate_limit="on"), database.superuser_dsn()) as api:
        ada = await api.register()
        await _use_up_account_limit(api, ada.email)
        # The owner's password is accepted from an address that is new to the account, also after two mistakes.
        assert [await _try(api, "10.1.1.1", ada.email, "a mistake") for _ in range(2)] == [429, 429]
        assert await _try(api, "10.1.1.1", ada.email.upper(), PASSWORD) == 200
        # From then on that address is known: it has as many tries as it would have without the others'.
        assert await _try(api, "10.1.1.1", ada.email, "a mistake") == 429
        assert await _try(api, "10.1.1.1", ada.email, PASSWORD) == 200
        # The address of the others waits, whatever the password.
        assert await _try(api, "10.6.6.6", ada.email, PASSWORD) == 429


@pytest.mark.scenario("S4")
async def test_guesses_from_many_addresses_end_but_not_for_addresses_of_the_owner(database: DatabaseFixture) -> None:
    async with serve_api(settings(database.api_url, rate_limit="on"), database.superuser_dsn()) as api:
        ada = await api.register()
        assert await _try(api, "2001:db8:0:1::1", ada.email, PASSWORD) == 200
        statuses = [await _try(api, f"10.8.{n // 9}.{n % 9}", ada.email, "not this one") for n in range(80)]
        assert statuses == [401] * 4 + [429] * 76
        # 60 of them were looked at. Now a new address has no try left, not even with the right password.
        assert await _try(api, "10.2.2.2", ada.email, PASSWORD) == 429
        # The address that registered the account and the network that its owner signed in from have, and a mailed link
        # makes another one known.
        assert await _try(api, "127.0.0.1", ada.email, PASSWORD) == 200
        assert await _try(api, "2001:db8:0:1::2", ada.email, PASSWORD) == 200
        async with _from_address(api, "10.2.2.2") as client:
            assert (await client.post("/auth/forgot-password", json={"email": ada.email})).status_code == 200
            reset = {
                "token": api.latest_mail_token(ada.email, "password_reset"),
                "password": "another horse altogether",
            }
            assert (await client.post("/auth/reset-password", json=reset)).status_code == 200
        assert await _try(api, "10.2.2.2", ada.email, "another horse altogether") == 200


@pytest.mark.scenario("S4")
async def test_an_address_without_tries_uses_up_none_of_the_account(database: DatabaseFixture) -> None:
    async with serve_api(settings(database.api_url, rate_limit="on"), database.superuser_dsn()) as api:
        ada = await api.register()
        for number in range(75):
            await _try(api, f"10.8.0.{number // 5}", ada.email, "not this one")
        # Three of each five were looked at: fewer than the account's sixty.
        assert await _try(api, "10.2.2.2", ada.email, PASSWORD) == 200


@pytest.mark.scenario("S4")
async def test_the_limit_of_an_account_reveals_nothing(database: DatabaseFixture) -> None:
    """Beyond the limit a wrong password, an unknown account and a try that is not looked at have one answer."""
    async with serve_api(settings(database.api_url, rate_limit="on"), database.superuser_dsn()) as api:
        ada = await api.register()
        responses: dict[str, list[tuple[int, str, list[str]]]] = {}
        for email in (ada.email, "unknown@example.com"):
            for number in range(5):
                assert await _try(api, f"10.{len(email)}.0.{number}", email, "not this one") == 401
            for _ in range(5):
                async with _from_address(api, f"10.3.3.{len(email)}") as client:
                    response = await client.post("/auth/login", json={"email": email, "password": "not this one"})
                text = re.sub(r"\d+ s\.", "", parse_error(response)["message"])
                responses.setdefault(email, []).append((response.status_code, text, sorted(response.headers)))
        assert responses[ada.email] == responses["unknown@example.com"]
        assert {received[0] for received in responses[ada.email]} == {429}


@pytest.mark.scenario("S4")
async def test_an_address_from_which_a_verification_link_was_opened_is_known(database: DatabaseFixture) -> None:
    async with serve_api(settings(database.api_url, rate_limit="on"), database.superuser_dsn()) as api:
        ada = await api.register()
        async with _from_address(api, "10.4.4.4") as client:
            token = api.latest_mail_token(ada.email, "email_verification")
            assert (await client.post("/auth/verify-email", json={"token": token})).status_code == 200
        await _use_up_account_limit(api, ada.email)
        # An address that is new to the account would have three tries.
        assert [await _try(api, "10.4.4.4", ada.email, "a mistake") for _ in range(4)] == [429] * 4
        assert await _try(api, "10.4.4.4", ada.email, PASSWORD) == 200


async def _reset_mails(api: ApiFixture, email: str) -> int:
    (row,) = api.query_as_superuser(
        "SELECT count(*) AS mails FROM notifications n JOIN users u ON u.id = n.user_id"
        " WHERE u.email = %s AND n.kind = 'password_reset'",
        email,
    )
    mails: int = row["mails"]
    return mails


@pytest.mark.scenario("S4")
async def test_one_recipient_gets_a_few_reset_mails_and_the_answers_do_not_tell(
    database: DatabaseFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A minute is over after five requests, the hour is not.
    monkeypatch.setattr(ratelimit, "AUTH", RateLimitItemPerMinute(1000, namespace="auth"))
    async with serve_api(settings(database.api_url, rate_limit="on"), database.superuser_dsn()) as api:
        ada, bob = await api.register(), await api.register()
        responses: dict[str, list[tuple[int, str]]] = {}
        for email in (ada.email, "unknown@example.com"):
            for number in range(8):
                async with _from_address(api, f"10.0.0.{number}") as client:
                    began = time.perf_counter()
                    response = await client.post("/auth/forgot-password", json={"email": email})
                    assert time.perf_counter() - began >= FORGOT_PASSWORD_MIN_SECONDS
                    responses.setdefault(email, []).append((response.status_code, response.json()["message"]))
        assert responses[ada.email] == responses["unknown@example.com"]
        assert await _reset_mails(api, ada.email) == 3
        # The last link works; afterwards the owner can ask again. Others have their own limit.
        reset = {"token": api.latest_mail_token(ada.email, "password_reset"), "password": "another horse altogether"}
        assert (await api.http.post("/auth/reset-password", json=reset)).status_code == 200
        for user, mails in ((ada, 4), (bob, 1)):
            assert (await api.http.post("/auth/forgot-password", json={"email": user.email})).status_code == 200
            assert await _reset_mails(api, user.email) == mails


async def test_an_address_that_is_not_verified_gets_a_few_links(
    database: DatabaseFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ratelimit, "AUTH", RateLimitItemPerMinute(1000, namespace="auth"))
    async with serve_api(settings(database.api_url, rate_limit="on"), database.superuser_dsn()) as api:
        eve = await api.login(await api.register("victim@example.com"))
        statuses = [(await eve.http.post("/auth/resend-verification")).status_code for _ in range(6)]
        assert statuses == [200] * 5 + [429]
