"""Subscriptions over HTTP: orders, commands and their responses, ownership, and serialized commands."""

from __future__ import annotations

import asyncio

import pytest

from tests.support.api import parse_error
from tests.support.fake_workflow_client import NOW, PERIOD_END, PRO, STARTER, ApiWithCatalogue
from workflows.rpc_errors import TemporalUnavailable, WorkflowNotRunning
from workflows.rules.errors import ErrorCode, RuleViolation
from workflows.rules.ids import derive_id

ORDERS = (
    ("cancel", {"at": "now", "reason": "enough"}),
    ("resume", None),
    ("pause", None),
    ("retry-payment", None),
    ("change-plan", {"plan_id": PRO}),
)


async def test_an_order_returns_the_full_subscription(seeded_api: ApiWithCatalogue) -> None:
    body = {"plan_id": STARTER, "name": "Mine", "parameters": {"timezone": "Europe/Paris"}, "coupon": "welcome10"}
    response = await seeded_api.customer.http.post("/subscriptions", json=body, headers={"Idempotency-Key": "k1"})
    assert response.status_code == 201, response.text
    data = response.json()["data"]
    account = seeded_api.customer.organization_id
    assert data["id"] == derive_id("sub", account, "POST /api/v1/subscriptions", "k1")
    assert data["plan"]["code"] == STARTER
    assert data["workflow_id"] == f"subscription/{data['id']}"
    assert set(data["instance"]) == {"id", "status", "url", "hostname"}
    assert (data["status"], data["current_period"], data["cancel_at_period_end"]) == ("provisioning", None, False)
    (order,) = seeded_api.workflows.commands_of("create_subscription")
    assert (order.coupon, order.parameters, order.name) == ("WELCOME10", {"timezone": "Europe/Paris"}, "Mine")
    assert (await seeded_api.customer.http.get(f"/subscriptions/{data['id']}")).json()["data"] == data
    assert (await seeded_api.customer.http.get("/subscriptions")).json()["data"] == [data]


async def test_an_order_needs_a_key_and_a_verified_address(seeded_api: ApiWithCatalogue) -> None:
    response = await seeded_api.customer.http.post("/subscriptions", json={"plan_id": STARTER})
    assert (response.status_code, parse_error(response)["code"]) == (400, "IDEMPOTENCY_KEY_REQUIRED")
    unverified = await seeded_api.api.login(await seeded_api.api.register())
    response = await unverified.http.post(
        "/subscriptions", json={"plan_id": STARTER}, headers=unverified.idempotency_header()
    )
    assert (response.status_code, parse_error(response)["code"]) == (403, "EMAIL_NOT_VERIFIED")
    assert seeded_api.workflows.calls == []


@pytest.mark.scenario("P1")
async def test_a_repeated_order_creates_one_subscription_and_another_body_is_rejected(
    seeded_api: ApiWithCatalogue,
) -> None:
    key = {"Idempotency-Key": "twice"}
    first = await seeded_api.customer.http.post("/subscriptions", json={"plan_id": STARTER}, headers=key)
    repeated = await seeded_api.customer.http.post("/subscriptions", json={"plan_id": STARTER}, headers=key)
    assert (repeated.status_code, repeated.json(), repeated.headers["Idempotent-Replayed"]) == (
        201,
        first.json(),
        "true",
    )
    other = await seeded_api.customer.http.post("/subscriptions", json={"plan_id": PRO}, headers=key)
    assert (other.status_code, parse_error(other)["code"]) == (422, "IDEMPOTENCY_KEY_REUSED")
    assert len(seeded_api.workflows.commands_of("create_subscription")) == 1


async def test_parameters_are_validated_by_the_schema_of_the_service(seeded_api: ApiWithCatalogue) -> None:
    wordpress = "wordpress-starter"
    wrong: tuple[tuple[str, dict[str, object], str], ...] = (
        (STARTER, {"unknown": 1}, "parameters"),
        (STARTER, {"execution_history_days": "ten"}, "parameters.execution_history_days"),
        (STARTER, {"execution_history_days": 0}, "parameters.execution_history_days"),
        (STARTER, {"timezone": "{{ 7 * 7 }}"}, "parameters.timezone"),
        (STARTER, {"timezone": "Mars/Olympus"}, "parameters.timezone"),
        (STARTER, {"timezone": "europe/paris"}, "parameters.timezone"),
        (wordpress, {"admin_email": "@"}, "parameters.admin_email"),
        (wordpress, {"admin_email": "ada@example.com\nBcc: eve@example.com"}, "parameters.admin_email"),
    )
    for plan, parameters, field in wrong:
        body = {"plan_id": plan, "parameters": parameters}
        response = await seeded_api.customer.http.post(
            "/subscriptions", json=body, headers=seeded_api.customer.idempotency_header()
        )
        assert (response.status_code, parse_error(response)["details"]["field"]) == (422, field)
        assert "{{" not in response.text
    assert seeded_api.workflows.calls == []


@pytest.mark.scenario("P21")
@pytest.mark.parametrize("plan", [STARTER, "wordpress-starter"])
async def test_a_name_of_the_platform_cannot_be_ordered(seeded_api: ApiWithCatalogue, plan: str) -> None:
    customer = seeded_api.customer
    for name in ("www", "Login", "mail", "ns1", "xn--pple-43d"):
        body = {"plan_id": plan, "parameters": {"subdomain": name}}
        response = await customer.http.post("/subscriptions", json=body, headers=customer.idempotency_header())
        error = parse_error(response)
        assert (response.status_code, error["code"]) == (422, "VALIDATION_ERROR"), name
        assert error["details"]["field"] == "parameters.subdomain"
        assert error["details"]["reason"] == "This name is reserved. Choose another one."
    assert seeded_api.workflows.calls == []


async def test_an_unknown_plan_is_not_found(seeded_api: ApiWithCatalogue) -> None:
    response = await seeded_api.customer.http.post(
        "/subscriptions", json={"plan_id": "x"}, headers=seeded_api.customer.idempotency_header()
    )
    assert (response.status_code, parse_error(response)["code"]) == (404, "NOT_FOUND")


async def test_a_rejected_order_returns_its_code_and_creates_nothing(seeded_api: ApiWithCatalogue) -> None:
    seeded_api.workflows.raises = RuleViolation(ErrorCode.INSUFFICIENT_FUNDS, "Not enough.", {"missing_minor": "300"})
    response = await seeded_api.customer.http.post(
        "/subscriptions", json={"plan_id": STARTER}, headers=seeded_api.customer.idempotency_header()
    )
    error = parse_error(response)
    assert (response.status_code, error["code"], error["details"]) == (
        402,
        "INSUFFICIENT_FUNDS",
        {"missing_minor": "300"},
    )
    assert (await seeded_api.customer.http.get("/subscriptions")).json()["data"] == []


async def test_an_order_without_a_response_in_time_is_accepted_and_can_be_read(seeded_api: ApiWithCatalogue) -> None:
    seeded_api.workflows.times_out = True
    response = await seeded_api.customer.http.post(
        "/subscriptions", json={"plan_id": STARTER}, headers=seeded_api.customer.idempotency_header()
    )
    data = response.json()["data"]
    assert (response.status_code, data["status"], data["instance"]["status"]) == (202, "pending", "requested")
    address = f"/subscriptions/{data['id']}"
    assert (await seeded_api.customer.http.get(address)).json()["data"] == data
    other = await seeded_api.api.register_verified_user()
    assert (await other.http.get(address)).status_code == 404
    seeded_api.workflows.running = False
    refused = (await seeded_api.customer.http.get(address)).json()["data"]
    assert refused == data | {"status": "expired"}, "a refusal after the 202 leaves no row, and is said all the same"
    assert (await other.http.get(address)).status_code == 404


@pytest.mark.parametrize(("command", "body"), ORDERS)
async def test_a_command_reaches_an_accepted_order_that_is_not_recorded_yet(
    seeded_api: ApiWithCatalogue, command: str, body: dict[str, str] | None
) -> None:
    customer, workflows = seeded_api.customer, seeded_api.workflows
    workflows.times_out = True
    order_key, key = customer.idempotency_header(), customer.idempotency_header()
    order = (await customer.http.post("/subscriptions", json={"plan_id": STARTER}, headers=order_key)).json()["data"]
    address = f"/subscriptions/{order['id']}"
    accepted = await customer.http.post(f"{address}/{command}", json=body, headers=key)
    assert (accepted.status_code, accepted.json()["data"]) == (202, order)
    ((subscription_id, sent),) = workflows.commands_of(command.replace("-", "_"))
    assert (subscription_id, sent.actor) == (order["id"], customer.user_id)
    workflows.raises = RuleViolation(ErrorCode.ILLEGAL_MOVE, "A subscription that is pending cannot be paused.")
    refused = await customer.http.post(f"{address}/{command}", json=body)
    assert (refused.status_code, parse_error(refused)["code"]) == (409, "ILLEGAL_MOVE")
    other = await seeded_api.api.register_verified_user()
    assert (await other.http.post(f"{address}/{command}", json=body)).status_code == 404
    # The outcome is known before the rows can be read; the command is asked for again under its key.
    workflows.raises, workflows.times_out = None, False
    early = await customer.http.post(f"{address}/{command}", json=body, headers=key)
    assert (early.status_code, early.json()["data"]) == (202, order)
    await customer.http.post("/subscriptions", json={"plan_id": STARTER}, headers=order_key)
    done = await customer.http.post(f"{address}/{command}", json=body, headers=key)
    assert (done.status_code, done.json()["data"]["status"]) == (200, "provisioning")


async def test_an_accepted_order_that_is_not_recorded_yet_has_an_empty_timeline_and_no_plan_change(
    seeded_api: ApiWithCatalogue,
) -> None:
    customer = seeded_api.customer
    seeded_api.workflows.times_out = True
    order = await customer.http.post("/subscriptions", json={"plan_id": STARTER}, headers=customer.idempotency_header())
    address = f"/subscriptions/{order.json()['data']['id']}"
    timeline = await customer.http.get(f"{address}/timeline")
    assert (timeline.status_code, timeline.json()["data"]) == (200, [])
    preview = await customer.http.post(f"{address}/change-plan/preview", json={"plan_id": PRO})
    assert (preview.status_code, parse_error(preview)["code"]) == (409, "ILLEGAL_MOVE")
    other = await seeded_api.api.register_verified_user()
    assert (await other.http.get(f"{address}/timeline")).status_code == 404
    assert (await other.http.post(f"{address}/change-plan/preview", json={"plan_id": PRO})).status_code == 404


@pytest.mark.parametrize(("command", "body"), ORDERS)
async def test_a_command_without_an_outcome_in_time_is_accepted_and_asked_for_again(
    seeded_api: ApiWithCatalogue, command: str, body: dict[str, str] | None
) -> None:
    subscription_id = seeded_api.insert_subscription()
    path, key = f"/subscriptions/{subscription_id}/{command}", {"Idempotency-Key": "slow"}
    seeded_api.workflows.times_out = True
    accepted = await seeded_api.customer.http.post(path, json=body, headers=key)
    assert (accepted.status_code, accepted.json()["data"]["id"]) == (202, subscription_id)
    assert accepted.json()["message"] == "Accepted and in progress; poll the subscription for the outcome."
    seeded_api.workflows.times_out = False
    done = await seeded_api.customer.http.post(path, json=body, headers=key)
    assert (done.status_code, "Idempotent-Replayed" in done.headers) == (200, False)
    (_, first), (_, second) = seeded_api.workflows.commands_of(command.replace("-", "_"))
    assert first == second, "the same update is asked for again"


async def test_without_temporal_orders_return_503_and_reads_work(seeded_api: ApiWithCatalogue) -> None:
    mine = seeded_api.insert_subscription()
    seeded_api.workflows.raises = TemporalUnavailable("away")
    key = seeded_api.customer.idempotency_header()
    response = await seeded_api.customer.http.post("/subscriptions", json={"plan_id": STARTER}, headers=key)
    assert (response.status_code, parse_error(response)["code"]) == (503, "UNAVAILABLE")
    assert int(response.headers["Retry-After"]) > 0
    assert (await seeded_api.customer.http.post(f"/subscriptions/{mine}/pause")).status_code == 503
    assert (await seeded_api.customer.http.get(f"/subscriptions/{mine}")).status_code == 200
    seeded_api.workflows.raises = None
    assert (
        await seeded_api.customer.http.post("/subscriptions", json={"plan_id": STARTER}, headers=key)
    ).status_code == 201


@pytest.mark.scenario("S1")
async def test_a_subscription_of_another_organization_is_not_found(seeded_api: ApiWithCatalogue) -> None:
    theirs = seeded_api.insert_subscription(account=await seeded_api.api.register_verified_user())
    address = f"/subscriptions/{theirs}"
    for path in ("", "/timeline"):
        response = await seeded_api.customer.http.get(address + path)
        assert (response.status_code, parse_error(response)["code"]) == (404, "NOT_FOUND")
    for verb, body in (*ORDERS, ("change-plan/preview", {"plan_id": PRO})):
        response = await seeded_api.customer.http.post(f"{address}/{verb}", json=body)
        assert (response.status_code, parse_error(response)["code"]) == (404, "NOT_FOUND"), verb
    assert (await seeded_api.customer.http.get("/subscriptions")).json()["data"] == []
    assert seeded_api.workflows.calls == []


async def test_commands_reach_their_workflow_and_return_the_subscription(seeded_api: ApiWithCatalogue) -> None:
    mine = seeded_api.insert_subscription()
    for verb, body in ORDERS:
        key = seeded_api.customer.idempotency_header()
        response = await seeded_api.customer.http.post(f"/subscriptions/{mine}/{verb}", json=body, headers=key)
        assert (response.status_code, response.json()["data"]["id"]) == (200, mine), response.text
        repeated = await seeded_api.customer.http.post(f"/subscriptions/{mine}/{verb}", json=body, headers=key)
        assert repeated.json() == response.json()
        ((subscription_id, order),) = seeded_api.workflows.commands_of(verb.replace("-", "_"))
        assert (subscription_id, order.actor) == (mine, seeded_api.customer.user_id)


async def test_errors_of_commands_have_their_status(seeded_api: ApiWithCatalogue) -> None:
    mine = seeded_api.insert_subscription()
    errors: tuple[tuple[Exception, int, str], ...] = (
        (RuleViolation(ErrorCode.ILLEGAL_MOVE, "No."), 409, "ILLEGAL_MOVE"),
        (RuleViolation(ErrorCode.PAYMENT_DECLINED, "No."), 402, "PAYMENT_DECLINED"),
        (WorkflowNotRunning("ended"), 409, "ILLEGAL_MOVE"),
        (TemporalUnavailable("away"), 503, "UNAVAILABLE"),
    )
    for error, status, code in errors:
        seeded_api.workflows.raises = error
        response = await seeded_api.customer.http.post(f"/subscriptions/{mine}/resume")
        assert (response.status_code, parse_error(response)["code"]) == (status, code)


async def test_a_cancellation_returns_its_effective_time(seeded_api: ApiWithCatalogue) -> None:
    mine = seeded_api.insert_subscription()
    for body in ({}, {"at": "tomorrow"}, {"at": "now", "reason": "x" * 501}):
        response = await seeded_api.customer.http.post(f"/subscriptions/{mine}/cancel", json=body)
        assert (response.status_code, parse_error(response)["code"]) == (422, "VALIDATION_ERROR")


async def test_commands_on_one_subscription_run_one_at_a_time(seeded_api: ApiWithCatalogue) -> None:
    mine = seeded_api.insert_subscription()
    responses = await asyncio.gather(*(seeded_api.customer.http.post(f"/subscriptions/{mine}/pause") for _ in range(8)))
    assert [response.status_code for response in responses] == [200] * 8
    assert (len(seeded_api.workflows.commands_of("pause")), seeded_api.workflows.max_in_flight) == (8, 1)


async def test_the_list_is_paged_and_filtered(seeded_api: ApiWithCatalogue) -> None:
    created_ids = {
        seeded_api.insert_subscription(),
        seeded_api.insert_subscription(status="paused"),
        seeded_api.insert_subscription(),
    }
    paged_ids: set[str] = set()
    cursor: str | None = None
    for _ in range(3):
        query = {"limit": "1"} | ({"cursor": cursor} if cursor else {})
        page = (await seeded_api.customer.http.get("/subscriptions", params=query)).json()
        paged_ids |= {row["id"] for row in page["data"]}
        cursor = page["meta"]["next_cursor"]
    assert (paged_ids, cursor) == (created_ids, None)
    paused = (await seeded_api.customer.http.get("/subscriptions", params={"status": "paused"})).json()["data"]
    assert [row["status"] for row in paused] == ["paused"]
    assert paused[0]["current_period"] == {"start": "2026-04-01T12:00:00Z", "end": "2026-05-01T12:00:00Z"}


async def test_the_timeline_lists_events_in_order(seeded_api: ApiWithCatalogue) -> None:
    mine = seeded_api.insert_subscription()
    for at, kind in ((PERIOD_END, "subscription.renewed"), (NOW, "subscription.created"), (NOW, "instance.ready")):
        seeded_api.api.execute(
            "INSERT INTO timeline_events (organization_id, subscription_id, occurred_at, kind, message,"
            " reference_id, dedup_key)"
            " VALUES (%s, %s, %s, %s, 'said', NULL, %s)",
            *(seeded_api.customer.organization_id, mine, at, kind, kind),
        )
    timeline = (await seeded_api.customer.http.get(f"/subscriptions/{mine}/timeline")).json()
    expected_kinds = ["subscription.created", "instance.ready", "subscription.renewed"]
    assert [event["kind"] for event in timeline["data"]] == expected_kinds
    assert set(timeline["data"][0]) == {"at", "kind", "message", "ref"}
    page = (await seeded_api.customer.http.get(f"/subscriptions/{mine}/timeline", params={"limit": "2"})).json()
    query = {"limit": "2", "cursor": page["meta"]["next_cursor"]}
    next_page = (await seeded_api.customer.http.get(f"/subscriptions/{mine}/timeline", params=query)).json()
    assert page["data"] + next_page["data"] == timeline["data"]


async def test_anonymous_requests_are_rejected(seeded_api: ApiWithCatalogue) -> None:
    for path in ("/subscriptions", "/instances", "/billing/wallet", "/admin/users"):
        response = await seeded_api.api.http.get(path)
        assert (response.status_code, parse_error(response)["code"]) == (401, "UNAUTHENTICATED"), path
