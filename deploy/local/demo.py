"""`make demo`: one customer's subscription over HTTP against the running stack. Each step prints its evidence."""

from __future__ import annotations

import os
import sys
import time
import uuid
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import httpx

from deploy.local.api_client import ApiClient, ContractViolation, Json, Plan, format_money
from deploy.local.console import Console
from deploy.local.data_directory import read_json

SERVICE = "n8n"
# Defaults of the contract: the last retry on day 7, deletion 30 days after the end.
DELETED_AFTER_DAYS = 31


def expect(condition: object, otherwise: str) -> None:
    if not condition:
        raise ContractViolation(otherwise)


def add_to_instant(instant: str, **by: float) -> str:
    return (datetime.fromisoformat(instant) + timedelta(**by)).isoformat().replace("+00:00", "Z")


class Demo:
    """One new customer's subscription. Each method is a step and returns its evidence."""

    def __init__(self, card: Json) -> None:
        self.api = ApiClient(card)
        self.email = f"demo-{uuid.uuid4().hex[:8]}@customer.example"
        self.password = f"Sail-{uuid.uuid4().hex}"
        self.currency = "USD"
        self.plans: list[Plan] = []
        self.id = ""
        self.instance_url = ""

    @property
    def steps(self) -> list[tuple[str, Callable[[], str]]]:
        return [
            ("register", self.register),
            ("verify the address", self.verify),
            ("top up by card", self.top_up),
            ("order", self.place_order),
            ("ready", self.wait_until_ready),
            ("first renewal", self.renew),
            ("plan change", self.change_plan),
            ("failed renewal", self.fail_renewal),
            ("recovery", self.recover),
            ("cancellation", self.cancel),
            ("retirement", self.retire),
            ("the books", self.verify_ledger),
        ]

    # ------------------------------------------------------------ helpers

    def _money(self, minor: int) -> str:
        return format_money({"amount_minor": minor, "currency": self.currency})

    def _subscription(self) -> Json:
        return self.api.subscription(self.id)

    def _mail(self, since: int) -> str:
        """Wait for a mail after the first `since`, since mails are sent asynchronously; return the newest subject."""

        def new_mails() -> list[Json]:
            return self.api.mails(self.email)[since:]

        mails: list[Json] = self.api.wait_until("a mail", new_mails, 30)
        return f"mail “{mails[-1]['subject']}”"

    def _wait_for_status(self, *statuses: str) -> Json:
        def subscription_in_status() -> Json | None:
            now = self._subscription()
            return now if now["status"] in statuses else None

        subscription: Json = self.api.wait_until(f"the subscription {' or '.join(statuses)}", subscription_in_status)
        return subscription

    def _period_end(self) -> str:
        now = self._subscription()
        end = (now["current_period"] or {}).get("end") or now["trial_end"]
        expect(end, "no current period")
        return str(end)

    def _advance_past_renewal(self) -> None:
        self.api.advance(self.id, until=add_to_instant(self._period_end(), hours=1))

    # ------------------------------------------------------------ steps

    def register(self) -> str:
        account = self.api.call(
            "POST",
            "/auth/register",
            {
                "email": self.email, "password": self.password, "name": "Demo Customer",
                "country": "US", "currency": self.currency, "timezone": "America/New_York",
            },
        )  # fmt: skip
        self.currency = account["organization"]["currency"]
        expect(account["user"]["email_verified"] is False, "a new user must not be verified")
        return f"{self.email}  organization {account['organization']['id']}"

    def verify(self) -> str:
        token = self.api.token_from_mail(self.email)
        self.api.call("POST", "/auth/verify-email", {"token": token})
        self.api.login(self.email, self.password)
        me = self.api.call("GET", "/users/me")
        expect(me["email"] == self.email, "GET /users/me returned a different user")
        return f"{self._mail(0)}  user {me['id']}"

    def top_up(self) -> str:
        offered = [plan for plan in self.api.list_plans_of(SERVICE) if not plan.trial_days]
        first = offered[0] if offered else None
        expect(first, f"{SERVICE} has no plan without a trial")
        assert first is not None
        more_expensive = [
            plan
            for plan in offered
            if plan.interval == first.interval and plan.price(self.currency) > first.price(self.currency)
        ]
        expect(more_expensive, f"{SERVICE} has no higher-priced plan than {first.code}")
        self.plans = [first, more_expensive[0]]
        amount = 3 * self.plans[0].price(self.currency)
        payment = self.api.top_up(amount, self.currency)
        expect(self.api.available_balance(self.currency) == amount, "the wallet does not hold what was paid")
        return f"{payment['id']}  wallet {self._money(amount)}"

    def place_order(self) -> str:
        key = self.api.new_idempotency_key()
        body = {"plan_id": self.plans[0].id, "name": "Demonstration"}
        subscription = self.api.call("POST", "/subscriptions", body, key=key)
        repeated = self.api.call("POST", "/subscriptions", body, key=key)
        expect(repeated["id"] == subscription["id"], "idempotency violated: two subscriptions for one key")
        self.id = subscription["id"]
        return f"{self.plans[0].code}  {self.id}  {subscription['status']}"

    def wait_until_ready(self) -> str:
        def ready_subscription() -> Json | None:
            now = self._subscription()
            expect(now["status"] not in ("failed", "expired"), f"the order became {now['status']}")
            return now if now["status"] in ("active", "trialing") and now["instance"]["status"] == "ready" else None

        started_at = time.monotonic()
        now = self.api.wait_until("the instance", ready_subscription, 120)
        self.instance_url = now["instance"]["url"]
        return f"{self.instance_url}  {now['status']}  {time.monotonic() - started_at:.1f} s"

    def renew(self) -> str:
        trial = self._subscription()["status"] == "trialing"
        before, mails = len(self.api.invoices(self.id)), len(self.api.mails(self.email))
        wallet = self.api.available_balance(self.currency)
        self._advance_past_renewal()
        invoices = self.api.invoices(self.id)
        expect(len(invoices) > before, "no invoice for the new period")
        newest = invoices[-1]
        expect(newest["status"] == "paid", f"the invoice is {newest['status']}")
        expect(self._subscription()["status"] == "active", "not active after its renewal")
        paid = wallet - self.api.available_balance(self.currency)
        if not trial:
            expect(paid == newest["total"]["amount_minor"], f"paid {paid}, invoiced {newest['total']}")
        return f"{newest['number']}  {format_money(newest['total'])}  {newest['status']}  {self._mail(mails)}"

    def change_plan(self) -> str:
        target = self.plans[1]
        body = {"plan_id": target.id, "mode": "immediate"}
        preview = self.api.call("POST", f"/subscriptions/{self.id}/change-plan/preview", body)
        due = int(preview["due_now"]["amount_minor"])
        short = due + target.price(self.currency) - self.api.available_balance(self.currency)
        if short > 0:
            self.api.top_up(short, self.currency)
        before = self.api.available_balance(self.currency)
        self.api.call("POST", f"/subscriptions/{self.id}/change-plan", body, key=self.api.new_idempotency_key())
        self.api.wait_until("the new plan", lambda: self._subscription()["plan"]["id"] == target.id)
        paid = before - self.api.available_balance(self.currency)
        expect(paid == due, f"previewed {due}, paid {paid}")
        return f"{self.plans[0].code} → {target.code}  due {self._money(due)} as previewed"

    def fail_renewal(self) -> str:
        # From here on the card pays; this one can be saved but is declined when charged.
        self._empty_wallet()
        mails = len(self.api.mails(self.email))
        self.api.call(
            "POST",
            "/billing/payment-methods",
            {"gateway": "stripe", "token": "pm_card_chargeCustomerFail", "default": True},
        )
        self._advance_past_renewal()
        now = self._wait_for_status("past_due", "suspended")
        newest = self.api.invoices(self.id)[-1]
        expect(newest["status"] == "open", f"the invoice is {newest['status']}")
        return f"{newest['number']}  {now['status']}  due {format_money(newest['amount_due'])}  {self._mail(mails)}"

    def _empty_wallet(self) -> None:
        """Renew until the wallet balance is below the price of the next period."""
        price = self.plans[1].price(self.currency)
        while self.api.available_balance(self.currency) >= price:
            self._advance_past_renewal()
            expect(self._subscription()["status"] == "active", "a renewal that the wallet covers did not go through")

    def recover(self) -> str:
        mails = len(self.api.mails(self.email))
        saved = self.api.call(
            "POST", "/billing/payment-methods", {"gateway": "stripe", "token": "pm_card_visa", "default": True}
        )
        self._wait_for_status("active")
        newest = self.api.invoices(self.id)[-1]
        expect(newest["status"] == "paid", f"the invoice is {newest['status']}")
        return f"{saved['brand']} …{saved['last4']}  {newest['number']} paid  {self._mail(mails)}"

    def cancel(self) -> str:
        mails = len(self.api.mails(self.email))
        end = self._period_end()
        self.api.call("POST", f"/subscriptions/{self.id}/cancel", {"at": "period_end", "reason": "demo"})
        self.api.wait_until("the cancellation", lambda: self._subscription()["cancel_at_period_end"])
        self.api.advance(self.id, until=add_to_instant(end, hours=1))
        self._wait_for_status("cancelled")
        return f"at the period's end {end[:10]}  {self._mail(mails)}"

    def retire(self) -> str:
        instance = self._subscription()["instance"]["id"]
        self.api.advance(self.id, days=DELETED_AFTER_DAYS)
        self._wait_for_status("terminated")

        def deleted_instance() -> Json | None:
            resource: Json = self.api.call("GET", f"/instances/{instance}")
            return resource if resource["status"] == "deleted" else None

        self.api.wait_until("the instance deleted", deleted_instance)
        return f"instance {instance} deleted"

    def verify_ledger(self) -> str:
        """Verify that the wallet equals the sum of its transactions and that the gateway has no duplicate charge."""
        wallet = self.api.call("GET", "/billing/wallet")
        wallet_total = sum(int(b["amount_minor"]) for b in (*wallet["balances"], *wallet["held"]))
        transactions = self.api.list_all("/billing/transactions")
        summed = sum(int(entry["amount"]["amount_minor"]) for entry in transactions)
        expect(wallet_total == summed, f"the wallet shows {wallet_total}, its transactions sum to {summed}")
        keys = [c["idempotency_key"] for c in self.api.call_sandbox("GET", "stripe", "/sandbox/charges")]
        used = [key for key in keys if key]
        expect(len(used) == len(set(used)), "a charge was made twice under one key")
        paid = [i for i in self.api.invoices(self.id) if i["status"] == "paid"]
        periods = {(i["period_start"], i["period_end"]) for i in paid}
        counts = f"{len(transactions)} transactions, {len(paid)} paid invoices over {len(periods)} periods"
        return f"{counts}, wallet {self._money(wallet_total)}"


def run_demo(card: Json, screen: Console) -> bool:
    """Run the steps in order; return False at the first one that fails."""
    demo = Demo(card)
    screen.heading("Subscription lifecycle demo")
    try:
        for name, step in demo.steps:
            try:
                screen.success(name, step())
            except (ContractViolation, KeyError, TypeError, IndexError) as error:
                screen.failure(name, str(error) if isinstance(error, ContractViolation) else repr(error))
                return False
    finally:
        demo.api.close()
    screen.line()
    return True


def main() -> int:
    screen = Console()
    card: dict[str, Any] = read_json(Path(os.environ.get("BERTH_HOME") or ".berth") / "card.json")
    if not card.get("ready"):
        screen.failure("no running stack", "start one with `make run`")
        return 1
    api = card["urls"]["api"]
    try:
        httpx.get(f"{api}/health", timeout=5.0)
    except httpx.TransportError:
        screen.failure("no running stack", f"{api} does not answer; start one with `make run`")
        return 1
    return 0 if run_demo(card, screen) else 1


if __name__ == "__main__":
    sys.exit(main())
