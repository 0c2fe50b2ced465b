"""What a customer does and sees, one call each; every helper asserts what the contract says about it."""

from __future__ import annotations

import uuid
from collections import defaultdict
from datetime import UTC, datetime
from typing import Any

import httpx

from tests.support.stack import Customer, Json, RunningStack
from tests.support.wait import eventually_sync

V1 = "/api/v1"
SUBSCRIPTION = {
    "id", "status", "plan", "instance", "current_period", "trial_end", "cancel_at_period_end", "workflow_id",
}  # fmt: skip
INVOICE = {
    "id", "number", "status", "issued_at", "paid_at", "period_start", "period_end", "lines", "subtotal", "tax",
    "total", "amount_due",
}  # fmt: skip
INSTANCE = {
    "id", "status", "url", "hostname", "namespace", "service", "version", "resources", "conditions",
}  # fmt: skip


def key() -> str:
    return uuid.uuid4().hex


def refused(answer: tuple[int, Json], status: int, code: str) -> Json:
    """Assert a coded refusal in the envelope; returns its details."""
    assert (answer[0], answer[1].get("error", {}).get("code")) == (status, code), answer
    assert answer[1]["success"] is False
    assert answer[1]["request_id"]
    assert answer[1]["timestamp"].endswith("Z")
    details: Json = answer[1]["error"]["details"]
    return details


def done(answer: tuple[int, Json], status: int = 200) -> Any:
    assert answer[0] == status, answer
    assert answer[1]["success"] is True
    assert answer[1]["timestamp"].endswith("Z")
    return answer[1].get("data")


def every(customer: Customer, path: str, **query: str) -> list[Json]:
    """All pages of a list."""
    found: list[Json] = []
    cursor: str | None = ""
    while cursor is not None:
        parameters = {"limit": "100", **query} | ({"cursor": cursor} if cursor else {})
        told = done(_get(customer, path, parameters))
        found.extend(told[0])
        cursor = told[1]["next_cursor"]
    return found


def _get(customer: Customer, path: str, query: dict[str, str]) -> tuple[int, Json]:
    status, answer = customer.call("GET", f"{path}?{httpx.QueryParams(query)}")
    if status == 200:
        assert isinstance(answer["data"], list)
        answer = {**answer, "data": (answer["data"], answer["meta"])}
    return status, answer


def money(amount_minor: int, currency: str = "USD") -> Json:
    return {"amount_minor": amount_minor, "currency": currency}


def in_currency(amounts: list[Json], currency: str = "USD") -> int:
    found = [amount["amount_minor"] for amount in amounts if amount["currency"] == currency]
    assert len(found) <= 1
    return int(found[0]) if found else 0


def spendable(customer: Customer, currency: str = "USD") -> int:
    return in_currency(customer.get(f"{V1}/billing/wallet")["balances"], currency)


def held(customer: Customer, currency: str = "USD") -> int:
    return in_currency(customer.get(f"{V1}/billing/wallet")["held"], currency)


def the_books_agree(customer: Customer) -> None:
    """Transactions sum to balances plus held, at every one of them and by currency; nothing is below zero."""

    def look() -> bool:
        before = customer.get(f"{V1}/billing/wallet")
        transactions = every(customer, f"{V1}/billing/transactions")
        wallet = customer.get(f"{V1}/billing/wallet")
        # Something may be under way; what is compared is one instant's.
        assert before == wallet
        running: dict[str, int] = defaultdict(int)
        for entry in reversed(transactions):
            assert {"id", "kind", "amount", "balance_after", "at", "ref"} <= entry.keys()
            assert entry["kind"] in ("top_up", "charge", "refund", "credit", "adjustment")
            currency = entry["amount"]["currency"]
            running[currency] += entry["amount"]["amount_minor"]
            assert entry["balance_after"] == money(running[currency], currency)
        for currency, total in running.items():
            balance, kept = in_currency(wallet["balances"], currency), in_currency(wallet["held"], currency)
            assert balance >= 0 <= kept
            assert total == balance + kept, (currency, transactions, wallet)
        return True

    assert eventually_sync(look, what="the transactions sum to the wallet")


def top_up(customer: Customer, amount_minor: int, currency: str = "USD") -> Json:
    """By a card that works; returns when it can be spent."""
    before = spendable(customer, currency)
    made = customer.top_up(amount_minor, currency=currency)
    assert {"id", "status", "amount", "gateway"} <= made.keys()
    assert made["amount"] == money(amount_minor, currency)
    eventually_sync(lambda: spendable(customer, currency) == before + amount_minor, what="the top-up can be spent")
    return made


def card(customer: Customer, token: str = "pm_card_visa", *, default: bool = True) -> Json:
    body = {"gateway": "stripe", "token": token, "default": default}
    saved = done(customer.call("POST", f"{V1}/billing/payment-methods", body), 201)
    assert {"id", "brand", "last4", "expires", "default"} <= saved.keys()
    found: Json = saved
    return found


def ready(customer: Customer, code: str = "n8n-starter", *, service: str = "n8n", **more: Any) -> Json:
    """Order and wait until the instance serves; returns the subscription."""
    body = {"plan_id": customer.plan(code, service), **more}
    status, answer = customer.call("POST", f"{V1}/subscriptions", body, key=key())
    assert status in (201, 202), answer
    made = answer["data"]
    assert made.keys() >= SUBSCRIPTION, SUBSCRIPTION - made.keys()
    assert made["plan"]["code"] == code
    assert made["status"] in ("pending", "provisioning")
    assert made["current_period"] is None
    found = customer.until(made["id"], "active", "trialing", "failed", "expired")
    assert found["status"] in ("active", "trialing"), timeline(customer, made["id"])
    assert found["instance"]["status"] == "ready"
    return found


def subscription(customer: Customer, subscription_id: str) -> Json:
    found: Json = customer.get(f"{V1}/subscriptions/{subscription_id}")
    assert found.keys() >= SUBSCRIPTION
    return found


def order(customer: Customer, subscription_id: str, what: str, body: Json | None = None) -> Json:
    """An order on a subscription that is carried out; returns the subscription."""
    found: Json = done(customer.call("POST", f"{V1}/subscriptions/{subscription_id}/{what}", body))
    return found


def timeline(customer: Customer, subscription_id: str) -> list[Json]:
    found: list[Json] = customer.get(f"{V1}/subscriptions/{subscription_id}/timeline")
    assert all(event.keys() >= {"at", "kind", "message", "ref"} for event in found)
    return found


def kinds(customer: Customer, subscription_id: str) -> list[str]:
    return [event["kind"] for event in timeline(customer, subscription_id)]


def invoices(customer: Customer, subscription_id: str) -> list[Json]:
    """Oldest first."""
    found = every(customer, f"{V1}/billing/invoices", subscription_id=subscription_id)
    assert all(invoice.keys() >= INVOICE for invoice in found)
    return found[::-1]


def settled(customer: Customer, subscription_id: str) -> None:
    """Wait until the first invoice is paid: a card that was authorised is charged once the instance is ready."""

    def look() -> bool:
        return [invoice["status"] for invoice in invoices(customer, subscription_id)] == ["paid"]

    eventually_sync(look, what="the first invoice is paid")


def instant(text: str) -> datetime:
    assert text.endswith("Z"), text
    return datetime.fromisoformat(text).astimezone(UTC)


def mailed(stack: RunningStack, customer: Customer, word: str, times: int = 1) -> None:
    """Some subjects among the customer's mails say `word`, exactly so often."""

    def look() -> bool:
        subjects = [mail["subject"] for mail in stack.mails(customer.credentials["email"])]
        found = [subject for subject in subjects if word.lower() in subject.lower()]
        assert len(found) == times, subjects
        return True

    eventually_sync(look, what=f"{times} mails about {word}")


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
        """How often the cluster's faults struck."""
        found = httpx.get(self._at("cluster", "/sandbox/faults"), timeout=20).json()["faults"]
        return sum(fault["hits"] for fault in found)

    def passing(self) -> list[Json]:
        """The cluster's faults that end by themselves."""
        found = httpx.get(self._at("cluster", "/sandbox/faults"), timeout=20).json()["faults"]
        return [fault for fault in found if "seconds_left" in fault]

    def until_struck(self, times: int) -> None:
        """Wait until the cluster's faults have struck so often."""
        eventually_sync(lambda: self.hits() >= times, what=f"{times} faults strike")

    def redeliver(self) -> None:
        """Every webhook so far again."""
        httpx.post(self._at("stripe", "/sandbox/redeliver"), timeout=120).raise_for_status()

    def clear(self) -> None:
        for where in ("cluster", "stripe"):
            httpx.delete(self._at(where, "/sandbox/faults"), timeout=20).raise_for_status()
