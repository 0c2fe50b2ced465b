"""Wallet, transactions and invoices over HTTP."""

from __future__ import annotations

import pytest

from tests.support.api import error_of
from tests.support.desk import Shop, invoice, payment, post
from workflows.rules.ids import derived


async def test_an_empty_wallet_has_the_accounts_currency(shop: Shop) -> None:
    nothing = [{"amount_minor": 0, "currency": "USD"}]
    answer = await shop.customer.http.get("/billing/wallet")
    assert answer.json()["data"] == {"balances": nothing, "held": nothing}
    assert (await shop.customer.http.get("/billing/transactions")).json()["data"] == []


async def test_transactions_sum_to_balances_plus_held(shop: Shop) -> None:
    account = shop.customer.organization_id
    post(shop.api, account, "top_up", 5000)
    post(shop.api, account, "charge", -1500)
    post(shop.api, account, "credit", 300, account="promotional")
    post(shop.api, account, "top_up", 700, account="held")
    post(shop.api, account, "top_up", 900, currency="EUR")
    post(shop.api, account, "hold", 0)
    post(shop.api, (await shop.api.customer()).organization_id, "top_up", 77)

    wallet = (await shop.customer.http.get("/billing/wallet")).json()["data"]
    assert {"amount_minor": 3800, "currency": "USD"} in wallet["balances"]
    assert {"amount_minor": 900, "currency": "EUR"} in wallet["balances"]
    assert {"amount_minor": 700, "currency": "USD"} in wallet["held"]

    shown = (await shop.customer.http.get("/billing/transactions")).json()["data"]
    assert [(row["kind"], row["amount"]["amount_minor"]) for row in shown] == [
        ("top_up", 900), ("top_up", 700), ("credit", 300), ("charge", -1500), ("top_up", 5000),
    ]  # fmt: skip
    assert [row["balance_after"]["amount_minor"] for row in shown] == [900, 4500, 3800, 3500, 5000]
    for currency in ("USD", "EUR"):
        owned = sum(
            amount["amount_minor"]
            for amount in (*wallet["balances"], *wallet["held"])
            if amount["currency"] == currency
        )
        moved = sum(row["amount"]["amount_minor"] for row in shown if row["amount"]["currency"] == currency)
        assert owned == moved

    page = (await shop.customer.http.get("/billing/transactions", params={"limit": "2"})).json()
    query = {"cursor": page["meta"]["next_cursor"]}
    rest = (await shop.customer.http.get("/billing/transactions", params=query)).json()
    assert page["data"] + rest["data"] == shown
    charges = (await shop.customer.http.get("/billing/transactions", params={"kind": "charge"})).json()["data"]
    assert [row["balance_after"]["amount_minor"] for row in charges] == [3500]


async def test_an_invoice_in_the_shape_that_callers_rely_on(shop: Shop) -> None:
    subscription = shop.subscription()
    mine = invoice(shop.api, shop.customer, subscription)
    shop.subscription()
    data = (await shop.customer.http.get(f"/billing/invoices/{mine}")).json()["data"]
    assert {
        "id", "number", "status", "issued_at", "paid_at", "period_start", "period_end", "lines", "subtotal", "tax",
        "total", "amount_due",
    } <= set(data)  # fmt: skip
    assert (data["total"], data["amount_due"]["amount_minor"]) == ({"amount_minor": 1500, "currency": "USD"}, 0)
    assert data["lines"][0]["amount"] == data["total"]
    listed = (await shop.customer.http.get("/billing/invoices", params={"subscription_id": subscription})).json()
    assert listed["data"] == [data]
    assert (await shop.customer.http.get("/billing/invoices", params={"subscription_id": "x"})).json()["data"] == []
    why = (await shop.customer.http.get(f"/billing/invoices/{mine}/explain")).json()["data"]
    assert (why["lines"], why["explanation"], why["payments"]) == (data["lines"], {"a": 1}, [])


async def test_the_kept_document_is_handed_out(shop: Shop) -> None:
    mine = invoice(shop.api, shop.customer, shop.subscription())
    draft = invoice(shop.api, shop.customer, shop.subscription(), status="draft", total=700)
    shop.api.execute(
        "INSERT INTO documents (id, organization_id, kind, ref, version, content_sha256, content)"
        " VALUES (%s, %s, 'invoice_pdf', %s, 'paid', 'abc', '%%PDF-1.4')",
        *(derived("doc", "invoice_pdf", mine), shop.customer.organization_id, mine),
    )
    answer = await shop.customer.http.get(f"/billing/invoices/{mine}/pdf")
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, "application/pdf")
    assert answer.content.startswith(b"%PDF")
    assert "BERTH-2026-" in answer.headers["Content-Disposition"]
    assert (await shop.customer.http.get(f"/billing/invoices/{draft}/pdf")).status_code == 404


@pytest.mark.scenario("S1")
async def test_somebody_elses_money_is_not_there(shop: Shop) -> None:
    other = await shop.api.customer()
    theirs = invoice(shop.api, other, shop.subscription(account=other))
    paid = payment(shop.api, other)
    for path in (f"invoices/{theirs}", f"invoices/{theirs}/explain", f"invoices/{theirs}/pdf", f"payments/{paid}"):
        answer = await shop.customer.http.get(f"/billing/{path}")
        assert (answer.status_code, error_of(answer)["code"]) == (404, "NOT_FOUND"), path
    for path in ("invoices", "payments", "transactions", "payment-methods"):
        assert (await shop.customer.http.get(f"/billing/{path}")).json()["data"] == []
