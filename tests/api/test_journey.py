"""The API with the real subscription workflow: previews equal charges, and each subscription has its clock."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest_asyncio

from db.queries import ledger
from tests.support.api import ApiFixture, RegisteredUser, parse_error, serve_api, settings
from tests.support.databases import DatabaseFixture
from tests.support.fake_workflow_client import insert_ledger_transaction
from tests.support.subscription_fixture import SubscriptionFixture, run_subscription_fixture
from tests.support.temporal import TemporalFixture
from tests.support.wait import wait_until
from workflows.rules.ledger import paid_invoice_transaction
from workflows.rules.money import Money

ADVANCE = "/sandbox/clock/advance"


@dataclass
class ApiWithWorkflows:
    api: ApiFixture
    subscriptions: SubscriptionFixture
    customer: RegisteredUser

    async def order(self, plan: str = "starter") -> dict[str, Any]:
        response = await self.customer.http.post(
            "/subscriptions", json={"plan_id": plan}, headers=self.customer.idempotency_header()
        )
        assert response.status_code == 201, response.text
        return dict(response.json()["data"])

    async def active(self, plan: str = "starter") -> str:
        self.subscriptions.external.provisioning_done.set()
        identifier: str = (await self.order(plan))["id"]
        await self.subscriptions.wait_for_status(identifier, "active", "trialing")
        return identifier

    async def advance(self, identifier: str, **to: object) -> datetime:
        response = await self.customer.http.post(ADVANCE, json={"subscription_id": identifier} | to)
        assert response.status_code == 200, response.text
        return datetime.fromisoformat(response.json()["data"]["now"])


@pytest_asyncio.fixture
async def workflow_api(temporal: TemporalFixture, database: DatabaseFixture) -> AsyncIterator[ApiWithWorkflows]:
    async with (
        run_subscription_fixture(temporal, database) as subscriptions,
        serve_api(settings(database.api_url), database.superuser_dsn()) as api,
    ):
        api.use_workflow_client(subscriptions.workflows)
        # No dispatcher runs here, so that mails count as sent when they are inserted.
        api.execute("ALTER TABLE notifications ALTER COLUMN status SET DEFAULT 'sent'")
        customer = await api.register_verified_user()
        insert_ledger_transaction(api, customer.organization_id, "top_up", 100_000)
        yield ApiWithWorkflows(api, subscriptions, customer)


async def test_an_order_becomes_active_and_has_a_timeline(workflow_api: ApiWithWorkflows) -> None:
    ordered = await workflow_api.order()
    assert (ordered["status"], ordered["current_period"]) == ("provisioning", None)
    response = await workflow_api.customer.http.post(ADVANCE, json={"subscription_id": ordered["id"], "days": 1})
    assert (response.status_code, parse_error(response)["code"]) == (409, "CONFLICT")
    workflow_api.subscriptions.external.provisioning_done.set()
    await workflow_api.subscriptions.wait_for_status(ordered["id"], "active")
    subscription = (await workflow_api.customer.http.get(f"/subscriptions/{ordered['id']}")).json()["data"]
    assert subscription["current_period"] is not None
    timeline = (await workflow_api.customer.http.get(f"/subscriptions/{ordered['id']}/timeline")).json()["data"]
    kinds = [event["kind"] for event in timeline]
    assert kinds[0] == "subscription.created"
    assert {"subscription.activated", "invoice.paid"} <= set(kinds)
    query = {"subscription_id": ordered["id"]}
    (invoice,) = (await workflow_api.customer.http.get("/billing/invoices", params=query)).json()["data"]
    assert (invoice["status"], invoice["total"]["amount_minor"]) == ("paid", 500)


async def test_an_order_is_shown_as_its_rows_are_read(workflow_api: ApiWithWorkflows) -> None:
    body = {"plan_id": "pro", "name": "Mine", "parameters": {}}
    response = await workflow_api.customer.http.post(
        "/subscriptions", json=body, headers=workflow_api.customer.idempotency_header()
    )
    data = response.json()["data"]
    assert (response.status_code, data["price"], data["name"]) == (
        201,
        {"amount_minor": 2000, "currency": "USD"},
        "Mine",
    )
    assert data["instance"]["hostname"].endswith(".apps.test")
    assert (await workflow_api.customer.http.get(f"/subscriptions/{data['id']}")).json()["data"] == data


async def test_what_is_previewed_is_what_is_charged(workflow_api: ApiWithWorkflows) -> None:
    mine = await workflow_api.active()
    await workflow_api.advance(mine, days=10)
    body = {"plan_id": "pro"}
    address = f"/subscriptions/{mine}/change-plan"
    await carry_debt(workflow_api, 20)
    preview = (await workflow_api.customer.http.post(f"{address}/preview", json=body)).json()["data"]
    assert preview["mode"] == "immediate"
    assert preview["next_invoice"]["amount_minor"] == 2000
    assert preview["carried_debt"] == {"amount_minor": 20, "currency": "USD"}
    changed = await workflow_api.customer.http.post(
        address, json=body, headers=workflow_api.customer.idempotency_header()
    )
    assert (changed.status_code, changed.json()["data"]["plan"]["code"]) == (200, "pro"), changed.text
    query = {"subscription_id": mine, "status": "paid"}
    invoices = (await workflow_api.customer.http.get("/billing/invoices", params=query)).json()["data"]
    (change,) = [row for row in invoices if row["kind"] == "change"]
    assert change["total"] == preview["due_now"]
    assert [(line["description"], line["amount"]) for line in change["lines"]] == [
        (line["description"], line["amount"]) for line in preview["lines"]
    ]
    back = {"plan_id": "starter", "mode": "immediate"}
    preview = (await workflow_api.customer.http.post(f"{address}/preview", json=back)).json()["data"]
    assert preview["due_now"]["amount_minor"] == 0
    assert 0 < preview["credit"]["amount_minor"] <= 2000
    response = await workflow_api.customer.http.post(f"{address}/preview", json=body)
    assert (response.status_code, parse_error(response)["code"]) == (409, "CONFLICT")


async def carry_debt(workflow_api: ApiWithWorkflows, amount_minor: int) -> None:
    """Post a charge that is too small for the gateway and becomes debt, in cents."""
    zero = Money(amount_minor=0, currency="USD")
    posting = paid_invoice_transaction(
        promotional=zero, wallet=zero, held=zero, tax=zero, carried=Money(amount_minor=amount_minor, currency="USD")
    )
    async with workflow_api.subscriptions.sessions.begin() as session:
        await ledger.post_transaction(
            session,
            posting,
            transaction_id="tx_carried",
            organization_id=workflow_api.customer.organization_id,
            at=datetime.now(UTC),
            ref=None,
            description="carried",
            idempotency_key="carried",
        )


async def test_a_clock_advances_one_subscription_and_waits_for_its_work(workflow_api: ApiWithWorkflows) -> None:
    mine, other = await workflow_api.active(), await workflow_api.active("pro")
    before = await workflow_api.subscriptions.now(other)
    start = await workflow_api.subscriptions.now(mine)
    reached = await workflow_api.advance(mine, days=65)
    assert timedelta(days=65) <= reached - start < timedelta(days=65, minutes=1)
    kinds = [
        row["kind"]
        for row in workflow_api.api.query_as_superuser(
            "SELECT kind FROM timeline_events WHERE subscription_id = %s", mine
        )
    ]
    assert kinds.count("subscription.renewed") == 2
    assert await workflow_api.subscriptions.now(other) - before < timedelta(minutes=5)
    until = reached + timedelta(days=3)
    assert await workflow_api.advance(mine, until=until.isoformat()) >= until
    assert await workflow_api.advance(mine, until=start.isoformat()) >= until


async def test_a_subscription_that_ends_on_the_way_has_reached_the_target(workflow_api: ApiWithWorkflows) -> None:
    mine = await workflow_api.active()
    response = await workflow_api.customer.http.post(f"/subscriptions/{mine}/cancel", json={"at": "now"})
    assert response.json()["data"]["status"] == "cancelled"
    target = await workflow_api.subscriptions.now(mine) + timedelta(days=31)
    assert await workflow_api.advance(mine, until=target.isoformat()) == target
    await wait_until(lambda: _terminated(workflow_api, mine))
    assert await workflow_api.advance(mine, until=target.isoformat()) == target


async def _terminated(workflow_api: ApiWithWorkflows, identifier: str) -> bool:
    subscription = (await workflow_api.customer.http.get(f"/subscriptions/{identifier}")).json()["data"]
    return bool(subscription["status"] == "terminated")


async def test_only_its_owner_and_administrators_move_a_clock(workflow_api: ApiWithWorkflows) -> None:
    mine = await workflow_api.active()
    stranger, administrator = await workflow_api.api.register_verified_user(), await workflow_api.api.administrator()
    body = {"subscription_id": mine, "days": 1}
    assert (await stranger.http.post(ADVANCE, json=body)).status_code == 404
    assert (await administrator.http.post(ADVANCE, json=body)).status_code == 200
    for wrong in (
        {},
        {"days": 1, "until": "2030-01-01T00:00:00Z"},
        {"days": -1},
        {"until": "2030-01-01T00:00:00"},
        {"until": "9999-01-01T00:00:00Z"},
    ):
        response = await workflow_api.customer.http.post(ADVANCE, json={"subscription_id": mine} | wrong)
        assert (response.status_code, parse_error(response)["code"]) == (422, "VALIDATION_ERROR"), wrong


async def test_outside_of_the_sandbox_there_is_no_clock(database: DatabaseFixture) -> None:
    async with serve_api(settings(database.api_url, environment="test"), database.superuser_dsn()) as api:
        customer = await api.register_verified_user()
        response = await customer.http.post(ADVANCE, json={"subscription_id": "x", "days": 1})
        assert (response.status_code, parse_error(response)["code"]) == (404, "NOT_FOUND")
        schema = (await api.http.get("http://api/openapi.json")).text
        assert "sandbox" not in schema
