"""The API in front of the real subscription workflow: what is previewed is what is charged, and clocks move alone."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import pytest_asyncio

from tests.support.api import Account, Api, error_of, serving, settings
from tests.support.databases import Database
from tests.support.desk import post
from tests.support.life import World, world
from tests.support.temporal import Temporal
from tests.support.wait import eventually

ADVANCE = "/sandbox/clock/advance"


@dataclass
class Journey:
    api: Api
    life: World
    customer: Account

    async def order(self, plan: str = "starter") -> dict[str, Any]:
        answer = await self.customer.http.post("/subscriptions", json={"plan_id": plan}, headers=self.customer.key())
        assert answer.status_code == 201, answer.text
        return dict(answer.json()["data"])

    async def active(self, plan: str = "starter") -> str:
        self.life.outside.ready.set()
        identifier: str = (await self.order(plan))["id"]
        await self.life.until(identifier, "active", "trialing")
        return identifier

    async def advance(self, identifier: str, **to: object) -> datetime:
        answer = await self.customer.http.post(ADVANCE, json={"subscription_id": identifier} | to)
        assert answer.status_code == 200, answer.text
        return datetime.fromisoformat(answer.json()["data"]["now"])


@pytest_asyncio.fixture
async def journey(temporal: Temporal, database: Database) -> AsyncIterator[Journey]:
    async with (
        world(temporal, database) as life,
        serving(settings(database.api_url), database.superuser_dsn()) as api,
    ):
        api.give_orders_to(life.orchestrator)
        # Nobody sends mails here: they count as sent when they are written.
        api.execute("ALTER TABLE notifications ALTER COLUMN status SET DEFAULT 'sent'")
        customer = await api.customer()
        post(api, customer.organization_id, "top_up", 100_000)
        yield Journey(api, life, customer)


async def test_an_order_becomes_active_and_tells_its_story(journey: Journey) -> None:
    ordered = await journey.order()
    assert (ordered["status"], ordered["current_period"]) == ("provisioning", None)
    answer = await journey.customer.http.post(ADVANCE, json={"subscription_id": ordered["id"], "days": 1})
    assert (answer.status_code, error_of(answer)["code"]) == (409, "CONFLICT")
    journey.life.outside.ready.set()
    await journey.life.until(ordered["id"], "active")
    shown = (await journey.customer.http.get(f"/subscriptions/{ordered['id']}")).json()["data"]
    assert shown["current_period"] is not None
    story = (await journey.customer.http.get(f"/subscriptions/{ordered['id']}/timeline")).json()["data"]
    kinds = [event["kind"] for event in story]
    assert kinds[0] == "subscription.created"
    assert {"subscription.activated", "invoice.paid"} <= set(kinds)
    query = {"subscription_id": ordered["id"]}
    (invoice,) = (await journey.customer.http.get("/billing/invoices", params=query)).json()["data"]
    assert (invoice["status"], invoice["total"]["amount_minor"]) == ("paid", 500)


async def test_what_is_previewed_is_what_is_charged(journey: Journey) -> None:
    mine = await journey.active()
    await journey.advance(mine, days=10)
    body = {"plan_id": "pro"}
    address = f"/subscriptions/{mine}/change-plan"
    preview = (await journey.customer.http.post(f"{address}/preview", json=body)).json()["data"]
    assert preview["mode"] == "immediate"
    assert preview["next_invoice"]["amount_minor"] == 2000
    changed = await journey.customer.http.post(address, json=body, headers=journey.customer.key())
    assert (changed.status_code, changed.json()["data"]["plan"]["code"]) == (200, "pro"), changed.text
    query = {"subscription_id": mine, "status": "paid"}
    invoices = (await journey.customer.http.get("/billing/invoices", params=query)).json()["data"]
    (change,) = [row for row in invoices if row["kind"] == "change"]
    assert change["total"] == preview["due_now"]
    assert [(line["description"], line["amount"]) for line in change["lines"]] == [
        (line["description"], line["amount"]) for line in preview["lines"]
    ]
    back = {"plan_id": "starter", "mode": "immediate"}
    preview = (await journey.customer.http.post(f"{address}/preview", json=back)).json()["data"]
    assert preview["due_now"]["amount_minor"] == 0
    assert 0 < preview["credit"]["amount_minor"] <= 2000
    answer = await journey.customer.http.post(f"{address}/preview", json=body)
    assert (answer.status_code, error_of(answer)["code"]) == (409, "CONFLICT")


async def test_a_clock_moves_alone_and_answers_when_all_is_done(journey: Journey) -> None:
    mine, other = await journey.active(), await journey.active("pro")
    before = await journey.life.now(other)
    start = await journey.life.now(mine)
    reached = await journey.advance(mine, days=65)
    assert timedelta(days=65) <= reached - start < timedelta(days=65, minutes=1)
    kinds = [
        row["kind"] for row in journey.api.rows("SELECT kind FROM timeline_events WHERE subscription_id = %s", mine)
    ]
    assert kinds.count("subscription.renewed") == 2
    assert await journey.life.now(other) - before < timedelta(minutes=5)
    until = reached + timedelta(days=3)
    assert await journey.advance(mine, until=until.isoformat()) >= until
    assert await journey.advance(mine, until=start.isoformat()) >= until


async def test_a_subscription_that_ends_on_the_way_has_reached_the_target(journey: Journey) -> None:
    mine = await journey.active()
    answer = await journey.customer.http.post(f"/subscriptions/{mine}/cancel", json={"at": "now"})
    assert answer.json()["data"]["status"] == "cancelled"
    target = await journey.life.now(mine) + timedelta(days=31)
    assert await journey.advance(mine, until=target.isoformat()) == target
    await eventually(lambda: _terminated(journey, mine))
    assert await journey.advance(mine, until=target.isoformat()) == target


async def _terminated(journey: Journey, identifier: str) -> bool:
    shown = (await journey.customer.http.get(f"/subscriptions/{identifier}")).json()["data"]
    return bool(shown["status"] == "terminated")


async def test_only_its_owner_and_administrators_move_a_clock(journey: Journey) -> None:
    mine = await journey.active()
    stranger, root = await journey.api.customer(), await journey.api.administrator()
    body = {"subscription_id": mine, "days": 1}
    assert (await stranger.http.post(ADVANCE, json=body)).status_code == 404
    assert (await root.http.post(ADVANCE, json=body)).status_code == 200
    for wrong in (
        {},
        {"days": 1, "until": "2030-01-01T00:00:00Z"},
        {"days": -1},
        {"until": "2030-01-01T00:00:00"},
        {"until": "9999-01-01T00:00:00Z"},
    ):
        answer = await journey.customer.http.post(ADVANCE, json={"subscription_id": mine} | wrong)
        assert (answer.status_code, error_of(answer)["code"]) == (422, "VALIDATION_ERROR"), wrong


async def test_outside_of_the_sandbox_there_is_no_clock(database: Database) -> None:
    async with serving(settings(database.api_url, environment="test"), database.superuser_dsn()) as api:
        customer = await api.customer()
        answer = await customer.http.post(ADVANCE, json={"subscription_id": "x", "days": 1})
        assert (answer.status_code, error_of(answer)["code"]) == (404, "NOT_FOUND")
        schema = (await api.http.get("http://api/openapi.json")).text
        assert "sandbox" not in schema
