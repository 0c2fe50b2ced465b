"""Wallet, transactions and invoices over HTTP."""

from __future__ import annotations

import pytest

from tests.support.api import parse_error
from tests.support.fake_workflow_client import (
    ApiWithCatalogue,
    insert_invoice,
    insert_ledger_transaction,
    insert_payment,
)
from workflows.rules.ids import derive_id


async def test_an_empty_wallet_has_the_accounts_currency(seeded_api: ApiWithCatalogue) -> None:
    zero_balance = [{"amount_minor": 0, "currency": "USD"}]
    response = await seeded_api.customer.http.get("/billing/wallet")
    assert response.json()["data"] == {"balances": zero_balance, "held": zero_balance}
    assert (await seeded_api.customer.http.get("/billing/transactions")).json()["data"] == []


async def test_transactions_sum_to_balances_plus_held(seeded_api: ApiWithCatalogue) -> None:
    account = seeded_api.customer.organization_id
    insert_ledger_transaction(seeded_api.api, account, "top_up", 5000)
    insert_ledger_transaction(seeded_api.api, account, "charge", -1500)
    insert_ledger_transaction(seeded_api.api, account, "credit", 300, account="promotional")
    insert_ledger_transaction(seeded_api.api, account, "top_up", 700, account="held")
    insert_ledger_transaction(seeded_api.api, account, "top_up", 900, currency="EUR")
    insert_ledger_transaction(seeded_api.api, account, "hold", 0)
    insert_ledger_transaction(
        seeded_api.api, (await seeded_api.api.register_verified_user()).organization_id, "top_up", 77
    )

    wallet = (await seeded_api.customer.http.get("/billing/wallet")).json()["data"]
    assert {"amount_minor": 3800, "currency": "USD"} in wallet["balances"]
    assert {"amount_minor": 900, "currency": "EUR"} in wallet["balances"]
    assert {"amount_minor": 700, "currency": "USD"} in wallet["held"]

    transactions = (await seeded_api.customer.http.get("/billing/transactions")).json()["data"]
    assert [(row["kind"], row["amount"]["amount_minor"]) for row in transactions] == [
        ("top_up", 900), ("top_up", 700), ("credit", 300), ("charge", -1500), ("top_up", 5000),
    ]  # fmt: skip
    assert [row["balance_after"]["amount_minor"] for row in transactions] == [900, 4500, 3800, 3500, 5000]
    for currency in ("USD", "EUR"):
        owned = sum(
            amount["amount_minor"]
            for amount in (*wallet["balances"], *wallet["held"])
            if amount["currency"] == currency
        )
        moved = sum(row["amount"]["amount_minor"] for row in transactions if row["amount"]["currency"] == currency)
        assert owned == moved

    page = (await seeded_api.customer.http.get("/billing/transactions", params={"limit": "2"})).json()
    query = {"cursor": page["meta"]["next_cursor"]}
    next_page = (await seeded_api.customer.http.get("/billing/transactions", params=query)).json()
    assert page["data"] + next_page["data"] == transactions
    charges = (await seeded_api.customer.http.get("/billing/transactions", params={"kind": "charge"})).json()["data"]
    assert [row["balance_after"]["amount_minor"] for row in charges] == [3500]


async def test_an_invoice_in_the_shape_that_callers_rely_on(seeded_api: ApiWithCatalogue) -> None:
    subscription = seeded_api.insert_subscription()
    mine = insert_invoice(seeded_api.api, seeded_api.customer, subscription)
    seeded_api.insert_subscription()
    data = (await seeded_api.customer.http.get(f"/billing/invoices/{mine}")).json()["data"]
    assert {
        "id", "number", "status", "issued_at", "paid_at", "period_start", "period_end", "lines", "subtotal", "tax",
        "total", "amount_due",
    } <= set(data)  # fmt: skip
    assert (data["total"], data["amount_due"]["amount_minor"]) == ({"amount_minor": 1500, "currency": "USD"}, 0)
    assert data["lines"][0]["amount"] == data["total"]
    listed = (await seeded_api.customer.http.get("/billing/invoices", params={"subscription_id": subscription})).json()
    assert listed["data"] == [data]
    assert (await seeded_api.customer.http.get("/billing/invoices", params={"subscription_id": "x"})).json()[
        "data"
    ] == []
    why = (await seeded_api.customer.http.get(f"/billing/invoices/{mine}/explain")).json()["data"]
    covered = why["explanation"].pop("covered")
    assert (why["lines"], why["explanation"], why["payments"]) == (data["lines"], {"a": 1}, [])
    assert {source: amount["amount_minor"] for source, amount in covered.items() if amount["amount_minor"]} == {
        "wallet": 1500
    }


async def test_the_stored_invoice_document_is_downloaded(seeded_api: ApiWithCatalogue) -> None:
    mine = insert_invoice(seeded_api.api, seeded_api.customer, seeded_api.insert_subscription())
    draft = insert_invoice(
        seeded_api.api, seeded_api.customer, seeded_api.insert_subscription(), status="draft", total=700
    )
    seeded_api.api.execute(
        "INSERT INTO documents (id, organization_id, kind, subject_id, subject_status, content_sha256, content)"
        " VALUES (%s, %s, 'invoice_pdf', %s, 'paid', 'abc', '%%PDF-1.4')",
        *(derive_id("doc", "invoice_pdf", mine), seeded_api.customer.organization_id, mine),
    )
    response = await seeded_api.customer.http.get(f"/billing/invoices/{mine}/pdf")
    assert (response.status_code, response.headers["Content-Type"]) == (200, "application/pdf")
    assert response.content.startswith(b"%PDF")
    assert "BERTH-2026-" in response.headers["Content-Disposition"]
    assert (await seeded_api.customer.http.get(f"/billing/invoices/{draft}/pdf")).status_code == 404


@pytest.mark.scenario("S1")
async def test_money_of_another_organization_is_not_found(seeded_api: ApiWithCatalogue) -> None:
    other = await seeded_api.api.register_verified_user()
    theirs = insert_invoice(seeded_api.api, other, seeded_api.insert_subscription(account=other))
    paid = insert_payment(seeded_api.api, other)
    for path in (f"invoices/{theirs}", f"invoices/{theirs}/explain", f"invoices/{theirs}/pdf", f"payments/{paid}"):
        response = await seeded_api.customer.http.get(f"/billing/{path}")
        assert (response.status_code, parse_error(response)["code"]) == (404, "NOT_FOUND"), path
    for path in ("invoices", "payments", "transactions", "payment-methods"):
        assert (await seeded_api.customer.http.get(f"/billing/{path}")).json()["data"] == []
