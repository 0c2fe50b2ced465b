"""Signing up and signing in, as a stranger does it."""

from __future__ import annotations

import httpx
import pytest

from tests.e2e.steps import V1, done, key, refused
from tests.support.stack import Customer, RunningStack
from tests.support.wait import eventually_sync


def test_from_registration_to_logout(stack: RunningStack) -> None:
    email = f"new.{key()}@customer.example"
    stranger = stack.visitor({"email": email, "password": "a long enough password"})
    body = {
        **stranger.credentials,
        "name": "Zoë 🚢 Nováková",
        "country": "ID",
        "currency": "IDR",
        "timezone": "Asia/Jakarta",
    }
    made = done(stranger.call("POST", f"{V1}/auth/register", body), 201)
    assert made["user"].keys() >= {"id", "email", "name", "role", "email_verified"}
    assert made["organization"].keys() >= {"id", "name", "currency"}
    assert (made["user"]["email"], made["user"]["name"]) == (email, "Zoë 🚢 Nováková")
    assert (made["user"]["role"], made["user"]["email_verified"]) == ("USER", False)
    assert made["organization"]["currency"] == "IDR"
    refused(stranger.call("POST", f"{V1}/auth/register", body), 409, "EMAIL_TAKEN")
    refused(
        stranger.call("POST", f"{V1}/auth/login", {"email": email, "password": "wrong"}), 401, "INVALID_CREDENTIALS"
    )
    refused(stranger.call("GET", f"{V1}/users/me"), 401, "UNAUTHENTICATED")

    # Before the address is verified one may look, but not order.
    stranger.sign_in()
    plan = stranger.plan("n8n-starter")
    refused(
        stranger.call("POST", f"{V1}/subscriptions", {"plan_id": plan}, key="unverified"), 403, "EMAIL_NOT_VERIFIED"
    )

    token = stack.token_in_mail(email)
    refused(stranger.call("POST", f"{V1}/auth/verify-email", {"token": token[:-1]}), 422, "VALIDATION_ERROR")
    done(stranger.call("POST", f"{V1}/auth/verify-email", {"token": token}))

    status, answer = stranger.call("POST", f"{V1}/auth/login", stranger.credentials)
    tokens = done((status, answer))
    assert tokens.keys() >= {"access_token", "token_type", "expires_in", "refresh_token"}
    assert tokens["token_type"] == "Bearer"
    stranger.token = tokens["access_token"]
    me = stranger.get(f"{V1}/users/me")
    assert me.keys() >= {"id", "email", "name", "role", "organization"}
    assert me["id"] == made["user"]["id"]

    again = done(stranger.call("POST", f"{V1}/auth/refresh", {"refresh_token": tokens["refresh_token"]}))
    assert again.keys() >= {"access_token", "token_type", "expires_in", "refresh_token"}
    assert again["refresh_token"] != tokens["refresh_token"]
    stranger.token = again["access_token"]
    done(stranger.call("GET", f"{V1}/users/me"))
    done(stranger.call("POST", f"{V1}/auth/logout", {"refresh_token": again["refresh_token"]}))
    refused(stranger.call("GET", f"{V1}/users/me"), 401, "UNAUTHENTICATED")
    refused(
        stranger.call("POST", f"{V1}/auth/refresh", {"refresh_token": again["refresh_token"]}), 401, "UNAUTHENTICATED"
    )


@pytest.mark.scenario("S3")
def test_a_refresh_token_used_twice_ends_the_family(stack: RunningStack, customer: Customer) -> None:
    first = done(customer.call("POST", f"{V1}/auth/login", customer.credentials))
    second = done(customer.call("POST", f"{V1}/auth/refresh", {"refresh_token": first["refresh_token"]}))
    used_again = customer.call("POST", f"{V1}/auth/refresh", {"refresh_token": first["refresh_token"]})
    assert used_again[0] == 401
    assert customer.call("POST", f"{V1}/auth/refresh", {"refresh_token": second["refresh_token"]})[0] == 401
    thief = stack.visitor()
    thief.token = second["access_token"]
    refused(thief.call("GET", f"{V1}/users/me"), 401, "UNAUTHENTICATED")


def test_a_forgotten_password_is_set_anew_by_mail(stack: RunningStack, customer: Customer) -> None:
    email = customer.credentials["email"]
    # Whether an address is known is nobody's business.
    known = customer.call("POST", f"{V1}/auth/forgot-password", {"email": email})
    unknown = customer.call("POST", f"{V1}/auth/forgot-password", {"email": "nobody@customer.example"})
    assert (known[0], known[1]["message"]) == (unknown[0], unknown[1]["message"])

    def resets() -> list[str]:
        return [mail["text"] for mail in stack.mails(email) if "reset-password?token=" in mail["text"]]

    text = eventually_sync(resets, what="the mail about the password")[-1]
    token = text.partition("reset-password?token=")[2].split()[0]
    body = {"token": token, "password": "another long password"}
    done(customer.call("POST", f"{V1}/auth/reset-password", body))
    assert customer.call("POST", f"{V1}/auth/reset-password", body)[0] == 422
    refused(customer.call("POST", f"{V1}/auth/login", customer.credentials), 401, "INVALID_CREDENTIALS")
    done(customer.call("POST", f"{V1}/auth/login", {"email": email, "password": body["password"]}))
    refused(customer.call("GET", f"{V1}/users/me"), 401, "UNAUTHENTICATED")


def test_what_is_public_needs_no_token(stack: RunningStack) -> None:
    stranger = stack.visitor()
    services = done(stranger.call("GET", f"{V1}/services"))
    assert {"n8n", "wordpress"} <= {service["slug"] for service in services}
    for service in (found for found in services if found["slug"] in ("n8n", "wordpress")):
        assert service.keys() >= {"slug", "name", "category", "version", "plans"}
        for plan in service["plans"]:
            assert plan.keys() >= {"id", "code", "name", "interval", "trial_days", "resources", "prices"}
            assert {price["currency"] for price in plan["prices"]} == {"USD", "EUR", "IDR"}
    codes = {plan["code"] for service in services for plan in service["plans"]}
    assert {"n8n-starter", "n8n-pro", "n8n-pro-yearly", "n8n-trial"} <= codes
    one = done(stranger.call("GET", f"{V1}/services/n8n"))
    assert one in services
    refused(stranger.call("GET", f"{V1}/services/nothing"), 404, "NOT_FOUND")
    health = httpx.get(f"{stack.api}/health", timeout=10)
    assert (health.status_code, health.json()["status"]) == (200, "ok")
    told = httpx.get(f"{stack.api}/status", timeout=10)
    assert (told.status_code, told.json()["status"]) == (200, "ok"), told.text
    assert "# TYPE" in httpx.get(f"{stack.api}/metrics", timeout=10).text
