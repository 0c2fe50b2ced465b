"""Registering, verifying, signing in, refreshing and signing out, as a customer meets them."""

from __future__ import annotations

import asyncio

import pytest

from tests.support.api import PASSWORD, Api, error_of, serving, settings
from tests.support.databases import Database
from tests.support.wait import eventually


async def test_the_whole_way_from_registration_to_signing_out(api: Api) -> None:
    answer = await api.http.post(
        "/auth/register",
        json={
            "email": "Ada@Example.com", "password": PASSWORD, "name": "Ada", "country": "DE", "currency": "EUR",
            "timezone": "Europe/Berlin",
        },
    )  # fmt: skip
    assert answer.status_code == 201
    data = answer.json()["data"]
    assert data["user"] | {"id": ""} == {
        "id": "", "email": "Ada@example.com", "name": "Ada", "role": "USER", "email_verified": False,
    }  # fmt: skip
    assert data["organization"]["currency"] == "EUR"

    token = api.mailed_token("ada@example.com")
    assert (await api.http.post("/auth/verify-email", json={"token": token})).status_code == 200
    again = await api.http.post("/auth/verify-email", json={"token": token})
    assert (again.status_code, error_of(again)["code"]) == (422, "VALIDATION_ERROR")

    answer = await api.http.post("/auth/login", json={"email": "ADA@example.com", "password": PASSWORD})
    first = answer.json()["data"]
    assert (first["token_type"], first["expires_in"]) == ("Bearer", 900)
    answer = await api.http.post("/auth/refresh", json={"refresh_token": first["refresh_token"]})
    second = answer.json()["data"]
    assert second["refresh_token"] != first["refresh_token"]

    signed_in = api.client(Authorization=f"Bearer {second['access_token']}")
    me = (await signed_in.get("/users/me")).json()["data"]
    assert me["email_verified"] is True
    assert me["organization"] == data["organization"]
    assert (await signed_in.post("/auth/logout")).status_code == 200
    for access in (first["access_token"], second["access_token"]):
        refused = await api.http.get("/users/me", headers={"Authorization": f"Bearer {access}"})
        assert (refused.status_code, error_of(refused)["code"]) == (401, "UNAUTHENTICATED")
    refused = await api.http.post("/auth/refresh", json={"refresh_token": second["refresh_token"]})
    assert refused.status_code == 401


async def test_the_welcome_follows_the_verification_once(api: Api) -> None:
    ada = await api.register()
    await api.verify(ada)
    kinds = [row["kind"] for row in api.rows("SELECT kind FROM notifications ORDER BY created_at, kind")]
    assert kinds == ["email_verification", "welcome"]


async def test_an_address_is_taken_whatever_its_case(api: Api) -> None:
    await api.register("ada@example.com")
    answer = await api.http.post(
        "/auth/register", json={"email": "ADA@EXAMPLE.COM", "password": PASSWORD, "name": "Eve"}
    )
    assert (answer.status_code, error_of(answer)["code"]) == (409, "EMAIL_TAKEN")
    assert api.rows("SELECT count(*) AS n FROM organizations") == [{"n": 1}]


async def test_of_two_registrations_at_once_one_wins(api: Api) -> None:
    wanted = {"email": "ada@example.com", "password": PASSWORD, "name": "Ada"}
    answers = await asyncio.gather(*(api.http.post("/auth/register", json=wanted) for _ in range(4)))
    assert sorted(answer.status_code for answer in answers) == [201, 409, 409, 409]


async def test_a_fresh_link_replaces_the_one_before(api: Api) -> None:
    ada = await api.login(await api.register())
    old = api.mailed_token(ada.email)
    assert (await ada.http.post("/auth/resend-verification")).status_code == 200
    assert api.mailed_token(ada.email) != old
    assert (await api.http.post("/auth/verify-email", json={"token": old})).status_code == 422
    await api.verify(ada)


async def test_an_expired_link_does_nothing(api: Api) -> None:
    ada = await api.register()
    api.execute("UPDATE one_time_tokens SET expires_at = now() - interval '1 second'")
    answer = await api.http.post("/auth/verify-email", json={"token": api.mailed_token(ada.email)})
    assert answer.status_code == 422
    assert api.rows("SELECT email_verified_at FROM users") == [{"email_verified_at": None}]


@pytest.mark.scenario("S3")
async def test_a_refresh_token_used_twice_ends_its_session(api: Api) -> None:
    ada = await api.customer()
    other = (await api.login(ada)).http
    stolen = ada.tokens["refresh_token"]
    renewed = (await api.http.post("/auth/refresh", json={"refresh_token": stolen})).json()["data"]
    third = (await api.http.post("/auth/refresh", json={"refresh_token": renewed["refresh_token"]})).json()["data"]

    refused = await api.http.post("/auth/refresh", json={"refresh_token": stolen})
    assert (refused.status_code, error_of(refused)["code"]) == (401, "UNAUTHENTICATED")
    # The whole family is gone: the youngest refresh token, and every access token that grew from this sign-in.
    assert (await api.http.post("/auth/refresh", json={"refresh_token": third["refresh_token"]})).status_code == 401
    assert (await other.get("/users/me")).status_code == 401
    headers = {"Authorization": f"Bearer {third['access_token']}"}
    assert (await api.http.get("/users/me", headers=headers)).status_code == 401
    assert api.rows("SELECT revoked_because FROM sessions WHERE revoked_at IS NOT NULL") == [
        {"revoked_because": "refresh token used twice"}
    ]


@pytest.mark.scenario("S3")
async def test_of_two_refreshes_at_once_one_wins_and_the_session_ends(api: Api) -> None:
    ada = await api.customer()
    body = {"refresh_token": ada.tokens["refresh_token"]}
    answers = await asyncio.gather(*(api.http.post("/auth/refresh", json=body) for _ in range(3)))
    statuses = sorted(answer.status_code for answer in answers)
    assert statuses == [200, 401, 401]
    (winner,) = [answer.json()["data"] for answer in answers if answer.status_code == 200]
    refused = await api.http.post("/auth/refresh", json={"refresh_token": winner["refresh_token"]})
    assert refused.status_code == 401


async def test_a_reset_takes_one_mail_works_once_and_ends_every_session(api: Api) -> None:
    ada = await api.customer()
    assert (await api.http.post("/auth/forgot-password", json={"email": ada.email.upper()})).status_code == 200
    token = api.mailed_token(ada.email, "password_reset")
    wanted = {"token": token, "password": "another horse altogether"}
    assert (await api.http.post("/auth/reset-password", json=wanted)).status_code == 200
    assert (await api.http.post("/auth/reset-password", json=wanted)).status_code == 422
    assert (await ada.http.get("/users/me")).status_code == 401
    old = await api.http.post("/auth/login", json={"email": ada.email, "password": PASSWORD})
    assert (old.status_code, error_of(old)["code"]) == (401, "INVALID_CREDENTIALS")
    ada.password = "another horse altogether"
    await api.login(ada)
    assert api.rows("SELECT action FROM audit_log") == [{"action": "password_reset"}]


async def test_a_verification_token_does_not_reset_a_password(api: Api) -> None:
    ada = await api.register()
    wanted = {"token": api.mailed_token(ada.email), "password": "another horse altogether"}
    assert (await api.http.post("/auth/reset-password", json=wanted)).status_code == 422
    await api.verify(ada)


async def test_a_new_password_by_the_old_one_spares_this_session(api: Api) -> None:
    ada = await api.customer()
    here = ada.http
    elsewhere = (await api.login(ada)).http
    wanted = {"current_password": "wrong", "password": "another horse altogether"}
    assert (await here.post("/users/me/password", json=wanted)).status_code == 401
    wanted["current_password"] = PASSWORD
    assert (await here.post("/users/me/password", json=wanted)).status_code == 200
    assert (await here.get("/users/me")).status_code == 200
    assert (await elsewhere.get("/users/me")).status_code == 401


async def test_sessions_are_listed_and_ended(api: Api) -> None:
    ada = await api.customer()
    here = ada.http
    elsewhere = (await api.login(ada)).http
    listed = (await here.get("/users/me/sessions")).json()
    assert listed["meta"]["total"] == 2
    (other,) = [item["id"] for item in listed["data"] if not item["current"]]
    assert (await here.delete(f"/users/me/sessions/{other}")).status_code == 200
    assert (await elsewhere.get("/users/me")).status_code == 401
    assert (await here.delete(f"/users/me/sessions/{other}")).status_code == 404
    assert len((await here.get("/users/me/sessions")).json()["data"]) == 1


async def test_another_process_hears_of_a_revocation(api: Api, database: Database) -> None:
    ada = await api.customer()
    headers = {"Authorization": f"Bearer {ada.tokens['access_token']}"}
    async with serving(settings(database.api_url), database.superuser_dsn()) as second:
        assert (await second.http.get("/users/me", headers=headers)).status_code == 200
        await ada.http.post("/auth/logout")

        async def refused() -> bool:
            return (await second.http.get("/users/me", headers=headers)).status_code == 401

        await eventually(refused, what="the other process refuses the token")
    # One that starts later reads it before the token would expire.
    async with serving(settings(database.api_url), database.superuser_dsn()) as third:

        async def refused_there() -> bool:
            return (await third.http.get("/users/me", headers=headers)).status_code == 401

        await eventually(refused_there, what="the new process refuses the token")


async def test_a_closed_account_cannot_sign_in_or_refresh(api: Api) -> None:
    ada = await api.customer()
    api.execute("UPDATE users SET disabled_at = now()")
    refused = await api.http.post("/auth/login", json={"email": ada.email, "password": ada.password})
    assert (refused.status_code, error_of(refused)["code"]) == (401, "INVALID_CREDENTIALS")
    refused = await api.http.post("/auth/refresh", json={"refresh_token": ada.tokens["refresh_token"]})
    assert refused.status_code == 401


async def test_a_password_under_older_parameters_is_rehashed_at_sign_in(api: Api) -> None:
    from passlib.hash import argon2

    ada = await api.register()
    weak = argon2.using(type="ID", memory_cost=1024, time_cost=1, parallelism=1).hash(PASSWORD)
    api.execute("UPDATE users SET password_hash = %s", weak)
    await api.login(ada)
    (row,) = api.rows("SELECT password_hash FROM users")
    assert row["password_hash"] != weak
    assert "m=19456,t=2,p=1" in row["password_hash"]
    await api.login(ada)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("email", "nobody"), ("email", "a@b@c"), ("email", "x" * 250 + "@example.com"), ("password", "short"),
        ("password", "x" * 300), ("name", " \r\n"), ("currency", "usd"), ("country", "Germany"),
        ("timezone", "Mars/Olympus"), ("name", None), ("email", 7),
    ],
)  # fmt: skip
async def test_a_registration_that_is_not_valid_names_the_field(api: Api, field: str, value: object) -> None:
    wanted = {"email": "ada@example.com", "password": PASSWORD, "name": "Ada", field: value}
    answer = await api.http.post("/auth/register", json=wanted)
    assert answer.status_code == 422
    error = error_of(answer)
    assert (error["code"], error["details"]["field"]) == ("VALIDATION_ERROR", field)
    assert api.rows("SELECT id FROM users") == []


async def test_an_order_waits_for_the_verification_and_not_for_a_new_token(api: Api) -> None:
    """`Verified` looks again where the token says no, so that the mail's link is enough."""
    from api.deps import verified_caller

    ada = await api.login(await api.register())
    caller = api.context.tokens.read(ada.tokens["access_token"])
    from api.errors import ApiError

    with pytest.raises(ApiError) as refused:
        await verified_caller(api.context, caller)
    assert (refused.value.status, refused.value.code) == (403, "EMAIL_NOT_VERIFIED")
    await api.verify(ada)
    assert await verified_caller(api.context, caller) == caller


async def test_the_pages_of_mailed_links_do_what_the_mail_promised(api: Api) -> None:
    ada = await api.register()
    token = api.mailed_token(ada.email)
    shown = await api.http.get("http://api/verify-email", params={"token": token})
    assert (shown.status_code, token in shown.text) == (200, True)
    assert api.rows("SELECT email_verified_at FROM users") == [{"email_verified_at": None}]
    done = await api.http.post("http://api/verify-email", data={"token": token})
    assert "confirmed" in done.text
    assert (await api.http.post("http://api/verify-email", data={"token": token})).status_code == 422

    await api.http.post("/auth/forgot-password", json={"email": ada.email})
    token = api.mailed_token(ada.email, "password_reset")
    assert "New password" in (await api.http.get("http://api/reset-password", params={"token": token})).text
    short = await api.http.post("http://api/reset-password", data={"token": token, "password": "x"})
    assert short.status_code == 422
    done = await api.http.post("http://api/reset-password", data={"token": token, "password": "a longer password"})
    assert done.status_code == 200
    ada.password = "a longer password"
    await api.login(ada)


async def test_one_changes_ones_name_and_as_owner_the_organisation(api: Api) -> None:
    ada = await api.customer()
    wanted = {"name": "Countess", "organization": {"name": "Engines", "timezone": "Europe/London", "country": "GB"}}
    changed = (await ada.http.patch("/users/me", json=wanted)).json()["data"]
    assert (changed["name"], changed["organization"]["timezone"]) == ("Countess", "Europe/London")
    api.execute("UPDATE memberships SET role = 'member'")
    await api.login(ada)
    refused = await ada.http.patch("/users/me", json={"organization": {"name": "Mine"}})
    assert (refused.status_code, error_of(refused)["code"]) == (403, "FORBIDDEN")
