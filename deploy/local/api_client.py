"""Client of the HTTP API, as a customer uses it: for the first order and the demonstration."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx

Json = dict[str, Any]


class ContractViolation(RuntimeError):
    """The stack violated the API contract; the message names the request and the response."""


def format_money(amount: Json) -> str:
    """`{"amount_minor": 1500, "currency": "USD"}` → `15.00 USD`. For display only."""
    exponent = {"JPY": 0, "IDR": 2, "KWD": 3}.get(amount["currency"], 2)
    sign, minor = ("-" if amount["amount_minor"] < 0 else ""), abs(amount["amount_minor"])
    if exponent == 0:
        return f"{sign}{minor} {amount['currency']}"
    major, fraction = divmod(minor, 10**exponent)
    return f"{sign}{major}.{fraction:0{exponent}d} {amount['currency']}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    id: str
    code: str
    service: str
    interval: str
    prices: tuple[Json, ...]
    trial_days: int

    def price(self, currency: str) -> int:
        """Return the price in minor units. Raises `ContractViolation` when the plan has no price in this currency."""
        for price in self.prices:
            if price["currency"] == currency:
                return int(price["amount_minor"])
        raise ContractViolation(f"{self.code} has no price in {currency}")


class ApiClient:
    """One client: anonymous before `login`, afterwards with a bearer token that is renewed when it expires."""

    def __init__(self, card: Json) -> None:
        self.card = card
        self._http = httpx.Client(base_url=card["urls"]["api"], timeout=30.0)
        self._outside = httpx.Client(timeout=15.0)
        self._tokens: Json = {}
        self.credentials: Json = {}

    def close(self) -> None:
        self._http.close()
        self._outside.close()

    # ------------------------------------------------------------ plumbing

    def call(self, method: str, path: str, body: Json | None = None, *, key: str | None = None, **query: str) -> Any:
        """Return the `data` of a 2xx response. Waits on 429 and 503. Raises `ContractViolation` otherwise."""
        return self.request(method, path, body, key=key, **query).get("data")

    def list_all(self, path: str, **query: str) -> list[Json]:
        """Return the entries of all pages of a list."""
        items: list[Json] = []
        while True:
            page = self.request("GET", path, None, key=None, **query)
            items += page["data"]
            following = (page.get("meta") or {}).get("next_cursor")
            if not following:
                return items
            query["cursor"] = following

    def request(
        self, method: str, path: str, body: Json | None = None, *, key: str | None = None, **query: str
    ) -> Json:
        """Return the envelope of a 2xx response: `data` and `meta`."""
        deadline, renewed = time.monotonic() + 60, False
        while True:
            headers = {"Authorization": f"Bearer {self._tokens['access_token']}"} if self._tokens else {}
            if key is not None:
                headers["Idempotency-Key"] = key
            try:
                response = self._http.request(method, f"/api/v1{path}", json=body, params=query, headers=headers)
            except httpx.TransportError as error:
                # Resend only idempotent requests.
                if (method != "GET" and key is None) or time.monotonic() > deadline:
                    raise ContractViolation(f"{method} {path}: {error!r}") from error
                time.sleep(0.5)
                continue
            if response.is_success:
                envelope: Json = response.json() if response.content else {}
                return envelope
            if response.status_code == 401 and self.credentials and not renewed and not path.startswith("/auth/"):
                self.login(**self.credentials)
                renewed = True
                continue
            if response.status_code in (429, 503) and time.monotonic() < deadline:
                time.sleep(min(float(response.headers.get("Retry-After", "1")), 10.0))
                continue
            raise ContractViolation(f"{method} {path} → {response.status_code} {response.text[:500]}")

    @staticmethod
    def new_idempotency_key() -> str:
        return str(uuid.uuid4())

    def call_sandbox(self, method: str, which: str, path: str, body: Json | None = None, **query: str) -> Any:
        """Call one of the sandbox services: `mailbox`, `stripe` or `cluster`."""
        try:
            response = self._outside.request(method, f"{self.card['urls'][which]}{path}", json=body, params=query)
        except httpx.TransportError as error:
            raise ContractViolation(f"{which} {method} {path}: {error!r}") from error
        if not response.is_success:
            raise ContractViolation(f"{which} {method} {path} → {response.status_code} {response.text[:300]}")
        return response.json() if response.content else None

    def wait_until(self, description: str, poll: Callable[[], Any], timeout: float = 60.0) -> Any:
        """Call `poll` until its result is true, and return it. Raises `ContractViolation` after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while True:
            outcome = poll()
            if outcome:
                return outcome
            if time.monotonic() > deadline:
                raise ContractViolation(f"{description}: not within {timeout:g} s")
            time.sleep(0.2)

    # ------------------------------------------------------------ steps

    def login(self, email: str, password: str) -> None:
        self._tokens = {}
        self._tokens = self.call("POST", "/auth/login", {"email": email, "password": password})
        self.credentials = {"email": email, "password": password}

    def mails(self, to: str) -> list[Json]:
        messages: list[Json] = self.call_sandbox("GET", "mailbox", "/messages", to=to)
        return messages

    def token_from_mail(self, to: str) -> str:
        """Return the token of the verification link that was mailed to this address."""

        def find_token() -> str | None:
            for mail in self.mails(to):
                text = f"{mail['text']}\n{mail['html'] or ''}"
                for link in re.findall(r"https?://[^\s\"'<>]+", text):
                    token = parse_qs(urlsplit(link.replace("&amp;", "&")).query).get("token")
                    if token:
                        return str(token[0])
            return None

        return str(self.wait_until("the verification mail", find_token))

    def plans(self) -> Iterator[Plan]:
        for service in self.list_all("/services"):
            # The list may omit plans; the service resource has them.
            complete = service if service.get("plans") else self.call("GET", f"/services/{service['slug']}")
            for plan in complete["plans"]:
                yield Plan(
                    id=plan["id"],
                    code=plan["code"],
                    service=service["slug"],
                    interval=plan["interval"],
                    prices=tuple(plan["prices"]),
                    trial_days=plan["trial_days"],
                )

    def list_plans_of(self, service: str) -> list[Plan]:
        """Return the priced plans of a service, cheapest first."""
        offered = [plan for plan in self.plans() if plan.service == service and plan.prices]
        return sorted(offered, key=lambda plan: int(plan.prices[0]["amount_minor"]))

    def available_balance(self, currency: str) -> int:
        balances = self.call("GET", "/billing/wallet")["balances"]
        return sum(int(b["amount_minor"]) for b in balances if b["currency"] == currency)

    def top_up(self, amount_minor: int, currency: str, key: str | None = None) -> Json:
        """Top up with a test card that pays. Returns once the amount is in the wallet."""
        before = self.available_balance(currency)
        body = {
            "amount_minor": amount_minor,
            "currency": currency,
            "gateway": "stripe",
            "payment_method": "pm_card_visa",
        }
        top_up: Json = self.call("POST", "/billing/topups", body, key=key or self.new_idempotency_key())
        self.wait_until(
            "the top-up in the wallet", lambda: self.available_balance(currency) >= before + amount_minor, 30
        )
        return top_up

    def subscription(self, subscription_id: str) -> Json:
        resource: Json = self.call("GET", f"/subscriptions/{subscription_id}")
        return resource

    def timeline(self, subscription_id: str) -> list[Json]:
        return self.list_all(f"/subscriptions/{subscription_id}/timeline")

    def invoices(self, subscription_id: str) -> list[Json]:
        """Return the invoices of a subscription, oldest period first."""
        listed = self.list_all("/billing/invoices", subscription_id=subscription_id)
        return sorted(listed, key=lambda invoice: (invoice["period_start"] or "", invoice["issued_at"] or ""))

    def advance(self, subscription_id: str, **by: Any) -> str:
        """Advance the subscription's clock and return its new instant. Waits while the API answers 409."""
        body = {"subscription_id": subscription_id, **by}

        def try_advance() -> Any:
            try:
                return self.call("POST", "/sandbox/clock/advance", body)
            except ContractViolation as error:
                if " 409 " in str(error):
                    return None
                raise

        return str(self.wait_until("the clock", try_advance, 120)["now"])
