"""A customer's way through the HTTP API, as the first order and the demonstration walk it."""

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


class Unexpected(RuntimeError):
    """The stack did something else than the contract says; the message carries what."""


def money(amount: Json) -> str:
    """`{"amount_minor": 1500, "currency": "USD"}` → `15.00 USD`. For the eye only."""
    exponent = {"JPY": 0, "IDR": 2, "KWD": 3}.get(amount["currency"], 2)
    sign, minor = ("-" if amount["amount_minor"] < 0 else ""), abs(amount["amount_minor"])
    if exponent == 0:
        return f"{sign}{minor} {amount['currency']}"
    whole, rest = divmod(minor, 10**exponent)
    return f"{sign}{whole}.{rest:0{exponent}d} {amount['currency']}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    id: str
    code: str
    service: str
    interval: str
    prices: tuple[Json, ...]
    trial_days: int

    def price(self, currency: str) -> int:
        """Minor units. Raises `Unexpected` when the plan is not sold in this currency."""
        for price in self.prices:
            if price["currency"] == currency:
                return int(price["amount_minor"])
        raise Unexpected(f"{self.code} has no price in {currency}")


class Journey:
    """One visitor: before `login` anonymous, afterwards with a bearer token that is renewed when it runs out."""

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
        """The `data` of a 2xx answer. Waits where the API asks to (429, 503). Raises `Unexpected` otherwise."""
        return self.answer(method, path, body, key=key, **query).get("data")

    def every(self, path: str, **query: str) -> list[Json]:
        """All pages of a list."""
        found: list[Json] = []
        while True:
            page = self.answer("GET", path, None, key=None, **query)
            found += page["data"]
            following = (page.get("meta") or {}).get("next_cursor")
            if not following:
                return found
            query["cursor"] = following

    def answer(self, method: str, path: str, body: Json | None = None, *, key: str | None = None, **query: str) -> Json:
        """The whole envelope of a 2xx answer."""
        deadline, renewed = time.monotonic() + 60, False
        while True:
            headers = {"Authorization": f"Bearer {self._tokens['access_token']}"} if self._tokens else {}
            if key is not None:
                headers["Idempotency-Key"] = key
            try:
                answer = self._http.request(method, f"/api/v1{path}", json=body, params=query, headers=headers)
            except httpx.TransportError as error:
                # Only what is safe to send again is sent again.
                if (method != "GET" and key is None) or time.monotonic() > deadline:
                    raise Unexpected(f"{method} {path}: {error!r}") from error
                time.sleep(0.5)
                continue
            if answer.is_success:
                whole: Json = answer.json() if answer.content else {}
                return whole
            if answer.status_code == 401 and self.credentials and not renewed and not path.startswith("/auth/"):
                self.login(**self.credentials)
                renewed = True
                continue
            if answer.status_code in (429, 503) and time.monotonic() < deadline:
                time.sleep(min(float(answer.headers.get("Retry-After", "1")), 10.0))
                continue
            raise Unexpected(f"{method} {path} → {answer.status_code} {answer.text[:500]}")

    @staticmethod
    def key() -> str:
        return str(uuid.uuid4())

    def outside(self, method: str, which: str, path: str, body: Json | None = None, **query: str) -> Any:
        """A call to one of the sandbox's own services: `mailbox`, `stripe`, `cluster`."""
        try:
            answer = self._outside.request(method, f"{self.card['urls'][which]}{path}", json=body, params=query)
        except httpx.TransportError as error:
            raise Unexpected(f"{which} {method} {path}: {error!r}") from error
        if not answer.is_success:
            raise Unexpected(f"{which} {method} {path} → {answer.status_code} {answer.text[:300]}")
        return answer.json() if answer.content else None

    def until(self, what: str, look: Callable[[], Any], timeout: float = 60.0) -> Any:
        """Look until there is something true, and return it."""
        deadline = time.monotonic() + timeout
        while True:
            found = look()
            if found:
                return found
            if time.monotonic() > deadline:
                raise Unexpected(f"{what}: not within {timeout:g} s")
            time.sleep(0.2)

    # ------------------------------------------------------------ steps

    def login(self, email: str, password: str) -> None:
        self._tokens = {}
        self._tokens = self.call("POST", "/auth/login", {"email": email, "password": password})
        self.credentials = {"email": email, "password": password}

    def mails(self, to: str) -> list[Json]:
        found: list[Json] = self.outside("GET", "mailbox", "/messages", to=to)
        return found

    def token_from_mail(self, to: str) -> str:
        """The token of the verification link that was mailed there."""

        def look() -> str | None:
            for mail in self.mails(to):
                text = f"{mail['text']}\n{mail['html'] or ''}"
                for link in re.findall(r"https?://[^\s\"'<>]+", text):
                    token = parse_qs(urlsplit(link.replace("&amp;", "&")).query).get("token")
                    if token:
                        return str(token[0])
            return None

        return str(self.until("the verification mail", look))

    def plans(self) -> Iterator[Plan]:
        for service in self.every("/services"):
            # The list may be brief; the service itself is complete.
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

    def plans_of(self, service: str) -> list[Plan]:
        """Cheapest first."""
        found = [plan for plan in self.plans() if plan.service == service and plan.prices]
        return sorted(found, key=lambda plan: int(plan.prices[0]["amount_minor"]))

    def spendable(self, currency: str) -> int:
        balances = self.call("GET", "/billing/wallet")["balances"]
        return sum(int(b["amount_minor"]) for b in balances if b["currency"] == currency)

    def top_up(self, amount_minor: int, currency: str, key: str | None = None) -> Json:
        """By a card that works; returns once the money is in the wallet."""
        before = self.spendable(currency)
        body = {
            "amount_minor": amount_minor,
            "currency": currency,
            "gateway": "stripe",
            "payment_method": "pm_card_visa",
        }
        made: Json = self.call("POST", "/billing/topups", body, key=key or self.key())
        self.until("the top-up in the wallet", lambda: self.spendable(currency) >= before + amount_minor, 30)
        return made

    def subscription(self, subscription_id: str) -> Json:
        found: Json = self.call("GET", f"/subscriptions/{subscription_id}")
        return found

    def timeline(self, subscription_id: str) -> list[Json]:
        return self.every(f"/subscriptions/{subscription_id}/timeline")

    def invoices(self, subscription_id: str) -> list[Json]:
        """Oldest period first."""
        found = self.every("/billing/invoices", subscription_id=subscription_id)
        return sorted(found, key=lambda invoice: (invoice["period_start"] or "", invoice["issued_at"] or ""))

    def advance(self, subscription_id: str, **by: Any) -> str:
        """Move the subscription's clock; returns its new instant. While it provisions that is refused: wait."""
        body = {"subscription_id": subscription_id, **by}

        def look() -> Any:
            try:
                return self.call("POST", "/sandbox/clock/advance", body)
            except Unexpected as error:
                if " 409 " in str(error):
                    return None
                raise

        return str(self.until("the clock", look, 120)["now"])
