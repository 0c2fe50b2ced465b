"""The catalogue over HTTP: public, and in the shape that callers rely on."""

from __future__ import annotations

from tests.support.api import error_of
from tests.support.desk import PRO, STARTER, YEARLY, Shop


async def test_services_are_shown_to_everybody(shop: Shop) -> None:
    answer = await shop.api.http.get("/services")
    assert answer.status_code == 200
    content = answer.json()
    assert content["meta"]["next_cursor"] is None
    service = next(item for item in content["data"] if item["slug"] == "n8n")
    assert {"slug", "name", "category", "version", "plans"} <= set(service)
    plan = service["plans"][0]
    assert {"id", "code", "name", "interval", "trial_days", "resources", "prices"} <= set(plan)
    assert {"amount_minor": 1500, "currency": "USD"} in plan["prices"]
    alone = (await shop.api.http.get("/services/n8n")).json()["data"]
    assert alone == service


async def test_plans_are_paged_without_gap_or_repetition(shop: Shop) -> None:
    whole = [plan["code"] for plan in (await shop.api.http.get("/plans")).json()["data"]]
    seen: list[str] = []
    cursor: str | None = None
    while True:
        query = {"limit": "1"} | ({"cursor": cursor} if cursor else {})
        page = (await shop.api.http.get("/plans", params=query)).json()
        seen += [plan["code"] for plan in page["data"]]
        cursor = page["meta"]["next_cursor"]
        if cursor is None:
            break
    assert seen == whole == sorted(whole)


async def test_plans_are_filtered_and_cut_to_fields(shop: Shop) -> None:
    answer = await shop.api.http.get("/plans", params={"service": "n8n", "interval": "year", "fields": "code"})
    assert [sorted(plan) for plan in answer.json()["data"]] == [["code", "id"]]
    assert answer.json()["data"][0]["code"] == YEARLY


async def test_comparison_says_what_differs(shop: Shop) -> None:
    answer = await shop.api.http.get("/plans/compare", params={"plans": f"{STARTER},{PRO}"})
    assert answer.status_code == 200
    data = answer.json()["data"]
    assert [plan["code"] for plan in data["plans"]] == [STARTER, PRO]
    (difference,) = data["differences"]
    assert difference["resources"] == {
        "cpu_millicores": 1000, "memory_mib": 2048, "storage_gib": 30, "replicas": 0,
    }  # fmt: skip
    assert {"amount_minor": 3000, "currency": "USD"} in difference["prices"]
    assert difference["entitlements"]["custom_domains"] == {"from": 0, "to": 3}


async def test_a_comparison_is_of_two_to_six_plans(shop: Shop) -> None:
    for plans in ("", STARTER, f"{STARTER},{STARTER}", ",".join(f"p{n}" for n in range(7))):
        answer = await shop.api.http.get("/plans/compare", params={"plans": plans})
        assert (answer.status_code, error_of(answer)["details"]["field"]) == (422, "plans"), plans


async def test_what_is_not_sold_is_not_found(shop: Shop) -> None:
    for path in ("/services/none", "/plans/none", f"/plans/compare?plans={STARTER},none", "/coupons/none"):
        answer = await shop.api.http.get(path)
        assert (answer.status_code, error_of(answer)["code"]) == (404, "NOT_FOUND"), path


async def test_hidden_services_and_retired_plans_are_not_shown(shop: Shop) -> None:
    shop.api.execute("UPDATE plans SET retired = true WHERE code = %s", STARTER)
    shop.api.execute("UPDATE services SET published = false WHERE slug <> 'n8n'")
    (service,) = (await shop.api.http.get("/services")).json()["data"]
    assert STARTER not in [plan["code"] for plan in service["plans"]]
    assert (await shop.api.http.get(f"/plans/{STARTER}")).status_code == 404


async def test_a_coupon_says_whether_it_is_valid(shop: Shop) -> None:
    coupon = (await shop.api.http.get("/coupons/welcome10")).json()["data"]
    assert (coupon["code"], coupon["percent"], coupon["valid"]) == ("WELCOME10", 10, True)
    shop.api.execute("UPDATE coupons SET max_redemptions = 1, redeemed = 1")
    assert (await shop.api.http.get("/coupons/WELCOME10")).json()["data"]["valid"] is False
