"""Top-ups, cards, corrections and refunds: what is shown, what the gateway believes, and that both agree."""

from __future__ import annotations

import httpx
import pytest

from tests.e2e.steps import (
    V1,
    assert_error,
    assert_success,
    assert_wallet_matches_transactions,
    card,
    held,
    list_all,
    money,
    new_key,
    spendable,
    top_up,
)
from tests.support.running_stack import ApiUser, RunningStack
from tests.support.wait import wait_until_sync

TOP_UP = {"amount_minor": 2500, "currency": "USD", "gateway": "stripe", "payment_method": "pm_card_visa"}
TOPUPS = f"{V1}/billing/topups"


def test_a_wallet_begins_empty_and_is_topped_up_by_card(customer: ApiUser) -> None:
    wallet = customer.get(f"{V1}/billing/wallet")
    assert wallet == {"balances": [money(0)], "held": [money(0)]}
    assert_error(customer.request("POST", TOPUPS, TOP_UP), 400, "IDEMPOTENCY_KEY_REQUIRED")
    once = new_key()
    first = assert_success(customer.request("POST", TOPUPS, TOP_UP, key=once), 201)
    repeated = assert_success(customer.request("POST", TOPUPS, TOP_UP, key=once), 201)
    assert first == repeated
    assert first["amount"] == money(2500)
    assert first["gateway"] == "stripe"
    assert_error(
        customer.request("POST", TOPUPS, {**TOP_UP, "amount_minor": 1}, key=once), 422, "IDEMPOTENCY_KEY_REUSED"
    )
    wait_until_sync(lambda: spendable(customer) == 2500, description="the money is there")
    rows = list_all(customer, f"{V1}/billing/transactions")
    assert [(row["kind"], row["amount"], row["ref"]) for row in rows] == [("top_up", money(2500), first["id"])]
    assert_wallet_matches_transactions(customer)


def test_a_declined_card_is_refused_at_once_and_moves_nothing(customer: ApiUser) -> None:
    body = {**TOP_UP, "payment_method": "pm_card_visa_chargeDeclined"}
    assert_error(customer.request("POST", TOPUPS, body, key=new_key()), 402, "PAYMENT_DECLINED")
    saved = {"gateway": "stripe", "token": "pm_card_visa_chargeDeclined"}
    assert_error(customer.request("POST", f"{V1}/billing/payment-methods", saved), 402, "PAYMENT_DECLINED")
    assert list_all(customer, f"{V1}/billing/payment-methods") == []
    failing = card(customer, "pm_card_chargeCustomerFail")
    assert_error(
        customer.request("POST", TOPUPS, {**TOP_UP, "payment_method": failing["id"]}, key=new_key()),
        402,
        "PAYMENT_DECLINED",
    )
    assert spendable(customer) == 0
    assert list_all(customer, f"{V1}/billing/transactions") == []


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
def test_an_invalid_top_up_is_rejected(customer: ApiUser, changed: dict[str, object], status: int) -> None:
    response = customer.request("POST", TOPUPS, {**TOP_UP, **changed}, key=new_key())
    assert response[0] in (status, 422), response
    assert response[1]["error"]["code"]
    assert list_all(customer, f"{V1}/billing/transactions") == []


@pytest.mark.parametrize(("currency", "code", "price"), [("EUR", "n8n-starter", 1400), ("IDR", "n8n-pro", 67_500_000)])
def test_accounts_in_other_currencies(stack: RunningStack, currency: str, code: str, price: int) -> None:
    customer = stack.register(currency=currency, timezone="Asia/Jakarta" if currency == "IDR" else "Europe/Paris")
    payment = top_up(customer, price, currency)
    charge = next(row for row in reversed(stack.charges()) if row["currency"].upper() == currency)
    assert charge["amount"] == price
    subscription = customer.create_subscription(code)
    now = customer.wait_for_status(subscription["id"], "active", "failed", "expired")
    assert now["status"] == "active"
    assert spendable(customer, currency) == held(customer, currency) == 0
    paid = list_all(customer, f"{V1}/billing/invoices")
    assert [(row["total"], row["amount_due"]) for row in paid] == [(money(price, currency), money(0, currency))]
    assert payment["amount"]["currency"] == currency
    assert_wallet_matches_transactions(customer)


def test_adjustments_by_an_administrator(customer: ApiUser, administrator: ApiUser) -> None:
    organization = customer.get(f"{V1}/users/me")["organization"]["id"]
    body = {"organization_id": organization, "amount_minor": 700, "currency": "USD", "reason": "goodwill"}
    path = f"{V1}/admin/billing/adjustments"
    assert_error(customer.request("POST", path, body, key=new_key()), 403, "FORBIDDEN")
    assert_error(administrator.request("POST", path, body), 400, "IDEMPOTENCY_KEY_REQUIRED")
    once = new_key()
    adjustment = assert_success(administrator.request("POST", path, body, key=once), 201)
    assert adjustment == assert_success(administrator.request("POST", path, body, key=once), 201)
    assert (adjustment["kind"], adjustment["amount"], adjustment["balance_after"]) == (
        "adjustment",
        money(700),
        money(700),
    )
    assert spendable(customer) == 700
    assert_success(administrator.request("POST", path, {**body, "amount_minor": -200}, key=new_key()), 201)
    assert_error(
        administrator.request("POST", path, {**body, "amount_minor": -501}, key=new_key()), 402, "INSUFFICIENT_FUNDS"
    )
    unknown = {**body, "organization_id": "org_nobody"}
    assert_error(administrator.request("POST", path, unknown, key=new_key()), 404, "NOT_FOUND")
    assert spendable(customer) == 500
    assert_wallet_matches_transactions(customer)


def test_refunds_to_the_source_and_to_the_wallet(
    stack: RunningStack, customer: ApiUser, administrator: ApiUser
) -> None:
    paid = top_up(customer, 10_000)
    path = f"{V1}/admin/billing/refunds"
    body = {"payment_id": paid["id"], "amount_minor": 4000, "to": "source", "reason": "asked for"}
    assert_error(customer.request("POST", path, body, key=new_key()), 403, "FORBIDDEN")
    once = new_key()
    refund = assert_success(administrator.request("POST", path, body, key=once), 201)
    assert refund["amount"] == money(4000)
    assert assert_success(administrator.request("POST", path, body, key=once), 201) == refund
    wait_until_sync(lambda: spendable(customer) == 6000, description="the refund left the wallet")
    too_much = {**body, "amount_minor": 6001}
    assert_error(administrator.request("POST", path, too_much, key=new_key()), 422, "REFUND_EXCEEDS_PAYMENT")
    remainder = {"payment_id": paid["id"], "to": "source", "reason": "the rest"}
    assert assert_success(administrator.request("POST", path, remainder, key=new_key()), 201)["amount"] == money(6000)
    wait_until_sync(lambda: spendable(customer) == 0, description="everything was given back")
    assert customer.get(f"{V1}/billing/payments/{paid['id']}")["status"] == "refunded"
    assert_error(administrator.request("POST", path, remainder, key=new_key()), 422, "REFUND_EXCEEDS_PAYMENT")
    charge = next(row for row in stack.charges() if row["refunded"] == 10_000 and row["amount"] == 10_000)
    assert charge["captured"]
    assert_wallet_matches_transactions(customer)


@pytest.mark.scenario("B35")
def test_a_refund_that_the_bank_rejects_later_is_in_the_wallet_once(
    stack: RunningStack, customer: ApiUser, administrator: ApiUser
) -> None:
    paid = top_up(customer, 3_171)
    path = f"{V1}/admin/billing/refunds"
    body = {"payment_id": paid["id"], "to": "source", "reason": "asked for"}
    refund = assert_success(administrator.request("POST", path, body, key=new_key()), 201)
    assert (refund["status"], spendable(customer)) == ("succeeded", 0)
    stripe = stack.card["urls"]["stripe"]
    (reference,) = [row["id"] for row in httpx.get(f"{stripe}/sandbox/refunds").json() if row["amount"] == 3_171]
    httpx.post(f"{stripe}/sandbox/refunds/{reference}/fail").raise_for_status()
    wait_until_sync(lambda: spendable(customer) == 3_171, description="the amount is in the wallet")
    for reverse in (False, True):
        options = {"reverse": reverse}
        httpx.post(f"{stripe}/sandbox/redeliver", json=options, timeout=60).raise_for_status()
    failed = administrator.get(f"{path}/{refund['id']}")
    assert (failed["status"], failed["failure_code"]) == ("failed", "lost_or_stolen_card")
    payment = customer.get(f"{V1}/billing/payments/{paid['id']}")
    assert (payment["status"], payment["refunded"]) == ("succeeded", money(0))
    assert spendable(customer) == 3_171
    assert_wallet_matches_transactions(customer)
    mails = [mail for mail in stack.mails() if "was rejected by your bank" in mail["subject"]]
    assert ["31.71" in mail["subject"] for mail in mails] == [True]
