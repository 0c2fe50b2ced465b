"""Subscriptions over HTTP: ordering, what is answered when, ownership, and orders one at a time."""

from __future__ import annotations

import asyncio

import pytest

from tests.support.api import error_of
from tests.support.desk import AT, PERIOD_END, PRO, STARTER, Shop
from workflows.client import NotRunning, Unavailable
from workflows.rules.errors import Refusal, RuleBroken
from workflows.rules.ids import derived

ORDERS = (
    ("cancel", {"at": "now", "reason": "enough"}),
    ("resume", None),
    ("pause", None),
    ("retry-payment", None),
    ("change-plan", {"plan_id": PRO}),
)


async def test_an_order_answers_with_the_whole_subscription(shop: Shop) -> None:
    body = {"plan_id": STARTER, "name": "Mine", "parameters": {"timezone": "Europe/Paris"}, "coupon": "welcome10"}
    answer = await shop.customer.http.post("/subscriptions", json=body, headers={"Idempotency-Key": "k1"})
    assert answer.status_code == 201, answer.text
    data = answer.json()["data"]
    account = shop.customer.organization_id
    assert data["id"] == derived("sub", account, "k1")
    assert data["plan"]["code"] == STARTER
    assert data["workflow_id"] == f"subscription/{data['id']}"
    assert set(data["instance"]) == {"id", "status", "url", "hostname"}
    assert (data["status"], data["current_period"], data["cancel_at_period_end"]) == ("provisioning", None, False)
    (order,) = shop.desk.ordered("subscribe")
    assert (order.coupon, order.parameters_json, order.name) == ("WELCOME10", '{"timezone": "Europe/Paris"}', "Mine")
    assert (await shop.customer.http.get(f"/subscriptions/{data['id']}")).json()["data"] == data
    assert (await shop.customer.http.get("/subscriptions")).json()["data"] == [data]


async def test_an_order_needs_a_key_and_a_verified_address(shop: Shop) -> None:
    answer = await shop.customer.http.post("/subscriptions", json={"plan_id": STARTER})
    assert (answer.status_code, error_of(answer)["code"]) == (400, "IDEMPOTENCY_KEY_REQUIRED")
    unverified = await shop.api.login(await shop.api.register())
    answer = await unverified.http.post("/subscriptions", json={"plan_id": STARTER}, headers=unverified.key())
    assert (answer.status_code, error_of(answer)["code"]) == (403, "EMAIL_NOT_VERIFIED")
    assert shop.desk.calls == []


@pytest.mark.scenario("P1")
async def test_the_same_order_twice_is_one_and_another_body_is_refused(shop: Shop) -> None:
    key = {"Idempotency-Key": "twice"}
    first = await shop.customer.http.post("/subscriptions", json={"plan_id": STARTER}, headers=key)
    again = await shop.customer.http.post("/subscriptions", json={"plan_id": STARTER}, headers=key)
    assert (again.status_code, again.json(), again.headers["Idempotent-Replayed"]) == (201, first.json(), "true")
    other = await shop.customer.http.post("/subscriptions", json={"plan_id": PRO}, headers=key)
    assert (other.status_code, error_of(other)["code"]) == (422, "IDEMPOTENCY_KEY_REUSED")
    assert len(shop.desk.ordered("subscribe")) == 1


async def test_parameters_follow_the_services_schema(shop: Shop) -> None:
    wrong: tuple[tuple[dict[str, object], str], ...] = (
        ({"unknown": 1}, "parameters"),
        ({"execution_history_days": "ten"}, "parameters.execution_history_days"),
        ({"execution_history_days": 0}, "parameters.execution_history_days"),
        ({"timezone": "{{ 7 * 7 }}"}, "parameters.timezone"),
    )
    for parameters, field in wrong:
        body = {"plan_id": STARTER, "parameters": parameters}
        answer = await shop.customer.http.post("/subscriptions", json=body, headers=shop.customer.key())
        assert (answer.status_code, error_of(answer)["details"]["field"]) == (422, field)
        assert "{{" not in answer.text
    assert shop.desk.calls == []


async def test_an_unknown_plan_is_not_found(shop: Shop) -> None:
    answer = await shop.customer.http.post("/subscriptions", json={"plan_id": "x"}, headers=shop.customer.key())
    assert (answer.status_code, error_of(answer)["code"]) == (404, "NOT_FOUND")


async def test_a_refused_order_answers_with_its_code_and_leaves_nothing(shop: Shop) -> None:
    shop.desk.refuses = RuleBroken(Refusal.INSUFFICIENT_FUNDS, "Not enough.", {"missing_minor": "300"})
    answer = await shop.customer.http.post("/subscriptions", json={"plan_id": STARTER}, headers=shop.customer.key())
    error = error_of(answer)
    assert (answer.status_code, error["code"], error["details"]) == (
        402,
        "INSUFFICIENT_FUNDS",
        {"missing_minor": "300"},
    )
    assert (await shop.customer.http.get("/subscriptions")).json()["data"] == []


async def test_an_order_that_nobody_opened_yet_is_accepted_and_can_be_looked_up(shop: Shop) -> None:
    shop.desk.silent = True
    answer = await shop.customer.http.post("/subscriptions", json={"plan_id": STARTER}, headers=shop.customer.key())
    data = answer.json()["data"]
    assert (answer.status_code, data["status"], data["instance"]["status"]) == (202, "pending", "requested")
    address = f"/subscriptions/{data['id']}"
    assert (await shop.customer.http.get(address)).json()["data"] == data
    other = await shop.api.customer()
    assert (await other.http.get(address)).status_code == 404
    shop.desk.running = False
    assert (await shop.customer.http.get(address)).status_code == 404


async def test_without_temporal_orders_answer_503_and_reads_go_on(shop: Shop) -> None:
    mine = shop.subscription()
    shop.desk.refuses = Unavailable("away")
    key = shop.customer.key()
    answer = await shop.customer.http.post("/subscriptions", json={"plan_id": STARTER}, headers=key)
    assert (answer.status_code, error_of(answer)["code"]) == (503, "UNAVAILABLE")
    assert int(answer.headers["Retry-After"]) > 0
    assert (await shop.customer.http.post(f"/subscriptions/{mine}/pause")).status_code == 503
    assert (await shop.customer.http.get(f"/subscriptions/{mine}")).status_code == 200
    shop.desk.refuses = None
    assert (await shop.customer.http.post("/subscriptions", json={"plan_id": STARTER}, headers=key)).status_code == 201


@pytest.mark.scenario("S1")
async def test_somebody_elses_subscription_is_not_there(shop: Shop) -> None:
    theirs = shop.subscription(account=await shop.api.customer())
    address = f"/subscriptions/{theirs}"
    for path in ("", "/timeline"):
        answer = await shop.customer.http.get(address + path)
        assert (answer.status_code, error_of(answer)["code"]) == (404, "NOT_FOUND")
    for verb, body in (*ORDERS, ("change-plan/preview", {"plan_id": PRO})):
        answer = await shop.customer.http.post(f"{address}/{verb}", json=body)
        assert (answer.status_code, error_of(answer)["code"]) == (404, "NOT_FOUND"), verb
    assert (await shop.customer.http.get("/subscriptions")).json()["data"] == []
    assert shop.desk.calls == []


async def test_orders_reach_their_workflow_and_answer_with_the_subscription(shop: Shop) -> None:
    mine = shop.subscription()
    for verb, body in ORDERS:
        key = shop.customer.key()
        answer = await shop.customer.http.post(f"/subscriptions/{mine}/{verb}", json=body, headers=key)
        assert (answer.status_code, answer.json()["data"]["id"]) == (200, mine), answer.text
        again = await shop.customer.http.post(f"/subscriptions/{mine}/{verb}", json=body, headers=key)
        assert again.json() == answer.json()
        ((given, order),) = shop.desk.ordered(verb.replace("-", "_"))
        assert (given, order.actor) == (mine, shop.customer.user_id)


async def test_refusals_have_their_status(shop: Shop) -> None:
    mine = shop.subscription()
    refusals: tuple[tuple[Exception, int, str], ...] = (
        (RuleBroken(Refusal.ILLEGAL_MOVE, "No."), 409, "ILLEGAL_MOVE"),
        (RuleBroken(Refusal.PAYMENT_DECLINED, "No."), 402, "PAYMENT_DECLINED"),
        (NotRunning("ended"), 409, "ILLEGAL_MOVE"),
        (Unavailable("away"), 503, "UNAVAILABLE"),
    )
    for refusal, status, code in refusals:
        shop.desk.refuses = refusal
        answer = await shop.customer.http.post(f"/subscriptions/{mine}/resume")
        assert (answer.status_code, error_of(answer)["code"]) == (status, code)


async def test_a_cancellation_says_when(shop: Shop) -> None:
    mine = shop.subscription()
    for body in ({}, {"at": "tomorrow"}, {"at": "now", "reason": "x" * 501}):
        answer = await shop.customer.http.post(f"/subscriptions/{mine}/cancel", json=body)
        assert (answer.status_code, error_of(answer)["code"]) == (422, "VALIDATION_ERROR")


async def test_orders_on_one_subscription_take_turns(shop: Shop) -> None:
    mine = shop.subscription()
    answers = await asyncio.gather(*(shop.customer.http.post(f"/subscriptions/{mine}/pause") for _ in range(8)))
    assert [answer.status_code for answer in answers] == [200] * 8
    assert (len(shop.desk.ordered("pause")), shop.desk.most_at_once) == (8, 1)


async def test_the_list_is_paged_and_filtered(shop: Shop) -> None:
    made = {shop.subscription(), shop.subscription(status="paused"), shop.subscription()}
    seen: set[str] = set()
    cursor: str | None = None
    for _ in range(3):
        query = {"limit": "1"} | ({"cursor": cursor} if cursor else {})
        page = (await shop.customer.http.get("/subscriptions", params=query)).json()
        seen |= {row["id"] for row in page["data"]}
        cursor = page["meta"]["next_cursor"]
    assert (seen, cursor) == (made, None)
    paused = (await shop.customer.http.get("/subscriptions", params={"status": "paused"})).json()["data"]
    assert [row["status"] for row in paused] == ["paused"]
    assert paused[0]["current_period"] == {"start": "2026-04-01T12:00:00Z", "end": "2026-05-01T12:00:00Z"}


async def test_the_timeline_tells_the_story_in_order(shop: Shop) -> None:
    mine = shop.subscription()
    for at, kind in ((PERIOD_END, "subscription.renewed"), (AT, "subscription.created"), (AT, "instance.ready")):
        shop.api.execute(
            "INSERT INTO timeline_events (organization_id, subscription_id, at, kind, message, ref, fact)"
            " VALUES (%s, %s, %s, %s, 'said', NULL, %s)",
            *(shop.customer.organization_id, mine, at, kind, kind),
        )
    story = (await shop.customer.http.get(f"/subscriptions/{mine}/timeline")).json()
    told = ["subscription.created", "instance.ready", "subscription.renewed"]
    assert [event["kind"] for event in story["data"]] == told
    assert set(story["data"][0]) == {"at", "kind", "message", "ref"}
    page = (await shop.customer.http.get(f"/subscriptions/{mine}/timeline", params={"limit": "2"})).json()
    query = {"limit": "2", "cursor": page["meta"]["next_cursor"]}
    rest = (await shop.customer.http.get(f"/subscriptions/{mine}/timeline", params=query)).json()
    assert page["data"] + rest["data"] == story["data"]


async def test_nothing_is_shown_to_nobody(shop: Shop) -> None:
    for path in ("/subscriptions", "/instances", "/billing/wallet", "/admin/users"):
        answer = await shop.api.http.get(path)
        assert (answer.status_code, error_of(answer)["code"]) == (401, "UNAUTHENTICATED"), path
