"""Every administrator's write leaves a row in the audit log, in the transaction that it describes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
import pytest_asyncio
from fastapi.routing import APIRoute
from temporalio.exceptions import ApplicationError

from activities.billing import PostgresBillingActivities
from activities.refunds import GatewayRefundActivities
from api.router_factory import PREFIX
from db.session import session_factory
from tests.support.api import RegisteredUser, parse_error
from tests.support.databases import DatabaseFixture
from tests.support.fake_workflow_client import (
    PRO,
    ApiWithCatalogue,
    FakeWorkflowClient,
    insert_ledger_transaction,
    insert_payment,
)
from workflows import names
from workflows.client import UpdateResult
from workflows.ports.refunds import RefundOutcome, ReserveRefund
from workflows.rules.errors import ErrorCode, RuleViolation
from workflows.rules.funding import GatewayTerms

NOW = datetime(2026, 4, 2, 12, tzinfo=UTC)
ADMIN = f"{PREFIX}/admin/"
SERVICE = {
    "slug": "gitea", "name": "Gitea", "description": "Git", "category": "development", "template": "gitea",
    "version": "1", "published": False,
}  # fmt: skip
PLAN = {
    "service": "n8n", "code": "n8n-team", "name": "Team", "interval": "month", "cpu_millicores": 4000,
    "memory_mib": 8192, "storage_gib": 80, "prices": [{"amount_minor": 9900, "currency": "USD"}],
}  # fmt: skip
PRICE = {"amount_minor": 10900, "currency": "USD"}
COUPON = {"code": "HALF", "kind": "percent", "percent": 50, "duration": "periods", "periods": 3}


class MoneyWorkflowClient(FakeWorkflowClient):
    """Runs money commands with the real activities, as the worker does."""

    billing: PostgresBillingActivities
    refunds: GatewayRefundActivities

    async def adjust_wallet(self, order: Any) -> str:
        try:
            return (await self.billing.adjust_wallet(order)).transaction_id
        except ApplicationError as error:
            raise RuleViolation(ErrorCode(str(error.type)), error.message) from error

    async def refund_payment(self, order: Any) -> UpdateResult[RefundOutcome]:
        outcome = await self.refunds.reserve(ReserveRefund(command=order, now=NOW))
        return UpdateResult(workflow_id=names.refund_workflow_id(order.refund_id), result=outcome)


@dataclass(frozen=True)
class Write:
    """Request of one write route (path parameters and body), and the action of its audit row."""

    body: Callable[[ApiWithCatalogue], dict[str, Any]]
    action: str
    path: dict[str, str]


def adjustment_body(seeded_api: ApiWithCatalogue) -> dict[str, Any]:
    return {
        "organization_id": seeded_api.customer.organization_id,
        "amount_minor": 2500,
        "currency": "USD",
        "reason": "goodwill",
    }


def full_refund_body(seeded_api: ApiWithCatalogue) -> dict[str, Any]:
    insert_ledger_transaction(seeded_api.api, seeded_api.customer.organization_id, "top_up", 1500)
    return {"payment_id": insert_payment(seeded_api.api, seeded_api.customer), "to": "source", "reason": "late"}


WRITES = {
    ("POST", "billing/adjustments"): Write(adjustment_body, "billing.adjustment_created", {}),
    ("POST", "billing/refunds"): Write(full_refund_body, "billing.refund_created", {}),
    ("POST", "services"): Write(lambda _: SERVICE, "catalogue.service_written", {}),
    ("POST", "plans"): Write(lambda _: PLAN, "catalogue.plan_added", {}),
    ("POST", "plans/{plan_id}/prices"): Write(lambda _: PRICE, "catalogue.price_added", {"plan_id": PRO}),
    ("POST", "coupons"): Write(lambda _: COUPON, "catalogue.coupon_added", {}),
}
"""By method and path below `/admin/`. Every new write route needs an entry here."""


@pytest_asyncio.fixture
async def admin(seeded_api: ApiWithCatalogue, database: DatabaseFixture) -> RegisteredUser:
    workflow_client, sessions = MoneyWorkflowClient(seeded_api.api), session_factory(database.worker)
    workflow_client.billing = PostgresBillingActivities(sessions, {"stripe": GatewayTerms(name="stripe")})
    workflow_client.refunds = GatewayRefundActivities(sessions, {})
    seeded_api.api.use_workflow_client(workflow_client)
    return await seeded_api.api.administrator()


def write_routes(seeded_api: ApiWithCatalogue) -> Iterator[tuple[str, str]]:
    for route in seeded_api.api.app.routes:
        if isinstance(route, APIRoute) and route.path.startswith(ADMIN):
            for method in sorted((route.methods or set()) - {"GET", "HEAD", "OPTIONS"}):
                yield method, route.path.removeprefix(ADMIN)


async def send(seeded_api: ApiWithCatalogue, account: RegisteredUser, method: str, path: str) -> httpx.Response:
    write = WRITES[method, path]
    url = "/admin/" + path.format(**write.path)
    return await account.http.request(method, url, json=write.body(seeded_api), headers=account.idempotency_header())


async def list_audit_entries(admin: RegisteredUser, **query: str) -> list[dict[str, Any]]:
    response = await admin.http.get("/admin/audit-log", params=query)
    assert response.status_code == 200, response.text
    rows: list[dict[str, Any]] = response.json()["data"]
    return rows


@pytest.mark.scenario("S14")
async def test_every_write_route_of_administrators_leaves_an_audit_row(
    seeded_api: ApiWithCatalogue, admin: RegisteredUser
) -> None:
    assert sorted(write_routes(seeded_api)) == sorted(WRITES)
    for method, path in WRITES:
        response = await send(seeded_api, admin, method, path)
        assert response.is_success, (path, response.text)
        rows = [row for row in await list_audit_entries(admin) if row["request_id"] == response.headers["X-Request-ID"]]
        assert [(row["actor"], row["action"]) for row in rows] == [(admin.user_id, WRITES[method, path].action)], path
        (row,) = rows
        assert row["object"], path
        assert row["after"], path
        assert row["ip"], path


async def test_an_adjustment_records_the_wallet_before_and_after(
    seeded_api: ApiWithCatalogue, admin: RegisteredUser
) -> None:
    body = adjustment_body(seeded_api)
    key = admin.idempotency_header()
    first = await admin.http.post("/admin/billing/adjustments", json=body, headers=key)
    assert (await admin.http.post("/admin/billing/adjustments", json=body, headers=key)).json() == first.json()
    less = await admin.http.post(
        "/admin/billing/adjustments", json=body | {"amount_minor": -500}, headers=admin.idempotency_header()
    )
    after, before = await list_audit_entries(admin, action="billing.adjustment_created")
    assert (before["object"], after["object"]) == (first.json()["data"]["id"], less.json()["data"]["id"])
    assert (before["reason"], before["organization_id"]) == ("goodwill", seeded_api.customer.organization_id)
    wallet = [row[side]["wallet"]["amount_minor"] for row in (before, after) for side in ("before", "after")]
    assert wallet == [0, 2500, 2500, 2000]
    assert after["after"]["amount"] == {"amount_minor": -500, "currency": "USD"}
    too_much = await admin.http.post(
        "/admin/billing/adjustments", json=body | {"amount_minor": -5000}, headers=admin.idempotency_header()
    )
    assert (too_much.status_code, parse_error(too_much)["code"]) == (402, "INSUFFICIENT_FUNDS")
    assert len(await list_audit_entries(admin, action="billing.adjustment_created")) == 2


async def test_a_refund_records_its_payment_before_and_after(
    seeded_api: ApiWithCatalogue, admin: RegisteredUser
) -> None:
    body = full_refund_body(seeded_api) | {"amount_minor": 500}
    refund = (await admin.http.post("/admin/billing/refunds", json=body, headers=admin.idempotency_header())).json()[
        "data"
    ]
    (row,) = await list_audit_entries(admin, object=refund["id"])
    assert (row["actor"], row["reason"], row["organization_id"]) == (
        admin.user_id, "late", seeded_api.customer.organization_id,
    )  # fmt: skip
    assert row["before"] == {"payment_status": "succeeded", "refunded_minor": 0}
    assert (row["after"]["payment_id"], row["after"]["refunded_minor"]) == (body["payment_id"], 500)
    assert row["after"]["amount"] == {"amount_minor": 500, "currency": "USD"}


async def test_a_refund_belongs_to_the_organization_of_its_payment(
    seeded_api: ApiWithCatalogue, admin: RegisteredUser
) -> None:
    other = await seeded_api.api.register_verified_user()
    body = full_refund_body(seeded_api)
    named = body | {"organization_id": other.organization_id}
    refused = await admin.http.post("/admin/billing/refunds", json=named, headers=admin.idempotency_header())
    assert refused.status_code == 422
    created = await admin.http.post("/admin/billing/refunds", json=body, headers=admin.idempotency_header())
    assert created.status_code == 202, created.text
    assert seeded_api.api.query_as_superuser("SELECT organization_id FROM refunds") == [
        {"organization_id": seeded_api.customer.organization_id}
    ]
    for account in (seeded_api.customer, other):
        response = await account.http.post("/admin/billing/refunds", json=body, headers=account.idempotency_header())
        assert (response.status_code, parse_error(response)["code"]) == (403, "FORBIDDEN")
    assert len(seeded_api.api.query_as_superuser("SELECT id FROM refunds")) == 1


async def test_a_catalogue_change_records_what_it_replaced(seeded_api: ApiWithCatalogue, admin: RegisteredUser) -> None:
    assert (await admin.http.post("/admin/services", json=SERVICE)).status_code == 201
    assert (await admin.http.post("/admin/services", json=SERVICE | {"version": "2"})).status_code == 201
    later, first = await list_audit_entries(admin, object="gitea", action="catalogue.service_written")
    assert first["before"] is None
    assert (later["before"]["version"], later["after"]["version"]) == ("1", "2")
    assert (later["before"] | {"version": "2"}) == later["after"]
    for amount in (10900, 11900):
        priced = await admin.http.post(f"/admin/plans/{PRO}/prices", json={"amount_minor": amount, "currency": "USD"})
        assert priced.status_code == 201, priced.text
    last, _ = await list_audit_entries(admin, action="catalogue.price_added")
    assert (last["before"]["amount_minor"], last["after"]["amount_minor"]) == (10900, 11900)


async def test_only_administrators_filter_and_page_the_audit_log(
    seeded_api: ApiWithCatalogue, admin: RegisteredUser
) -> None:
    for method, path in WRITES:
        assert (await send(seeded_api, admin, method, path)).is_success
    entries = await list_audit_entries(admin)
    assert [row["id"] for row in entries] == sorted((row["id"] for row in entries), reverse=True)
    entry = entries[2]
    assert await list_audit_entries(admin, actor=entry["actor"], action=entry["action"], object=entry["object"]) == [
        entry
    ]
    assert await list_audit_entries(admin, actor=seeded_api.customer.user_id, action=entry["action"]) == []
    assert await list_audit_entries(admin, object="nothing") == []
    paged: list[dict[str, Any]] = []
    query: dict[str, str] = {"limit": "2"}
    while True:
        page = (await admin.http.get("/admin/audit-log", params=query)).json()
        paged += page["data"]
        if page["meta"]["next_cursor"] is None:
            break
        query["cursor"] = page["meta"]["next_cursor"]
    assert paged == entries
    refused = await seeded_api.customer.http.get("/admin/audit-log")
    assert (refused.status_code, parse_error(refused)["code"]) == (403, "FORBIDDEN")
