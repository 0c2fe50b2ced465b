"""Registration, verification, sign-in, refresh and sign-out over HTTP."""

from __future__ import annotations

import asyncio

import pytest

from tests.support.api import PASSWORD, ApiFixture, parse_error, serve_api, settings
from tests.support.databases import DatabaseFixture
from tests.support.wait import wait_until


async def test_a_user_registers_verifies_signs_in_and_signs_out(api: ApiFixture) -> None:
    response = await api.http.post(
        "/auth/register",
        json={
            "email": "Ada@Example.com", "password": PASSWORD, "name": "Ada", "country": "DE", "currency": "EUR",
            "timezone": "Europe/Berlin",
        },
    )  # fmt: skip
    assert response.status_code == 201
    data = response.json()["data"]
    assert data["user"] | {"id": ""} == {
        "id": "", "email": "Ada@example.com", "name": "Ada", "role": "USER", "email_verified": False,
    }  # fmt: skip
    assert data["organization"]["currency"] == "EUR"

    token = api.latest_mail_token("ada@example.com")
    assert (await api.http.post("/auth/verify-email", json={"token": token})).status_code == 200
    repeated = await api.http.post("/auth/verify-email", json={"token": token})
    assert (repeated.status_code, parse_error(repeated)["code"]) == (422, "VALIDATION_ERROR")

    response = await api.http.post("/auth/login", json={"email": "ADA@example.com", "password": PASSWORD})
    first = response.json()["data"]
    assert (first["token_type"], first["expires_in"]) == ("Bearer", 900)
    response = await api.http.post("/auth/refresh", json={"refresh_token": first["refresh_token"]})
    second = response.json()["data"]
    assert second["refresh_token"] != first["refresh_token"]

    signed_in = api.client(Authorization=f"Bearer {second['access_token']}")
    me = (await signed_in.get("/users/me")).json()["data"]
    assert me["email_verified"] is True
    assert me["organization"] == data["organization"]
    assert (await signed_in.post("/auth/logout")).status_code == 200
    for access in (first["access_token"], second["access_token"]):
        refused = await api.http.get("/users/me", headers={"Authorization": f"Bearer {access}"})
        assert (refused.status_code, parse_error(refused)["code"]) == (401, "UNAUTHENTICATED")
    refused = await api.http.post("/auth/refresh", json={"refresh_token": second["refresh_token"]})
    assert refused.status_code == 401


async def test_one_welcome_mail_follows_the_verification(api: ApiFixture) -> None:
    ada = await api.register()
    await api.verify(ada)
    kinds = [row["kind"] for row in api.query_as_superuser("SELECT kind FROM notifications ORDER BY created_at, kind")]
    assert kinds == ["email_verification", "welcome"]


async def test_an_address_is_taken_whatever_its_case(api: ApiFixture) -> None:
    await api.register("ada@example.com")
    response = await api.http.post(
        "/auth/register", json={"email": "ADA@EXAMPLE.COM", "password": PASSWORD, "name": "Eve"}
    )
    assert (response.status_code, parse_error(response)["code"]) == (409, "EMAIL_TAKEN")
    assert api.query_as_superuser("SELECT count(*) AS n FROM organizations") == [{"n": 1}]


async def test_one_of_two_concurrent_registrations_succeeds(api: ApiFixture) -> None:
    body = {"email": "ada@example.com", "password": PASSWORD, "name": "Ada"}
    responses = await asyncio.gather(*(api.http.post("/auth/register", json=body) for _ in range(4)))
    assert sorted(response.status_code for response in responses) == [201, 409, 409, 409]


async def test_a_new_link_replaces_the_previous_one(api: ApiFixture) -> None:
    ada = await api.login(await api.register())
    old = api.latest_mail_token(ada.email)
    assert (await ada.http.post("/auth/resend-verification")).status_code == 200
    assert api.latest_mail_token(ada.email) != old
    assert (await api.http.post("/auth/verify-email", json={"token": old})).status_code == 422
    await api.verify(ada)


async def test_an_expired_link_does_nothing(api: ApiFixture) -> None:
    ada = await api.register()
    api.execute("UPDATE one_time_tokens SET expires_at = now() - interval '1 second'")
    response = await api.http.post("/auth/verify-email", json={"token": api.latest_mail_token(ada.email)})
    assert response.status_code == 422
    assert api.query_as_superuser("SELECT email_verified_at FROM users") == [{"email_verified_at": None}]


@pytest.mark.scenario("S3")
async def test_a_refresh_token_used_twice_ends_its_session(api: ApiFixture) -> None:
    ada = await api.register_verified_user()
    other = (await api.login(ada)).http
    stolen = ada.tokens["refresh_token"]
    renewed = (await api.http.post("/auth/refresh", json={"refresh_token": stolen})).json()["data"]
    third = (await api.http.post("/auth/refresh", json={"refresh_token": renewed["refresh_token"]})).json()["data"]

    refused = await api.http.post("/auth/refresh", json={"refresh_token": stolen})
    assert (refused.status_code, parse_error(refused)["code"]) == (401, "UNAUTHENTICATED")
    # The whole family is gone: the youngest refresh token, and every access token that grew from this sign-in.
    assert (await api.http.post("/auth/refresh", json={"refresh_token": third["refresh_token"]})).status_code == 401
    assert (await other.get("/users/me")).status_code == 401
    headers = {"Authorization": f"Bearer {third['access_token']}"}
    assert (await api.http.get("/users/me", headers=headers)).status_code == 401
    assert api.query_as_superuser("SELECT revocation_reason FROM user_sessions WHERE revoked_at IS NOT NULL") == [
        {"revocation_reason": "refresh_token_reuse_detected"}
    ]


async def test_an_expired_refresh_token_is_rejected_and_its_session_stays(api: ApiFixture) -> None:
    ada = await api.register_verified_user()
    api.execute("UPDATE refresh_tokens SET expires_at = now() - interval '1 second'")
    refused = await api.http.post("/auth/refresh", json={"refresh_token": ada.tokens["refresh_token"]})
    assert (refused.status_code, parse_error(refused)["code"]) == (401, "UNAUTHENTICATED")
    assert api.query_as_superuser(
        "SELECT revoked_at, used_at FROM user_sessions JOIN refresh_tokens ON session_id = user_sessions.id"
    ) == [{"revoked_at": None, "used_at": None}]
    assert (await ada.http.get("/users/me")).status_code == 200


async def test_a_used_refresh_token_ends_its_session_even_after_it_expired(api: ApiFixture) -> None:
    ada = await api.register_verified_user()
    body = {"refresh_token": ada.tokens["refresh_token"]}
    assert (await api.http.post("/auth/refresh", json=body)).status_code == 200
    api.execute("UPDATE refresh_tokens SET expires_at = now() - interval '1 second' WHERE used_at IS NOT NULL")
    assert (await api.http.post("/auth/refresh", json=body)).status_code == 401
    assert (await ada.http.get("/users/me")).status_code == 401


async def test_an_expired_session_is_rejected_and_not_listed(api: ApiFixture) -> None:
    ada = await api.register_verified_user()
    here = (await api.login(ada)).http
    api.execute("UPDATE user_sessions SET expires_at = now() - interval '1 second'")
    refused = await api.http.post("/auth/refresh", json={"refresh_token": ada.tokens["refresh_token"]})
    assert (refused.status_code, parse_error(refused)["code"]) == (401, "UNAUTHENTICATED")
    assert api.query_as_superuser("SELECT token_hash FROM refresh_tokens WHERE used_at IS NOT NULL") == []
    assert (await here.get("/users/me/sessions")).json()["data"] == []


@pytest.mark.scenario("S3")
async def test_one_of_two_concurrent_refreshes_succeeds_and_the_session_ends(api: ApiFixture) -> None:
    ada = await api.register_verified_user()
    body = {"refresh_token": ada.tokens["refresh_token"]}
    responses = await asyncio.gather(*(api.http.post("/auth/refresh", json=body) for _ in range(3)))
    statuses = sorted(response.status_code for response in responses)
    assert statuses == [200, 401, 401]
    (winner,) = [response.json()["data"] for response in responses if response.status_code == 200]
    refused = await api.http.post("/auth/refresh", json={"refresh_token": winner["refresh_token"]})
    assert refused.status_code == 401


async def test_a_password_reset_sends_one_mail_works_once_and_ends_every_session(api: ApiFixture) -> None:
    ada = await api.register_verified_user()
    assert (await api.http.post("/auth/forgot-password", json={"email": ada.email.upper()})).status_code == 200
    token = api.latest_mail_token(ada.email, "password_reset")
    body = {"token": token, "password": "another horse altogether"}
    assert (await api.http.post("/auth/reset-password", json=body)).status_code == 200
    assert (await api.http.post("/auth/reset-password", json=body)).status_code == 422
    assert (await ada.http.get("/users/me")).status_code == 401
    old = await api.http.post("/auth/login", json={"email": ada.email, "password": PASSWORD})
    assert (old.status_code, parse_error(old)["code"]) == (401, "INVALID_CREDENTIALS")
    ada.password = "another horse altogether"
    await api.login(ada)
    assert api.query_as_superuser("SELECT action FROM audit_log") == [{"action": "password_reset"}]


async def test_a_login_that_began_before_a_password_reset_does_not_outlive_it(
    api: ApiFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    ada = await api.register_verified_user()
    assert (await api.http.post("/auth/forgot-password", json={"email": ada.email})).status_code == 200
    reset = {"token": api.latest_mail_token(ada.email, "password_reset"), "password": "another horse altogether"}
    verify = api.context.passwords.verify

    async def verify_before_the_reset(password: str, hashed: str | None) -> tuple[bool, str | None]:
        result = await verify(password, hashed)
        assert (await api.http.post("/auth/reset-password", json=reset)).status_code == 200
        return result

    monkeypatch.setattr(api.context.passwords, "verify", verify_before_the_reset)
    response = await api.http.post("/auth/login", json={"email": ada.email, "password": PASSWORD})
    assert (response.status_code, parse_error(response)["code"]) == (401, "INVALID_CREDENTIALS")
    assert api.query_as_superuser("SELECT id FROM user_sessions WHERE revoked_at IS NULL") == []


async def test_a_verification_token_does_not_reset_a_password(api: ApiFixture) -> None:
    ada = await api.register()
    body = {"token": api.latest_mail_token(ada.email), "password": "another horse altogether"}
    assert (await api.http.post("/auth/reset-password", json=body)).status_code == 422
    await api.verify(ada)


async def test_changing_the_password_keeps_the_current_session(api: ApiFixture) -> None:
    ada = await api.register_verified_user()
    here = ada.http
    elsewhere = (await api.login(ada)).http
    body = {"current_password": "wrong", "password": "another horse altogether"}
    assert (await here.post("/users/me/password", json=body)).status_code == 401
    body["current_password"] = PASSWORD
    assert (await here.post("/users/me/password", json=body)).status_code == 200
    assert (await here.get("/users/me")).status_code == 200
    assert (await elsewhere.get("/users/me")).status_code == 401


async def test_sessions_are_listed_and_ended(api: ApiFixture) -> None:
    ada = await api.register_verified_user()
    here = ada.http
    elsewhere = (await api.login(ada)).http
    listed = (await here.get("/users/me/sessions")).json()
    assert listed["meta"]["total"] == 2
    (other,) = [item["id"] for item in listed["data"] if not item["current"]]
    assert (await here.delete(f"/users/me/sessions/{other}")).status_code == 200
    assert (await elsewhere.get("/users/me")).status_code == 401
    assert (await here.delete(f"/users/me/sessions/{other}")).status_code == 404
    assert len((await here.get("/users/me/sessions")).json()["data"]) == 1


async def test_signing_out_with_the_refresh_token_of_another_session_ends_both(api: ApiFixture) -> None:
    ada = await api.register_verified_user()
    here = ada.http
    elsewhere = await api.login(ada)
    body = {"refresh_token": elsewhere.tokens["refresh_token"]}
    assert (await here.post("/auth/logout", json=body)).status_code == 200
    assert (await here.get("/users/me")).status_code == 401
    assert (await elsewhere.http.get("/users/me")).status_code == 401


async def test_signing_out_with_the_refresh_token_of_another_user_spares_their_session(api: ApiFixture) -> None:
    ada, eve = await api.register_verified_user(), await api.register_verified_user()
    body = {"refresh_token": eve.tokens["refresh_token"]}
    assert (await ada.http.post("/auth/logout", json=body)).status_code == 200
    assert (await eve.http.get("/users/me")).status_code == 200


async def test_a_revocation_reaches_another_process(api: ApiFixture, database: DatabaseFixture) -> None:
    ada = await api.register_verified_user()
    headers = {"Authorization": f"Bearer {ada.tokens['access_token']}"}
    async with serve_api(settings(database.api_url), database.superuser_dsn()) as second:
        assert (await second.http.get("/users/me", headers=headers)).status_code == 200
        await ada.http.post("/auth/logout")

        async def refused() -> bool:
            return (await second.http.get("/users/me", headers=headers)).status_code == 401

        await wait_until(refused, description="the other process refuses the token")
    # One that starts later reads it before the token would expire.
    async with serve_api(settings(database.api_url), database.superuser_dsn()) as third:

        async def refused_there() -> bool:
            return (await third.http.get("/users/me", headers=headers)).status_code == 401

        await wait_until(refused_there, description="the new process refuses the token")


async def test_a_closed_account_cannot_sign_in_or_refresh(api: ApiFixture) -> None:
    ada = await api.register_verified_user()
    api.execute("UPDATE users SET disabled_at = now()")
    refused = await api.http.post("/auth/login", json={"email": ada.email, "password": ada.password})
    assert (refused.status_code, parse_error(refused)["code"]) == (401, "INVALID_CREDENTIALS")
    refused = await api.http.post("/auth/refresh", json={"refresh_token": ada.tokens["refresh_token"]})
    assert refused.status_code == 401


async def test_a_password_under_older_parameters_is_rehashed_at_sign_in(api: ApiFixture) -> None:
    from passlib.hash import argon2

    ada = await api.register()
    weak = argon2.using(type="ID", memory_cost=1024, time_cost=1, parallelism=1).hash(PASSWORD)
    api.execute("UPDATE users SET password_hash = %s", weak)
    await api.login(ada)
    (row,) = api.query_as_superuser("SELECT password_hash FROM users")
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
async def test_an_invalid_registration_names_the_field(api: ApiFixture, field: str, value: object) -> None:
    body = {"email": "ada@example.com", "password": PASSWORD, "name": "Ada", field: value}
    response = await api.http.post("/auth/register", json=body)
    assert response.status_code == 422
    error = parse_error(response)
    assert (error["code"], error["details"]["field"]) == ("VALIDATION_ERROR", field)
    assert api.query_as_superuser("SELECT id FROM users") == []


async def test_an_order_needs_a_verified_address_but_no_new_token(api: ApiFixture) -> None:
    """`VerifiedCaller` reads the database if the token says unverified, so that opening the mail's link is enough."""
    from api.dependencies.transactions import require_verified_email

    ada = await api.login(await api.register())
    caller = api.context.tokens.verify(ada.tokens["access_token"])
    from api.errors import ApiError

    with pytest.raises(ApiError) as refused:
        await require_verified_email(api.context, caller)
    assert (refused.value.status, refused.value.code) == (403, "EMAIL_NOT_VERIFIED")
    await api.verify(ada)
    assert await require_verified_email(api.context, caller) == caller


async def test_the_pages_behind_links_of_mails_verify_and_reset(api: ApiFixture) -> None:
    ada = await api.register()
    token = api.latest_mail_token(ada.email)
    page = await api.http.get("http://api/verify-email", params={"token": token})
    assert (page.status_code, token in page.text) == (200, True)
    assert api.query_as_superuser("SELECT email_verified_at FROM users") == [{"email_verified_at": None}]
    done = await api.http.post("http://api/verify-email", data={"token": token})
    assert "Email address verified" in done.text
    assert (await api.http.post("http://api/verify-email", data={"token": token})).status_code == 422

    await api.http.post("/auth/forgot-password", json={"email": ada.email})
    token = api.latest_mail_token(ada.email, "password_reset")
    assert "New password" in (await api.http.get("http://api/reset-password", params={"token": token})).text
    for password in ("x", "x" * 300):
        refused = await api.http.post("http://api/reset-password", data={"token": token, "password": password})
        assert refused.status_code == 422
        assert "The password must have 8 to 256 characters." in refused.text
    refused = await api.http.post("http://api/reset-password", data={"token": "", "password": "a longer password"})
    assert (refused.status_code, "The link is incomplete." in refused.text) == (422, True)
    done = await api.http.post("http://api/reset-password", data={"token": token, "password": "a longer password"})
    assert done.status_code == 200
    ada.password = "a longer password"
    await api.login(ada)


async def test_a_user_changes_their_name_and_an_owner_the_organization(api: ApiFixture) -> None:
    ada = await api.register_verified_user()
    body = {"name": "Countess", "organization": {"name": "Engines", "timezone": "Europe/London", "country": "GB"}}
    changed = (await ada.http.patch("/users/me", json=body)).json()["data"]
    assert (changed["name"], changed["organization"]["timezone"]) == ("Countess", "Europe/London")
    api.execute("UPDATE memberships SET role = 'member'")
    await api.login(ada)
    refused = await ada.http.patch("/users/me", json={"organization": {"name": "Mine"}})
    assert (refused.status_code, parse_error(refused)["code"]) == (403, "FORBIDDEN")
