"""A currency that money is not taken in is refused wherever one is sent."""

from __future__ import annotations

import pytest

from tests.support.api import ApiFixture, parse_error
from tests.support.fake_workflow_client import PRO, ApiWithCatalogue

COUPON = {"code": "TEN", "kind": "fixed", "amount_minor": 100, "duration": "once"}


@pytest.mark.parametrize("currency", ["XXX", "ZWL", "usd", "USD\n"])
async def test_an_account_is_opened_in_a_currency_that_is_taken(api: ApiFixture, currency: str) -> None:
    registration = {"email": "ada@example.com", "password": "correct horse", "name": "Ada", "currency": currency}
    response = await api.http.post("/auth/register", json=registration)
    error = parse_error(response)
    assert (response.status_code, error["code"], error["details"]["field"]) == (422, "VALIDATION_ERROR", "currency")
    assert api.query_as_superuser("SELECT 1 FROM users") == []


async def test_an_administrator_cannot_credit_another_currency(seeded_api: ApiWithCatalogue) -> None:
    administrator = await seeded_api.api.administrator()
    bodies: dict[str, dict[str, object]] = {
        "/admin/billing/adjustments": {
            "organization_id": seeded_api.customer.organization_id, "amount_minor": 100, "reason": "test",
        },
        "/admin/coupons": COUPON,
        f"/admin/plans/{PRO}/prices": {"amount_minor": 100},
    }  # fmt: skip
    for path, body in bodies.items():
        response = await administrator.http.post(
            path, json=body | {"currency": "XXX"}, headers=administrator.idempotency_header()
        )
        error = parse_error(response)
        assert (response.status_code, error["code"]) == (422, "VALIDATION_ERROR"), path
        assert error["details"] == {"field": "currency", "reason": "Unsupported currency."}, path
    assert seeded_api.workflows.commands_of("adjust_wallet") == []
