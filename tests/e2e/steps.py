"""Steps of a customer, one call each. Every step asserts what the contract requires of the response."""

from __future__ import annotations

import uuid
from collections import defaultdict
from datetime import UTC, datetime
from typing import Any

import httpx

from tests.support.running_stack import ApiUser, Json, RunningStack
from tests.support.wait import wait_until_sync

V1 = "/api/v1"
SUBSCRIPTION_FIELDS = {
    "id", "status", "plan", "instance", "current_period", "trial_end", "cancel_at_period_end", "workflow_id",
}  # fmt: skip
INVOICE_FIELDS = {
    "id", "number", "status", "issued_at", "paid_at", "period_start", "period_end", "lines", "subtotal", "tax",
    "total", "amount_due",
}  # fmt: skip
INSTANCE_FIELDS = {
    "id", "status", "url", "hostname", "namespace", "service", "version", "resources", "conditions",
}  # fmt: skip


def new_key() -> str:
    return uuid.uuid4().hex


def assert_error(response: tuple[int, Json], status: int, code: str) -> Json:
    """Assert that a response is an error with this status and code. Returns the details of the error."""
    assert (response[0], response[1].get("error", {}).get("code")) == (status, code), response
    assert response[1]["success"] is False
    assert response[1]["request_id"]
    assert response[1]["timestamp"].endswith("Z")
    details: Json = response[1]["error"]["details"]
    return details


def assert_success(response: tuple[int, Json], status: int = 200) -> Any:
    assert response[0] == status, response
    assert response[1]["success"] is True
    assert response[1]["timestamp"].endswith("Z")
    return response[1].get("data")


def list_all(customer: ApiUser, path: str, **query: str) -> list[Json]:
    """Return the rows of all pages of a list."""
    rows: list[Json] = []
    cursor: str | None = ""
    while cursor is not None:
        parameters = {"limit": "100", **query} | ({"cursor": cursor} if cursor else {})
        page = assert_success(_get(customer, path, parameters))
        rows.extend(page[0])
        cursor = page[1]["next_cursor"]
    return rows


def _get(customer: ApiUser, path: str, query: dict[str, str]) -> tuple[int, Json]:
    status, content = customer.request("GET", f"{path}?{httpx.QueryParams(query)}")
    if status == 200:
        assert isinstance(content["data"], list)
        content = {**content, "data": (content["data"], content["meta"])}
    return status, content


def money(amount_minor: int, currency: str = "USD") -> Json:
    return {"amount_minor": amount_minor, "currency": currency}


def amount_in(amounts: list[Json], currency: str = "USD") -> int:
    matching = [amount["amount_minor"] for amount in amounts if amount["currency"] == currency]
    assert len(matching) <= 1
    return int(matching[0]) if matching else 0


def spendable(customer: ApiUser, currency: str = "USD") -> int:
    return amount_in(customer.get(f"{V1}/billing/wallet")["balances"], currency)


def held(customer: ApiUser, currency: str = "USD") -> int:
    return amount_in(customer.get(f"{V1}/billing/wallet")["held"], currency)


def assert_wallet_matches_transactions(customer: ApiUser) -> None:
    """Assert that transactions sum to balances plus holds, by currency and row, and that no amount is negative."""

    def sums_match() -> bool:
        before = customer.get(f"{V1}/billing/wallet")
        transactions = list_all(customer, f"{V1}/billing/transactions")
        wallet = customer.get(f"{V1}/billing/wallet")
        # Money may move between the requests: only an unchanged wallet is compared.
        assert before == wallet
        running: dict[str, int] = defaultdict(int)
        for entry in reversed(transactions):
            assert {"id", "kind", "amount", "balance_after", "at", "ref"} <= entry.keys()
            assert entry["kind"] in ("top_up", "charge", "refund", "credit", "adjustment")
            currency = entry["amount"]["currency"]
            running[currency] += entry["amount"]["amount_minor"]
            assert entry["balance_after"] == money(running[currency], currency)
        for currency, total in running.items():
            balance, on_hold = amount_in(wallet["balances"], currency), amount_in(wallet["held"], currency)
            assert balance >= 0 <= on_hold
            assert total == balance + on_hold, (currency, transactions, wallet)
        return True

    assert wait_until_sync(sums_match, description="the transactions sum to the wallet")


def top_up(customer: ApiUser, amount_minor: int, currency: str = "USD") -> Json:
    """Top up by a card that works. Returns the payment when the money is spendable."""
    before = spendable(customer, currency)
    payment = customer.top_up(amount_minor, currency=currency)
    assert {"id", "status", "amount", "gateway"} <= payment.keys()
    assert payment["amount"] == money(amount_minor, currency)
    wait_until_sync(
        lambda: spendable(customer, currency) == before + amount_minor, description="the top-up can be spent"
    )
    return payment


def card(customer: ApiUser, token: str = "pm_card_visa", *, default: bool = True) -> Json:
    body = {"gateway": "stripe", "token": token, "default": default}
    saved = assert_success(customer.request("POST", f"{V1}/billing/payment-methods", body), 201)
    assert {"id", "brand", "last4", "expires", "default"} <= saved.keys()
    method: Json = saved
    return method


def order_until_ready(customer: ApiUser, code: str = "n8n-starter", *, service: str = "n8n", **more: Any) -> Json:
    """Order and wait until the instance is ready. Returns the subscription."""
    body = {"plan_id": customer.plan(code, service), **more}
    status, content = customer.request("POST", f"{V1}/subscriptions", body, key=new_key())
    assert status in (201, 202), content
    ordered = content["data"]
    assert ordered.keys() >= SUBSCRIPTION_FIELDS, SUBSCRIPTION_FIELDS - ordered.keys()
    assert ordered["plan"]["code"] == code
    assert ordered["status"] in ("pending", "provisioning")
    assert ordered["current_period"] is None
    subscription = customer.wait_for_status(ordered["id"], "active", "trialing", "failed", "expired")
    assert subscription["status"] in ("active", "trialing"), timeline(customer, ordered["id"])
    assert subscription["instance"]["status"] == "ready"
    return subscription


def get_subscription(customer: ApiUser, subscription_id: str) -> Json:
    subscription: Json = customer.get(f"{V1}/subscriptions/{subscription_id}")
    assert subscription.keys() >= SUBSCRIPTION_FIELDS
    return subscription


def request_outcome(
    customer: ApiUser, subscription_id: str, command: str, body: Json | None = None
) -> tuple[int, Json]:
    """Send a command to a subscription; return the status and the body of its final response.

    A response of 202 means that the outcome is not known yet: the request is repeated with its key, as a client does.
    """
    key = new_key()

    def send() -> tuple[int, Json] | None:
        response = customer.request("POST", f"{V1}/subscriptions/{subscription_id}/{command}", body, key=key)
        return None if response[0] == 202 else response

    response = wait_until_sync(send, description=f"the outcome of {command}")
    assert response is not None
    return response


def send_command(customer: ApiUser, subscription_id: str, command: str, body: Json | None = None) -> Json:
    """Send a command to a subscription and assert that it succeeds. Returns the subscription."""
    subscription: Json = assert_success(request_outcome(customer, subscription_id, command, body))
    return subscription


def timeline(customer: ApiUser, subscription_id: str) -> list[Json]:
    events: list[Json] = customer.get(f"{V1}/subscriptions/{subscription_id}/timeline")
    assert all(event.keys() >= {"at", "kind", "message", "ref"} for event in events)
    return events


def kinds(customer: ApiUser, subscription_id: str) -> list[str]:
    return [event["kind"] for event in timeline(customer, subscription_id)]


def invoices(customer: ApiUser, subscription_id: str) -> list[Json]:
    """Return the invoices of a subscription, oldest first."""
    rows = list_all(customer, f"{V1}/billing/invoices", subscription_id=subscription_id)
    assert all(invoice.keys() >= INVOICE_FIELDS for invoice in rows)
    return rows[::-1]


def wait_for_first_payment(customer: ApiUser, subscription_id: str) -> None:
    """Wait until the first invoice is paid: a card that was authorized is charged once the instance is ready."""

    def is_paid() -> bool:
        return [invoice["status"] for invoice in invoices(customer, subscription_id)] == ["paid"]

    wait_until_sync(is_paid, description="the first invoice is paid")


def instant(text: str) -> datetime:
    assert text.endswith("Z"), text
    return datetime.fromisoformat(text).astimezone(UTC)


def wait_for_mails(stack: RunningStack, customer: ApiUser, word: str, times: int = 1) -> None:
    """Wait until exactly `times` mails to the customer have `word` in their subject."""

    def arrived() -> bool:
        subjects = [mail["subject"] for mail in stack.mails(customer.credentials["email"])]
        matching = [subject for subject in subjects if word.lower() in subject.lower()]
        assert len(matching) == times, subjects
        return True

    wait_until_sync(arrived, description=f"{times} mails about {word}")


class Sandbox:
    """Faults of the cluster and of the card gateway."""

    def __init__(self, stack: RunningStack) -> None:
        self.stack = stack

    def _at(self, where: str, path: str) -> str:
        return f"{self.stack.card['urls'][where]}{path}"

    def cluster(self, fault: str, **how: Any) -> None:
        httpx.post(self._at("cluster", "/sandbox/faults"), json={"fault": fault, **how}, timeout=20).raise_for_status()

    def gateway(self, fault: str, **how: Any) -> None:
        httpx.post(self._at("stripe", "/sandbox/faults"), json={"fault": fault, **how}, timeout=20).raise_for_status()

    def hits(self) -> int:
        """Return how many requests and pods the cluster's faults affected."""
        faults = httpx.get(self._at("cluster", "/sandbox/faults"), timeout=20).json()["faults"]
        return sum(fault["hits"] for fault in faults)

    def passing(self) -> list[Json]:
        """Return the cluster's faults that end by themselves."""
        faults = httpx.get(self._at("cluster", "/sandbox/faults"), timeout=20).json()["faults"]
        return [fault for fault in faults if "seconds_left" in fault]

    def until_struck(self, times: int) -> None:
        """Wait until the cluster's faults affected so many requests and pods."""
        wait_until_sync(lambda: self.hits() >= times, description=f"{times} faults strike")

    def redeliver(self) -> None:
        """Send every webhook again."""
        httpx.post(self._at("stripe", "/sandbox/redeliver"), timeout=120).raise_for_status()

    def clear(self) -> None:
        for where in ("cluster", "stripe"):
            httpx.delete(self._at(where, "/sandbox/faults"), timeout=20).raise_for_status()
