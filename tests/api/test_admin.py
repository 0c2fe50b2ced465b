"""What administrators may do, and nobody else."""

from __future__ import annotations

import httpx
import pytest_asyncio

from tests.support.api import Account, error_of
from tests.support.desk import PRO, STARTER, Shop, payment
from workflows.rules.errors import Refusal, RuleBroken

PLAN = {
    "service": "n8n", "code": "n8n-team", "name": "Team", "interval": "month", "cpu_millicores": 4000,
    "memory_mib": 8192, "storage_gib": 80, "prices": [{"amount_minor": 9900, "currency": "USD"}],
    "dunning": {"retry_days": [1, 2], "cancel_day": 10},
}  # fmt: skip


@pytest_asyncio.fixture
async def root(shop: Shop) -> Account:
    return await shop.api.administrator()


async def test_customers_are_sent_away(shop: Shop) -> None:
    http, key = shop.customer.http, shop.customer.key()
    refused: list[httpx.Response] = []
    for path in ("users", "organizations", "subscriptions", "audit-log", "payments", "services", "plans"):
        refused.append(await http.get(f"/admin/{path}"))
    adjustment = {"organization_id": shop.customer.organization_id, "amount_minor": 1, "currency": "USD", "reason": "x"}
    refused.append(await http.post("/admin/billing/adjustments", json=adjustment, headers=key))
    refused.append(await http.post("/admin/plans", json=PLAN))
    for answer in refused:
        assert (answer.status_code, error_of(answer)["code"]) == (403, "FORBIDDEN"), answer.url
    assert shop.desk.calls == []


async def test_a_correction_is_a_transaction(shop: Shop, root: Account) -> None:
    body = {
        "organization_id": shop.customer.organization_id, "amount_minor": 2500, "currency": "USD", "reason": "goodwill",
    }  # fmt: skip
    key = root.key()
    answer = await root.http.post("/admin/billing/adjustments", json=body, headers=key)
    assert answer.status_code == 201, answer.text
    data = answer.json()["data"]
    assert (data["kind"], data["amount"]) == ("adjustment", {"amount_minor": 2500, "currency": "USD"})
    assert data["balance_after"]["amount_minor"] == 2500
    again = await root.http.post("/admin/billing/adjustments", json=body, headers=key)
    assert again.json() == answer.json()
    (order,) = shop.desk.ordered("adjust")
    assert (order.reason, order.actor) == ("goodwill", root.user_id)
    query = {"organization_id": shop.customer.organization_id}
    listed = (await root.http.get("/admin/billing/transactions", params=query)).json()["data"]
    assert [row["id"] for row in listed] == [data["id"]]


async def test_a_correction_that_cannot_be(shop: Shop, root: Account) -> None:
    body = {"organization_id": "org_none", "amount_minor": 2500, "currency": "USD", "reason": "x"}
    answer = await root.http.post("/admin/billing/adjustments", json=body)
    assert (answer.status_code, error_of(answer)["code"]) == (400, "IDEMPOTENCY_KEY_REQUIRED")
    answer = await root.http.post("/admin/billing/adjustments", json=body, headers=root.key())
    assert (answer.status_code, error_of(answer)["code"]) == (404, "NOT_FOUND")
    body["organization_id"] = shop.customer.organization_id
    for change in ({"amount_minor": 0}, {"amount_minor": 1.5}, {"reason": ""}, {"currency": "dollars"}):
        answer = await root.http.post("/admin/billing/adjustments", json=body | change, headers=root.key())
        assert (answer.status_code, error_of(answer)["code"]) == (422, "VALIDATION_ERROR"), change
    shop.desk.refuses = RuleBroken(Refusal.INSUFFICIENT_FUNDS, "The wallet would fall below zero.")
    answer = await root.http.post("/admin/billing/adjustments", json=body | {"amount_minor": -1}, headers=root.key())
    assert (answer.status_code, error_of(answer)["code"]) == (402, "INSUFFICIENT_FUNDS")


async def test_a_refund_names_its_payment(shop: Shop, root: Account) -> None:
    mine = payment(shop.api, shop.customer)
    body = {"payment_id": mine, "amount_minor": 500, "to": "wallet", "reason": "late"}
    answer = await root.http.post("/admin/billing/refunds", json=body, headers=root.key())
    assert answer.status_code == 201, answer.text
    data = answer.json()["data"]
    assert (data["payment_id"], data["status"], data["amount"]["amount_minor"]) == (mine, "succeeded", 500)
    (order,) = shop.desk.ordered("refund")
    assert (order.organization_id, order.to, order.amount.currency) == (shop.customer.organization_id, "wallet", "USD")
    whole = {"payment_id": mine, "to": "source", "reason": "all of it"}
    assert (await root.http.post("/admin/billing/refunds", json=whole, headers=root.key())).status_code == 201
    assert shop.desk.ordered("refund")[1].amount is None
    body["payment_id"] = "pay_none"
    answer = await root.http.post("/admin/billing/refunds", json=body, headers=root.key())
    assert (answer.status_code, error_of(answer)["code"]) == (404, "NOT_FOUND")
    shop.desk.refuses = RuleBroken(Refusal.REFUND_EXCEEDS_PAYMENT, "More than is left.")
    answer = await root.http.post("/admin/billing/refunds", json=whole, headers=root.key())
    assert (answer.status_code, error_of(answer)["code"]) == (422, "REFUND_EXCEEDS_PAYMENT")


async def test_administrators_see_every_account(shop: Shop, root: Account) -> None:
    other = await shop.api.customer()
    made = {shop.subscription(): shop.customer, shop.subscription(account=other): other}
    rows = (await root.http.get("/admin/subscriptions")).json()["data"]
    assert {row["id"]: row["organization_id"] for row in rows} == {
        subscription: account.organization_id for subscription, account in made.items()
    }
    query = {"organization_id": other.organization_id}
    assert len((await root.http.get("/admin/subscriptions", params=query)).json()["data"]) == 1
    assert (await root.http.get("/subscriptions")).json()["data"] == []
    users = (await root.http.get("/admin/users", params={"email": shop.customer.email.upper()})).json()["data"]
    assert [user["id"] for user in users] == [shop.customer.user_id]
    assert "password" not in str(users)
    assert len((await root.http.get("/admin/organizations")).json()["data"]) == 3


async def test_the_catalogue_is_written_and_the_writing_is_recorded(shop: Shop, root: Account) -> None:
    answer = await root.http.post("/admin/plans", json=PLAN)
    assert answer.status_code == 201, answer.text
    plan = answer.json()["data"]
    assert plan["prices"] == [{"amount_minor": 9900, "currency": "USD"}]
    (row,) = shop.api.rows("SELECT dunning FROM plans WHERE code = 'n8n-team'")
    assert row["dunning"] == {"retry_days": [1, 2], "cancel_day": 10}
    assert (await root.http.post("/admin/plans", json=PLAN)).status_code == 409

    dearer = {"amount_minor": 10900, "currency": "USD"}
    answer = await root.http.post(f"/admin/plans/{plan['id']}/prices", json=dearer)
    assert answer.status_code == 201
    shown = (await shop.api.http.get(f"/plans/{plan['id']}")).json()["data"]
    assert shown["prices"] == [dearer]
    assert len(shop.api.rows("SELECT 1 FROM prices WHERE plan_id = %s", plan["id"])) == 2

    service = {
        "slug": "gitea", "name": "Gitea", "description": "Git", "category": "development", "template": "gitea",
        "version": "1", "published": False,
    }  # fmt: skip
    assert (await root.http.post("/admin/services", json=service)).status_code == 201
    assert (await shop.api.http.get("/services/gitea")).status_code == 404
    assert "gitea" in [row["slug"] for row in (await root.http.get("/admin/services")).json()["data"]]

    coupon = {"code": "HALF", "kind": "percent", "percent": 50, "duration": "periods", "periods": 3}
    assert (await root.http.post("/admin/coupons", json=coupon)).status_code == 201
    assert (await root.http.post("/admin/coupons", json=coupon)).status_code == 409
    assert (await shop.api.http.get("/coupons/half")).json()["data"]["periods"] == 3

    written = (await root.http.get("/admin/audit-log", params={"actor": root.user_id})).json()["data"]
    assert {
        "catalogue.plan_added", "catalogue.price_added", "catalogue.service_written", "catalogue.coupon_added",
    } <= {entry["action"] for entry in written}  # fmt: skip


async def test_what_makes_no_sense_is_not_sold(shop: Shop, root: Account) -> None:
    wrong: tuple[tuple[str, dict[str, object]], ...] = (
        ("plans", PLAN | {"prices": []}),
        ("plans", PLAN | {"prices": [{"amount_minor": 1, "currency": "XXX"}]}),
        ("plans", PLAN | {"prices": [{"amount_minor": 1, "currency": "USD"}] * 2}),
        ("plans", PLAN | {"storage_gib": 0}),
        ("plans", PLAN | {"code": "Not A Code"}),
        ("plans", PLAN | {"dunning": {"retry_days": [3, 1]}}),
        (f"plans/{PRO}/prices", {"amount_minor": 1, "currency": "USD", "effective_from": "2001-01-01T00:00:00Z"}),
        (f"plans/{PRO}/prices", {"amount_minor": -1, "currency": "USD"}),
        ("coupons", {"code": "HALF", "kind": "percent", "duration": "once"}),
        ("coupons", {"code": "HALF", "kind": "fixed", "amount_minor": 5, "duration": "once"}),
        ("coupons", {"code": "HALF", "kind": "percent", "percent": 5, "duration": "periods"}),
    )
    before = shop.api.rows("SELECT count(*) FROM prices")
    for path, body in wrong:
        answer = await root.http.post(f"/admin/{path}", json=body)
        assert (answer.status_code, error_of(answer)["code"]) == (422, "VALIDATION_ERROR"), body
    assert (await root.http.post("/admin/plans", json=PLAN | {"service": "none"})).status_code == 404
    assert shop.api.rows("SELECT count(*) FROM prices") == before
    assert (await shop.api.http.get(f"/plans/{STARTER}")).status_code == 200
