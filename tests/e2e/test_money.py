"""Top-ups, cards, corrections and refunds: what is shown, what the gateway believes, and that both agree."""

from __future__ import annotations

import pytest

from tests.e2e.steps import V1, card, done, every, held, key, money, refused, spendable, the_books_agree, top_up
from tests.support.stack import Customer, RunningStack
from tests.support.wait import eventually_sync

TOP_UP = {"amount_minor": 2500, "currency": "USD", "gateway": "stripe", "payment_method": "pm_card_visa"}
TOPUPS = f"{V1}/billing/topups"


def test_a_wallet_begins_empty_and_is_topped_up_by_card(customer: Customer) -> None:
    wallet = customer.get(f"{V1}/billing/wallet")
    assert wallet == {"balances": [money(0)], "held": [money(0)]}
    refused(customer.call("POST", TOPUPS, TOP_UP), 400, "IDEMPOTENCY_KEY_REQUIRED")
    once = key()
    first = done(customer.call("POST", TOPUPS, TOP_UP, key=once), 201)
    again = done(customer.call("POST", TOPUPS, TOP_UP, key=once), 201)
    assert first == again
    assert first["amount"] == money(2500)
    assert first["gateway"] == "stripe"
    refused(customer.call("POST", TOPUPS, {**TOP_UP, "amount_minor": 1}, key=once), 422, "IDEMPOTENCY_KEY_REUSED")
    eventually_sync(lambda: spendable(customer) == 2500, what="the money is there")
    rows = every(customer, f"{V1}/billing/transactions")
    assert [(row["kind"], row["amount"], row["ref"]) for row in rows] == [("top_up", money(2500), first["id"])]
    the_books_agree(customer)


def test_a_declined_card_is_refused_at_once_and_moves_nothing(customer: Customer) -> None:
    body = {**TOP_UP, "payment_method": "pm_card_visa_chargeDeclined"}
    refused(customer.call("POST", TOPUPS, body, key=key()), 402, "PAYMENT_DECLINED")
    saved = {"gateway": "stripe", "token": "pm_card_visa_chargeDeclined"}
    refused(customer.call("POST", f"{V1}/billing/payment-methods", saved), 402, "PAYMENT_DECLINED")
    assert every(customer, f"{V1}/billing/payment-methods") == []
    failing = card(customer, "pm_card_chargeCustomerFail")
    refused(
        customer.call("POST", TOPUPS, {**TOP_UP, "payment_method": failing["id"]}, key=key()), 402, "PAYMENT_DECLINED"
    )
    assert spendable(customer) == 0
    assert every(customer, f"{V1}/billing/transactions") == []


@pytest.mark.parametrize(
    ("changed", "status"),
    [
        ({"amount_minor": 0}, 422),
        ({"amount_minor": -500}, 422),
        ({"amount_minor": 25.5}, 422),
        ({"amount_minor": 2500.0}, 422),
        ({"amount_minor": "2500"}, 422),
        ({"amount_minor": True}, 422),
        ({"amount_minor": 10**30}, 422),
        ({"amount_minor": 10**18}, 422),
        ({"amount_minor": 1}, 422),
        ({"currency": "usd"}, 422),
        ({"currency": "XXX"}, 422),
        ({"currency": "BTC"}, 422),
        ({"gateway": "nobody"}, 422),
        ({"payment_method": "pm_card_never_heard_of"}, 402),
        ({"payment_method": "😀"}, 402),
    ],
)
def test_what_cannot_be_charged_is_refused(customer: Customer, changed: dict[str, object], status: int) -> None:
    answer = customer.call("POST", TOPUPS, {**TOP_UP, **changed}, key=key())
    assert answer[0] in (status, 422), answer
    assert answer[1]["error"]["code"]
    assert every(customer, f"{V1}/billing/transactions") == []


@pytest.mark.parametrize(("currency", "code", "price"), [("EUR", "n8n-starter", 1400), ("IDR", "n8n-pro", 67_500_000)])
def test_accounts_in_other_currencies(stack: RunningStack, currency: str, code: str, price: int) -> None:
    customer = stack.register(currency=currency, timezone="Asia/Jakarta" if currency == "IDR" else "Europe/Paris")
    made = top_up(customer, price, currency)
    charge = next(row for row in reversed(stack.charges()) if row["currency"].upper() == currency)
    assert charge["amount"] == price
    found = customer.order(code)
    now = customer.until(found["id"], "active", "failed", "expired")
    assert now["status"] == "active"
    assert spendable(customer, currency) == held(customer, currency) == 0
    paid = every(customer, f"{V1}/billing/invoices")
    assert [(row["total"], row["amount_due"]) for row in paid] == [(money(price, currency), money(0, currency))]
    assert made["amount"]["currency"] == currency
    the_books_agree(customer)


def test_corrections_by_an_administrator(customer: Customer, administrator: Customer) -> None:
    organization = customer.get(f"{V1}/users/me")["organization"]["id"]
    body = {"organization_id": organization, "amount_minor": 700, "currency": "USD", "reason": "goodwill"}
    path = f"{V1}/admin/billing/adjustments"
    refused(customer.call("POST", path, body, key=key()), 403, "FORBIDDEN")
    refused(administrator.call("POST", path, body), 400, "IDEMPOTENCY_KEY_REQUIRED")
    once = key()
    made = done(administrator.call("POST", path, body, key=once), 201)
    assert made == done(administrator.call("POST", path, body, key=once), 201)
    assert (made["kind"], made["amount"], made["balance_after"]) == ("adjustment", money(700), money(700))
    assert spendable(customer) == 700
    done(administrator.call("POST", path, {**body, "amount_minor": -200}, key=key()), 201)
    refused(administrator.call("POST", path, {**body, "amount_minor": -501}, key=key()), 402, "INSUFFICIENT_FUNDS")
    unknown = {**body, "organization_id": "org_nobody"}
    refused(administrator.call("POST", path, unknown, key=key()), 404, "NOT_FOUND")
    assert spendable(customer) == 500
    the_books_agree(customer)


def test_refunds_to_the_source_and_to_the_wallet(
    stack: RunningStack, customer: Customer, administrator: Customer
) -> None:
    paid = top_up(customer, 10_000)
    path = f"{V1}/admin/billing/refunds"
    body = {"payment_id": paid["id"], "amount_minor": 4000, "to": "source", "reason": "asked for"}
    refused(customer.call("POST", path, body, key=key()), 403, "FORBIDDEN")
    once = key()
    made = done(administrator.call("POST", path, body, key=once), 201)
    assert made["amount"] == money(4000)
    assert done(administrator.call("POST", path, body, key=once), 201) == made
    eventually_sync(lambda: spendable(customer) == 6000, what="the refund left the wallet")
    too_much = {**body, "amount_minor": 6001}
    refused(administrator.call("POST", path, too_much, key=key()), 422, "REFUND_EXCEEDS_PAYMENT")
    rest = {"payment_id": paid["id"], "to": "source", "reason": "the rest"}
    assert done(administrator.call("POST", path, rest, key=key()), 201)["amount"] == money(6000)
    eventually_sync(lambda: spendable(customer) == 0, what="everything was given back")
    assert customer.get(f"{V1}/billing/payments/{paid['id']}")["status"] == "refunded"
    refused(administrator.call("POST", path, rest, key=key()), 422, "REFUND_EXCEEDS_PAYMENT")
    charge = next(row for row in stack.charges() if row["refunded"] == 10_000 and row["amount"] == 10_000)
    assert charge["captured"]
    the_books_agree(customer)
