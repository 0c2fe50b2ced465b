"""The order that a new home begins with: n8n for the demonstration customer, over HTTP like anybody's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from deploy.local.journey import Journey, Unexpected, money
from deploy.local.screen import Screen

SERVICE = "n8n"
KEY = "first-order"
READY_WITHIN = 120.0


def place_first_order(card: dict[str, Any], screen: Screen, given_up: Callable[[], bool] = lambda: False) -> bool:
    """Place it and show it becoming ready, line by line. False, with the reason shown, when it did not.

    Placed twice (the first try was interrupted) it is one order: the idempotency keys are fixed. Blocks.
    """
    screen.title("The first order")
    journey = Journey(card)
    try:
        _place(journey, card, screen, given_up)
    except Unexpected as error:
        if not given_up():
            screen.bad("the first order", str(error))
        return False
    finally:
        journey.close()
    return True


def _place(journey: Journey, card: dict[str, Any], screen: Screen, given_up: Callable[[], bool]) -> None:
    customer = card["accounts"]["customer"]
    journey.login(**customer)
    currency = journey.call("GET", "/users/me")["organization"]["currency"]
    plans = journey.plans_of(SERVICE)
    if not plans:
        raise Unexpected(f"the catalogue has no {SERVICE}")
    plan = next((plan for plan in plans if "starter" in plan.code), plans[0])
    price = plan.price(currency)
    missing = max(0, 3 * price - journey.spendable(currency))
    if missing:
        top_up = journey.top_up(missing, currency, key=f"{KEY}-funds")
        screen.good("topped up by card", f"{money({'amount_minor': missing, 'currency': currency})}  {top_up['id']}")
    order = {"plan_id": plan.id, "name": "My first workspace"}
    subscription = journey.call("POST", "/subscriptions", order, key=KEY)
    screen.good(f"ordered {plan.code}", f"{money({'amount_minor': price, 'currency': currency})}  {subscription['id']}")

    shown = 0

    def settled() -> dict[str, Any] | None:
        nonlocal shown
        if given_up():
            raise Unexpected("stopped")
        for entry in journey.timeline(subscription["id"])[shown:]:
            screen.note(f"  {entry['at'][11:19]}  {entry['kind']:<28}{entry['message']}")
            shown += 1
        now = journey.subscription(subscription["id"])
        if now["status"] in ("failed", "expired", "cancelled", "terminated"):
            raise Unexpected(f"the order became {now['status']}")
        ready = now["status"] in ("active", "trialing") and now["instance"]["status"] == "ready"
        return now if ready else None

    ready = journey.until("the instance", settled, READY_WITHIN)
    screen.good("ready", f"{ready['instance']['url']}")
