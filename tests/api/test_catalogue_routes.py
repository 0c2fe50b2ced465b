"""The catalogue over HTTP: public, and in the shape that callers rely on."""

from __future__ import annotations

from tests.support.api import parse_error
from tests.support.fake_workflow_client import PRO, STARTER, YEARLY, ApiWithCatalogue


async def test_services_are_public(seeded_api: ApiWithCatalogue) -> None:
    response = await seeded_api.api.http.get("/services")
    assert response.status_code == 200
    content = response.json()
    assert content["meta"]["next_cursor"] is None
    service = next(item for item in content["data"] if item["slug"] == "n8n")
    assert {"slug", "name", "category", "version", "plans"} <= set(service)
    plan = service["plans"][0]
    assert {"id", "code", "name", "interval", "trial_days", "resources", "prices"} <= set(plan)
    assert {"amount_minor": 1500, "currency": "USD"} in plan["prices"]
    alone = (await seeded_api.api.http.get("/services/n8n")).json()["data"]
    assert alone == service


async def test_plans_are_paged_without_gap_or_repetition(seeded_api: ApiWithCatalogue) -> None:
    all_codes = [plan["code"] for plan in (await seeded_api.api.http.get("/plans")).json()["data"]]
    paged_codes: list[str] = []
    cursor: str | None = None
    while True:
        query = {"limit": "1"} | ({"cursor": cursor} if cursor else {})
        page = (await seeded_api.api.http.get("/plans", params=query)).json()
        paged_codes += [plan["code"] for plan in page["data"]]
        cursor = page["meta"]["next_cursor"]
        if cursor is None:
            break
    assert paged_codes == all_codes == sorted(all_codes)


async def test_plans_are_filtered_and_reduced_to_the_requested_fields(seeded_api: ApiWithCatalogue) -> None:
    response = await seeded_api.api.http.get("/plans", params={"service": "n8n", "interval": "year", "fields": "code"})
    assert [sorted(plan) for plan in response.json()["data"]] == [["code", "id"]]
    assert response.json()["data"][0]["code"] == YEARLY


async def test_a_comparison_lists_the_differences(seeded_api: ApiWithCatalogue) -> None:
    response = await seeded_api.api.http.get("/plans/compare", params={"plans": f"{STARTER},{PRO}"})
    assert response.status_code == 200
    data = response.json()["data"]
    assert [plan["code"] for plan in data["plans"]] == [STARTER, PRO]
    (difference,) = data["differences"]
    assert difference["resources"] == {
        "cpu_millicores": 1000, "memory_mib": 2048, "storage_gib": 30, "replicas": 0,
    }  # fmt: skip
    assert {"amount_minor": 3000, "currency": "USD"} in difference["prices"]
    assert difference["entitlements"]["custom_domains"] == {"from": 0, "to": 3}


async def test_a_comparison_takes_two_to_six_plans(seeded_api: ApiWithCatalogue) -> None:
    for plans in ("", STARTER, f"{STARTER},{STARTER}", ",".join(f"p{n}" for n in range(7))):
        response = await seeded_api.api.http.get("/plans/compare", params={"plans": plans})
        assert (response.status_code, parse_error(response)["details"]["field"]) == (422, "plans"), plans


async def test_unknown_catalogue_entries_are_not_found(seeded_api: ApiWithCatalogue) -> None:
    for path in ("/services/none", "/plans/none", f"/plans/compare?plans={STARTER},none", "/coupons/none"):
        response = await seeded_api.api.http.get(path)
        assert (response.status_code, parse_error(response)["code"]) == (404, "NOT_FOUND"), path


async def test_hidden_services_and_retired_plans_are_not_shown(seeded_api: ApiWithCatalogue) -> None:
    seeded_api.api.execute("UPDATE plans SET is_retired = true WHERE code = %s", STARTER)
    seeded_api.api.execute("UPDATE services SET is_published = false WHERE slug <> 'n8n'")
    (service,) = (await seeded_api.api.http.get("/services")).json()["data"]
    assert STARTER not in [plan["code"] for plan in service["plans"]]
    assert (await seeded_api.api.http.get(f"/plans/{STARTER}")).status_code == 404


async def test_a_plan_that_is_not_shown_cannot_be_ordered_by_its_code(seeded_api: ApiWithCatalogue) -> None:
    seeded_api.api.execute("UPDATE plans SET is_public = false WHERE code = %s", STARTER)
    assert (await seeded_api.api.http.get(f"/plans/{STARTER}")).status_code == 404
    customer = seeded_api.customer
    response = await customer.http.post(
        "/subscriptions", json={"plan_id": STARTER}, headers=customer.idempotency_header()
    )
    assert (response.status_code, parse_error(response)["code"]) == (404, "NOT_FOUND")
    assert seeded_api.workflows.calls == []


async def test_a_coupon_reports_whether_it_is_valid(seeded_api: ApiWithCatalogue) -> None:
    coupon = (await seeded_api.api.http.get("/coupons/welcome10")).json()["data"]
    assert (coupon["code"], coupon["percent"], coupon["valid"]) == ("WELCOME10", 10, True)
    seeded_api.api.execute("UPDATE coupons SET max_redemptions = 1, redemption_count = 1")
    assert (await seeded_api.api.http.get("/coupons/WELCOME10")).json()["data"]["valid"] is False
