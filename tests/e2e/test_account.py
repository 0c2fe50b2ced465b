"""Signing up and signing in, as a stranger does it."""

from __future__ import annotations

import httpx
import pytest

from tests.e2e.steps import V1, assert_error, assert_success, new_key
from tests.support.running_stack import ApiUser, RunningStack
from tests.support.wait import wait_until_sync


def test_from_registration_to_logout(stack: RunningStack) -> None:
    email = f"new.{new_key()}@customer.example"
    stranger = stack.anonymous({"email": email, "password": "a long enough password"})
    body = {
        **stranger.credentials,
        "name": "Zoë 🚢 Nováková",
        "country": "ID",
        "currency": "IDR",
        "timezone": "Asia/Jakarta",
    }
    registered = assert_success(stranger.request("POST", f"{V1}/auth/register", body), 201)
    assert registered["user"].keys() >= {"id", "email", "name", "role", "email_verified"}
    assert registered["organization"].keys() >= {"id", "name", "currency"}
    assert (registered["user"]["email"], registered["user"]["name"]) == (email, "Zoë 🚢 Nováková")
    assert (registered["user"]["role"], registered["user"]["email_verified"]) == ("USER", False)
    assert registered["organization"]["currency"] == "IDR"
    assert_error(stranger.request("POST", f"{V1}/auth/register", body), 409, "EMAIL_TAKEN")
    assert_error(
        stranger.request("POST", f"{V1}/auth/login", {"email": email, "password": "wrong"}), 401, "INVALID_CREDENTIALS"
    )
    assert_error(stranger.request("GET", f"{V1}/users/me"), 401, "UNAUTHENTICATED")

    # Before the address is verified one may look, but not order.
    stranger.sign_in()
    plan = stranger.plan("n8n-starter")
    assert_error(
        stranger.request("POST", f"{V1}/subscriptions", {"plan_id": plan}, key="unverified"), 403, "EMAIL_NOT_VERIFIED"
    )

    token = stack.token_in_mail(email)
    assert_error(stranger.request("POST", f"{V1}/auth/verify-email", {"token": token[:-1]}), 422, "VALIDATION_ERROR")
    assert_success(stranger.request("POST", f"{V1}/auth/verify-email", {"token": token}))

    status, content = stranger.request("POST", f"{V1}/auth/login", stranger.credentials)
    tokens = assert_success((status, content))
    assert tokens.keys() >= {"access_token", "token_type", "expires_in", "refresh_token"}
    assert tokens["token_type"] == "Bearer"
    stranger.token = tokens["access_token"]
    me = stranger.get(f"{V1}/users/me")
    assert me.keys() >= {"id", "email", "name", "role", "organization"}
    assert me["id"] == registered["user"]["id"]

    refreshed = assert_success(
        stranger.request("POST", f"{V1}/auth/refresh", {"refresh_token": tokens["refresh_token"]})
    )
    assert refreshed.keys() >= {"access_token", "token_type", "expires_in", "refresh_token"}
    assert refreshed["refresh_token"] != tokens["refresh_token"]
    stranger.token = refreshed["access_token"]
    assert_success(stranger.request("GET", f"{V1}/users/me"))
    assert_success(stranger.request("POST", f"{V1}/auth/logout", {"refresh_token": refreshed["refresh_token"]}))
    assert_error(stranger.request("GET", f"{V1}/users/me"), 401, "UNAUTHENTICATED")
    assert_error(
        stranger.request("POST", f"{V1}/auth/refresh", {"refresh_token": refreshed["refresh_token"]}),
        401,
        "UNAUTHENTICATED",
    )


@pytest.mark.scenario("S3")
def test_a_refresh_token_used_twice_ends_the_family(stack: RunningStack, customer: ApiUser) -> None:
    first = assert_success(customer.request("POST", f"{V1}/auth/login", customer.credentials))
    second = assert_success(customer.request("POST", f"{V1}/auth/refresh", {"refresh_token": first["refresh_token"]}))
    used_again = customer.request("POST", f"{V1}/auth/refresh", {"refresh_token": first["refresh_token"]})
    assert used_again[0] == 401
    assert customer.request("POST", f"{V1}/auth/refresh", {"refresh_token": second["refresh_token"]})[0] == 401
    thief = stack.anonymous()
    thief.token = second["access_token"]
    assert_error(thief.request("GET", f"{V1}/users/me"), 401, "UNAUTHENTICATED")


def test_a_forgotten_password_is_reset_by_mail(stack: RunningStack, customer: ApiUser) -> None:
    email = customer.credentials["email"]
    # The response does not reveal whether an address is registered.
    existing = customer.request("POST", f"{V1}/auth/forgot-password", {"email": email})
    unknown = customer.request("POST", f"{V1}/auth/forgot-password", {"email": "nobody@customer.example"})
    assert (existing[0], existing[1]["message"]) == (unknown[0], unknown[1]["message"])

    def resets() -> list[str]:
        return [mail["text"] for mail in stack.mails(email) if "reset-password?token=" in mail["text"]]

    text = wait_until_sync(resets, description="the mail about the password")[-1]
    token = text.partition("reset-password?token=")[2].split()[0]
    body = {"token": token, "password": "another long password"}
    assert_success(customer.request("POST", f"{V1}/auth/reset-password", body))
    assert customer.request("POST", f"{V1}/auth/reset-password", body)[0] == 422
    assert_error(customer.request("POST", f"{V1}/auth/login", customer.credentials), 401, "INVALID_CREDENTIALS")
    assert_success(customer.request("POST", f"{V1}/auth/login", {"email": email, "password": body["password"]}))
    assert_error(customer.request("GET", f"{V1}/users/me"), 401, "UNAUTHENTICATED")


def test_public_routes_need_no_token(stack: RunningStack) -> None:
    stranger = stack.anonymous()
    services = assert_success(stranger.request("GET", f"{V1}/services"))
    assert {"n8n", "wordpress"} <= {service["slug"] for service in services}
    for service in (candidate for candidate in services if candidate["slug"] in ("n8n", "wordpress")):
        assert service.keys() >= {"slug", "name", "category", "version", "plans"}
        for plan in service["plans"]:
            assert plan.keys() >= {"id", "code", "name", "interval", "trial_days", "resources", "prices"}
            assert {price["currency"] for price in plan["prices"]} == {"USD", "EUR", "IDR"}
    codes = {plan["code"] for service in services for plan in service["plans"]}
    assert {"n8n-starter", "n8n-pro", "n8n-pro-yearly", "n8n-trial"} <= codes
    detail = assert_success(stranger.request("GET", f"{V1}/services/n8n"))
    assert detail in services
    assert_error(stranger.request("GET", f"{V1}/services/nothing"), 404, "NOT_FOUND")
    health = httpx.get(f"{stack.api}/health", timeout=10)
    assert (health.status_code, health.json()["status"]) == (200, "ok")
    status = httpx.get(f"{stack.api}/status", timeout=10)
    assert (status.status_code, status.json()["status"]) == (200, "ok"), status.text
    assert "# TYPE" in httpx.get(f"{stack.api}/metrics", timeout=10).text
