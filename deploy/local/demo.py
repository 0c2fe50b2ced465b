"""The whole story over HTTP, against the running stack: `make demo`. Each step shows its evidence; all must hold."""

from __future__ import annotations

import os
import sys
import time
import uuid
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from deploy.local.home import read_json
from deploy.local.journey import Journey, Json, Plan, Unexpected, money
from deploy.local.screen import Screen

SERVICE = "n8n"
# Defaults of the contract: the last retry on day 7, deletion 30 days after the end.
DELETED_AFTER_DAYS = 31


def hold(condition: object, otherwise: str) -> None:
    if not condition:
        raise Unexpected(otherwise)


def later(instant: str, **by: float) -> str:
    return (datetime.fromisoformat(instant) + timedelta(**by)).isoformat().replace("+00:00", "Z")


class Story:
    """One new customer's life. Each method is a step and returns its evidence."""

    def __init__(self, card: Json) -> None:
        self.journey = Journey(card)
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
            ("order", self.order),
            ("ready", self.ready),
            ("first renewal", self.first_renewal),
            ("plan change", self.change_plan),
            ("failed renewal", self.failed_renewal),
            ("recovery", self.recovery),
            ("cancellation", self.cancel),
            ("retirement", self.retire),
            ("the books", self.books),
        ]

    # ------------------------------------------------------------ helpers

    def _money(self, minor: int) -> str:
        return money({"amount_minor": minor, "currency": self.currency})

    def _subscription(self) -> Json:
        return self.journey.subscription(self.id)

    def _mail(self, since: int) -> str:
        """What was mailed since; mails go out of band, so wait for at least one."""

        def look() -> list[Json]:
            return self.journey.mails(self.email)[since:]

        found: list[Json] = self.journey.until("a mail", look, 30)
        return f"mail “{found[-1]['subject']}”"

    def _until_status(self, *statuses: str) -> Json:
        def look() -> Json | None:
            now = self._subscription()
            return now if now["status"] in statuses else None

        found: Json = self.journey.until(f"the subscription {' or '.join(statuses)}", look)
        return found

    def _period_end(self) -> str:
        now = self._subscription()
        end = (now["current_period"] or {}).get("end") or now["trial_end"]
        hold(end, "no current period")
        return str(end)

    def _to_next_renewal(self) -> None:
        self.journey.advance(self.id, until=later(self._period_end(), hours=1))

    # ------------------------------------------------------------ the story

    def register(self) -> str:
        made = self.journey.call(
            "POST",
            "/auth/register",
            {
                "email": self.email, "password": self.password, "name": "Demo Customer",
                "country": "US", "currency": self.currency, "timezone": "America/New_York",
            },
        )  # fmt: skip
        self.currency = made["organization"]["currency"]
        hold(made["user"]["email_verified"] is False, "a new address counts as verified")
        return f"{self.email}  organization {made['organization']['id']}"

    def verify(self) -> str:
        token = self.journey.token_from_mail(self.email)
        self.journey.call("POST", "/auth/verify-email", {"token": token})
        self.journey.login(self.email, self.password)
        me = self.journey.call("GET", "/users/me")
        hold(me["email"] == self.email, "signed in as somebody else")
        return f"{self._mail(0)}  user {me['id']}"

    def top_up(self) -> str:
        offered = [plan for plan in self.journey.plans_of(SERVICE) if not plan.trial_days]
        first = offered[0] if offered else None
        hold(first, f"{SERVICE} has no plan without a trial")
        assert first is not None
        dearer = [
            plan
            for plan in offered
            if plan.interval == first.interval and plan.price(self.currency) > first.price(self.currency)
        ]
        hold(dearer, f"{SERVICE} has no dearer plan than {first.code}")
        self.plans = [first, dearer[0]]
        amount = 3 * self.plans[0].price(self.currency)
        made = self.journey.top_up(amount, self.currency)
        hold(self.journey.spendable(self.currency) == amount, "the wallet does not hold what was paid")
        return f"{made['id']}  wallet {self._money(amount)}"

    def order(self) -> str:
        key = self.journey.key()
        body = {"plan_id": self.plans[0].id, "name": "Demonstration"}
        made = self.journey.call("POST", "/subscriptions", body, key=key)
        again = self.journey.call("POST", "/subscriptions", body, key=key)
        hold(again["id"] == made["id"], "the same order twice made two subscriptions")
        self.id = made["id"]
        return f"{self.plans[0].code}  {self.id}  {made['status']}"

    def ready(self) -> str:
        def look() -> Json | None:
            now = self._subscription()
            hold(now["status"] not in ("failed", "expired"), f"the order became {now['status']}")
            return now if now["status"] in ("active", "trialing") and now["instance"]["status"] == "ready" else None

        begun = time.monotonic()
        now = self.journey.until("the instance", look, 120)
        self.instance_url = now["instance"]["url"]
        return f"{self.instance_url}  {now['status']}  {time.monotonic() - begun:.1f} s"

    def first_renewal(self) -> str:
        trial = self._subscription()["status"] == "trialing"
        before, mails = len(self.journey.invoices(self.id)), len(self.journey.mails(self.email))
        wallet = self.journey.spendable(self.currency)
        self._to_next_renewal()
        invoices = self.journey.invoices(self.id)
        hold(len(invoices) > before, "no invoice for the new period")
        newest = invoices[-1]
        hold(newest["status"] == "paid", f"the invoice is {newest['status']}")
        hold(self._subscription()["status"] == "active", "not active after its renewal")
        paid = wallet - self.journey.spendable(self.currency)
        if not trial:
            hold(paid == newest["total"]["amount_minor"], f"paid {paid}, invoiced {newest['total']}")
        return f"{newest['number']}  {money(newest['total'])}  {newest['status']}  {self._mail(mails)}"

    def change_plan(self) -> str:
        target = self.plans[1]
        body = {"plan_id": target.id, "mode": "immediate"}
        preview = self.journey.call("POST", f"/subscriptions/{self.id}/change-plan/preview", body)
        due = int(preview["due_now"]["amount_minor"])
        short = due + target.price(self.currency) - self.journey.spendable(self.currency)
        if short > 0:
            self.journey.top_up(short, self.currency)
        before = self.journey.spendable(self.currency)
        self.journey.call("POST", f"/subscriptions/{self.id}/change-plan", body, key=self.journey.key())
        self.journey.until("the new plan", lambda: self._subscription()["plan"]["id"] == target.id)
        paid = before - self.journey.spendable(self.currency)
        hold(paid == due, f"previewed {due}, paid {paid}")
        return f"{self.plans[0].code} → {target.code}  due {self._money(due)} as previewed"

    def failed_renewal(self) -> str:
        # From here on the card pays, and it is one that can be saved but fails when charged.
        self._empty_wallet()
        mails = len(self.journey.mails(self.email))
        self.journey.call(
            "POST",
            "/billing/payment-methods",
            {"gateway": "stripe", "token": "pm_card_chargeCustomerFail", "default": True},
        )
        self._to_next_renewal()
        now = self._until_status("past_due", "suspended")
        newest = self.journey.invoices(self.id)[-1]
        hold(newest["status"] == "open", f"the invoice is {newest['status']}")
        return f"{newest['number']}  {now['status']}  due {money(newest['amount_due'])}  {self._mail(mails)}"

    def _empty_wallet(self) -> None:
        """Renew until the wallet cannot pay the next period: money is spent as a customer spends it."""
        price = self.plans[1].price(self.currency)
        while self.journey.spendable(self.currency) >= price:
            self._to_next_renewal()
            hold(self._subscription()["status"] == "active", "a renewal that the wallet covers did not go through")

    def recovery(self) -> str:
        mails = len(self.journey.mails(self.email))
        saved = self.journey.call(
            "POST", "/billing/payment-methods", {"gateway": "stripe", "token": "pm_card_visa", "default": True}
        )
        self._until_status("active")
        newest = self.journey.invoices(self.id)[-1]
        hold(newest["status"] == "paid", f"the invoice is {newest['status']}")
        return f"{saved['brand']} …{saved['last4']}  {newest['number']} paid  {self._mail(mails)}"

    def cancel(self) -> str:
        mails = len(self.journey.mails(self.email))
        end = self._period_end()
        now = self.journey.call("POST", f"/subscriptions/{self.id}/cancel", {"at": "period_end", "reason": "demo"})
        hold(now["cancel_at_period_end"] is True, "the end is not noted")
        self.journey.advance(self.id, until=later(end, hours=1))
        self._until_status("cancelled")
        return f"at the period's end {end[:10]}  {self._mail(mails)}"

    def retire(self) -> str:
        instance = self._subscription()["instance"]["id"]
        self.journey.advance(self.id, days=DELETED_AFTER_DAYS)
        self._until_status("terminated")

        def look() -> Json | None:
            found: Json = self.journey.call("GET", f"/instances/{instance}")
            return found if found["status"] == "deleted" else None

        self.journey.until("the instance deleted", look)
        return f"instance {instance} deleted"

    def books(self) -> str:
        """What the wallet says equals what its transactions sum to, and the gateway charged nothing twice."""
        wallet = self.journey.call("GET", "/billing/wallet")
        shown = sum(int(b["amount_minor"]) for b in (*wallet["balances"], *wallet["held"]))
        transactions = self.journey.every("/billing/transactions")
        summed = sum(int(entry["amount"]["amount_minor"]) for entry in transactions)
        hold(shown == summed, f"the wallet shows {shown}, its transactions sum to {summed}")
        keys = [c["idempotency_key"] for c in self.journey.outside("GET", "stripe", "/sandbox/charges")]
        used = [key for key in keys if key]
        hold(len(used) == len(set(used)), "a charge was made twice under one key")
        paid = [i for i in self.journey.invoices(self.id) if i["status"] == "paid"]
        periods = {(i["period_start"], i["period_end"]) for i in paid}
        counts = f"{len(transactions)} transactions, {len(paid)} paid invoices over {len(periods)} periods"
        return f"{counts}, wallet {self._money(shown)}"


def tell(card: Json, screen: Screen) -> bool:
    """Tell the story; False at the first step that does not hold."""
    story = Story(card)
    screen.title("The story of one subscription")
    try:
        for name, step in story.steps:
            try:
                screen.good(name, step())
            except (Unexpected, KeyError, TypeError, IndexError) as error:
                screen.bad(name, str(error) if isinstance(error, Unexpected) else repr(error))
                return False
    finally:
        story.journey.close()
    screen.line()
    return True


def main() -> int:
    screen = Screen()
    card: dict[str, Any] = read_json(Path(os.environ.get("BERTH_HOME") or ".berth") / "card.json")
    if not card.get("ready"):
        screen.bad("no running stack", "start one with `make run`")
        return 1
    return 0 if tell(card, screen) else 1


if __name__ == "__main__":
    sys.exit(main())
