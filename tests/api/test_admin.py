"""Routes that only administrators may call."""

from __future__ import annotations

import httpx
import pytest
import pytest_asyncio

from tests.support.api import RegisteredUser, parse_error
from tests.support.fake_workflow_client import (
    PRO,
    STARTER,
    ApiWithCatalogue,
    insert_ledger_transaction,
    insert_payment,
    insert_refund,
)
from workflows.rules.errors import ErrorCode, RuleViolation
from workflows.rules.payment import RefundStatus

PLAN = {
    "service": "n8n", "code": "n8n-team", "name": "Team", "interval": "month", "cpu_millicores": 4000,
    "memory_mib": 8192, "storage_gib": 80, "prices": [{"amount_minor": 9900, "currency": "USD"}],
    "dunning": {"retry_days": [1, 2], "cancel_day": 10},
}  # fmt: skip


@pytest_asyncio.fixture
async def admin(seeded_api: ApiWithCatalogue) -> RegisteredUser:
    return await seeded_api.api.administrator()


async def test_administrator_routes_refuse_customers(seeded_api: ApiWithCatalogue) -> None:
    http, key = seeded_api.customer.http, seeded_api.customer.idempotency_header()
    refused: list[httpx.Response] = []
    for path in ("users", "organizations", "subscriptions", "audit-log", "payments", "services", "plans"):
        refused.append(await http.get(f"/admin/{path}"))
    adjustment = {
        "organization_id": seeded_api.customer.organization_id,
        "amount_minor": 1,
        "currency": "USD",
        "reason": "x",
    }
    refused.append(await http.post("/admin/billing/adjustments", json=adjustment, headers=key))
    refused.append(await http.post("/admin/plans", json=PLAN))
    for response in refused:
        assert (response.status_code, parse_error(response)["code"]) == (403, "FORBIDDEN"), response.url
    assert seeded_api.workflows.calls == []


async def test_an_adjustment_posts_one_ledger_transaction(seeded_api: ApiWithCatalogue, admin: RegisteredUser) -> None:
    body = {
        "organization_id": seeded_api.customer.organization_id,
        "amount_minor": 2500,
        "currency": "USD",
        "reason": "goodwill",
    }
    key = admin.idempotency_header()
    response = await admin.http.post("/admin/billing/adjustments", json=body, headers=key)
    assert response.status_code == 201, response.text
    data = response.json()["data"]
    assert (data["kind"], data["amount"]) == ("adjustment", {"amount_minor": 2500, "currency": "USD"})
    assert data["balance_after"]["amount_minor"] == 2500
    repeated = await admin.http.post("/admin/billing/adjustments", json=body, headers=key)
    assert repeated.json() == response.json()
    (order,) = seeded_api.workflows.commands_of("adjust_wallet")
    assert (order.reason, order.actor) == ("goodwill", admin.user_id)
    query = {"organization_id": seeded_api.customer.organization_id}
    listed = (await admin.http.get("/admin/billing/transactions", params=query)).json()["data"]
    assert [row["id"] for row in listed] == [data["id"]]


async def test_transactions_of_an_organization_are_paged(seeded_api: ApiWithCatalogue, admin: RegisteredUser) -> None:
    organization_id = seeded_api.customer.organization_id
    posted = [
        insert_ledger_transaction(seeded_api.api, organization_id, "top_up", amount_minor)
        for amount_minor in (100, 200, 300)
    ]
    query = {"organization_id": organization_id, "limit": "2"}
    first = (await admin.http.get("/admin/billing/transactions", params=query)).json()
    cursor = first["meta"]["next_cursor"]
    second = (await admin.http.get("/admin/billing/transactions", params=query | {"cursor": cursor})).json()
    assert [row["id"] for row in first["data"] + second["data"]] == posted[::-1]
    assert second["meta"]["next_cursor"] is None


async def test_an_invalid_adjustment_is_rejected(seeded_api: ApiWithCatalogue, admin: RegisteredUser) -> None:
    body = {"organization_id": "org_none", "amount_minor": 2500, "currency": "USD", "reason": "x"}
    response = await admin.http.post("/admin/billing/adjustments", json=body)
    assert (response.status_code, parse_error(response)["code"]) == (400, "IDEMPOTENCY_KEY_REQUIRED")
    response = await admin.http.post("/admin/billing/adjustments", json=body, headers=admin.idempotency_header())
    assert (response.status_code, parse_error(response)["code"]) == (404, "NOT_FOUND")
    body["organization_id"] = seeded_api.customer.organization_id
    for change in ({"amount_minor": 0}, {"amount_minor": 1.5}, {"reason": ""}, {"currency": "dollars"}):
        response = await admin.http.post(
            "/admin/billing/adjustments", json=body | change, headers=admin.idempotency_header()
        )
        assert (response.status_code, parse_error(response)["code"]) == (422, "VALIDATION_ERROR"), change
    seeded_api.workflows.raises = RuleViolation(ErrorCode.INSUFFICIENT_FUNDS, "The wallet would fall below zero.")
    response = await admin.http.post(
        "/admin/billing/adjustments", json=body | {"amount_minor": -1}, headers=admin.idempotency_header()
    )
    assert (response.status_code, parse_error(response)["code"]) == (402, "INSUFFICIENT_FUNDS")


async def test_a_refund_names_its_payment(seeded_api: ApiWithCatalogue, admin: RegisteredUser) -> None:
    mine = insert_payment(seeded_api.api, seeded_api.customer)
    body = {"payment_id": mine, "amount_minor": 500, "to": "wallet", "reason": "late"}
    response = await admin.http.post("/admin/billing/refunds", json=body, headers=admin.idempotency_header())
    assert response.status_code == 201, response.text
    data = response.json()["data"]
    assert (data["payment_id"], data["status"], data["amount"]["amount_minor"]) == (mine, "succeeded", 500)
    (order,) = seeded_api.workflows.commands_of("refund_payment")
    assert (order.organization_id, order.destination, order.amount.currency) == (
        seeded_api.customer.organization_id,
        "wallet",
        "USD",
    )
    full_refund = {"payment_id": mine, "to": "source", "reason": "all of it"}
    assert (
        await admin.http.post("/admin/billing/refunds", json=full_refund, headers=admin.idempotency_header())
    ).status_code == 201
    assert seeded_api.workflows.commands_of("refund_payment")[1].amount is None
    body["payment_id"] = "pay_none"
    response = await admin.http.post("/admin/billing/refunds", json=body, headers=admin.idempotency_header())
    assert (response.status_code, parse_error(response)["code"]) == (404, "NOT_FOUND")
    seeded_api.workflows.raises = RuleViolation(ErrorCode.REFUND_EXCEEDS_PAYMENT, "More than is left.")
    response = await admin.http.post("/admin/billing/refunds", json=full_refund, headers=admin.idempotency_header())
    assert (response.status_code, parse_error(response)["code"]) == (422, "REFUND_EXCEEDS_PAYMENT")


async def test_a_refund_that_the_gateway_refuses_at_once_is_not_called_refunded(
    seeded_api: ApiWithCatalogue, admin: RegisteredUser
) -> None:
    payment = insert_payment(seeded_api.api, seeded_api.customer)
    body = {"payment_id": payment, "amount_minor": 500, "to": "source", "reason": "late"}
    seeded_api.workflows.refund_status = RefundStatus.FAILED
    response = (await admin.http.post("/admin/billing/refunds", json=body, headers=admin.idempotency_header())).json()
    assert (response["data"]["status"], response["data"]["failure_code"]) == ("failed", "charge_already_refunded")
    assert response["message"] == "The refund failed."


@pytest.mark.parametrize("times_out", [False, True])
async def test_a_refund_that_the_gateway_has_not_decided_is_accepted_and_can_be_read(
    seeded_api: ApiWithCatalogue, admin: RegisteredUser, times_out: bool
) -> None:
    payment = insert_payment(seeded_api.api, seeded_api.customer)
    body = {"payment_id": payment, "amount_minor": 500, "to": "source", "reason": "late"}
    seeded_api.workflows.refund_status, seeded_api.workflows.times_out = RefundStatus.PENDING, times_out
    key = admin.idempotency_header()
    accepted = await admin.http.post("/admin/billing/refunds", json=body, headers=key)
    assert accepted.status_code == 202, accepted.text
    pending = accepted.json()["data"]
    assert (pending["status"], pending["amount"]) == ("pending", {"amount_minor": 500, "currency": "USD"})
    path = f"/admin/billing/refunds/{pending['id']}"
    assert (await admin.http.get(path)).status_code == 404
    insert_refund(seeded_api.api, seeded_api.customer, payment, pending["id"], status="pending")
    assert (await admin.http.get(path)).json()["data"] == pending
    assert (await admin.http.post("/admin/billing/refunds", json=body, headers=key)).status_code == 202
    seeded_api.api.execute("UPDATE refunds SET status = 'succeeded' WHERE id = %s", pending["id"])
    decided = await admin.http.post("/admin/billing/refunds", json=body, headers=key)
    assert (decided.status_code, decided.json()["data"]) == (201, pending | {"status": "succeeded"})
    assert (await admin.http.get(path)).json()["data"] == decided.json()["data"]
    assert (await seeded_api.customer.http.get(path)).status_code == 403


async def test_administrators_list_the_rows_of_every_organization(
    seeded_api: ApiWithCatalogue, admin: RegisteredUser
) -> None:
    other = await seeded_api.api.register_verified_user()
    owners = {
        seeded_api.insert_subscription(): seeded_api.customer,
        seeded_api.insert_subscription(account=other): other,
    }
    rows = (await admin.http.get("/admin/subscriptions")).json()["data"]
    assert {row["id"]: row["organization_id"] for row in rows} == {
        subscription: account.organization_id for subscription, account in owners.items()
    }
    query = {"organization_id": other.organization_id}
    assert len((await admin.http.get("/admin/subscriptions", params=query)).json()["data"]) == 1
    assert (await admin.http.get("/subscriptions")).json()["data"] == []
    users = (await admin.http.get("/admin/users", params={"email": seeded_api.customer.email.upper()})).json()["data"]
    assert [user["id"] for user in users] == [seeded_api.customer.user_id]
    assert "password" not in str(users)
    assert len((await admin.http.get("/admin/organizations")).json()["data"]) == 3


async def test_catalogue_changes_are_audited(seeded_api: ApiWithCatalogue, admin: RegisteredUser) -> None:
    response = await admin.http.post("/admin/plans", json=PLAN)
    assert response.status_code == 201, response.text
    plan = response.json()["data"]
    assert plan["prices"] == [{"amount_minor": 9900, "currency": "USD"}]
    (row,) = seeded_api.api.query_as_superuser("SELECT dunning_policy FROM plans WHERE code = 'n8n-team'")
    assert row["dunning_policy"] == {"retry_days": [1, 2], "cancel_day": 10}
    assert (await admin.http.post("/admin/plans", json=PLAN)).status_code == 409

    new_price = {"amount_minor": 10900, "currency": "USD"}
    response = await admin.http.post(f"/admin/plans/{plan['id']}/prices", json=new_price)
    assert response.status_code == 201
    public_plan = (await seeded_api.api.http.get(f"/plans/{plan['id']}")).json()["data"]
    assert public_plan["prices"] == [new_price]
    assert len(seeded_api.api.query_as_superuser("SELECT 1 FROM prices WHERE plan_id = %s", plan["id"])) == 2

    service = {
        "slug": "gitea", "name": "Gitea", "description": "Git", "category": "development", "template": "gitea",
        "version": "1", "published": False,
    }  # fmt: skip
    assert (await admin.http.post("/admin/services", json=service)).status_code == 201
    assert (await seeded_api.api.http.get("/services/gitea")).status_code == 404
    assert "gitea" in [row["slug"] for row in (await admin.http.get("/admin/services")).json()["data"]]

    coupon = {"code": "HALF", "kind": "percent", "percent": 50, "duration": "periods", "periods": 3}
    assert (await admin.http.post("/admin/coupons", json=coupon)).status_code == 201
    assert (await admin.http.post("/admin/coupons", json=coupon)).status_code == 409
    assert (await seeded_api.api.http.get("/coupons/half")).json()["data"]["periods"] == 3

    written = (await admin.http.get("/admin/audit-log", params={"actor": admin.user_id})).json()["data"]
    assert {
        "catalogue.plan_added", "catalogue.price_added", "catalogue.service_written", "catalogue.coupon_added",
    } <= {entry["action"] for entry in written}  # fmt: skip


async def test_an_invalid_plan_service_or_coupon_is_rejected(
    seeded_api: ApiWithCatalogue, admin: RegisteredUser
) -> None:
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
    before = seeded_api.api.query_as_superuser("SELECT count(*) FROM prices")
    for path, body in wrong:
        response = await admin.http.post(f"/admin/{path}", json=body)
        assert (response.status_code, parse_error(response)["code"]) == (422, "VALIDATION_ERROR"), body
    assert (await admin.http.post("/admin/plans", json=PLAN | {"service": "none"})).status_code == 404
    assert seeded_api.api.query_as_superuser("SELECT count(*) FROM prices") == before
    assert (await seeded_api.api.http.get(f"/plans/{STARTER}")).status_code == 200
