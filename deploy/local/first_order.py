"""The first order of a new data directory: n8n for the demonstration customer, placed over HTTP."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from deploy.local.api_client import ApiClient, ContractViolation, format_money
from deploy.local.console import Console

SERVICE = "n8n"
KEY = "first-order"
READY_TIMEOUT_SECONDS = 120.0


def place_first_order(card: dict[str, Any], screen: Console, is_stopping: Callable[[], bool] = lambda: False) -> bool:
    """Place the order and print its timeline until it is ready. Blocks.

    Returns False after printing the reason of a failure.

    The idempotency keys are fixed: a retry after an interruption places no second order.
    """
    screen.heading("The first order")
    api = ApiClient(card)
    try:
        _place(api, card, screen, is_stopping)
    except ContractViolation as error:
        if not is_stopping():
            screen.failure("the first order", str(error))
        return False
    finally:
        api.close()
    return True


def _place(api: ApiClient, card: dict[str, Any], screen: Console, is_stopping: Callable[[], bool]) -> None:
    customer = card["accounts"]["customer"]
    api.login(**customer)
    currency = api.call("GET", "/users/me")["organization"]["currency"]
    plans = api.list_plans_of(SERVICE)
    if not plans:
        raise ContractViolation(f"the catalog has no {SERVICE}")
    plan = next((plan for plan in plans if "starter" in plan.code), plans[0])
    price = plan.price(currency)
    missing = max(0, 3 * price - api.available_balance(currency))
    if missing:
        top_up = api.top_up(missing, currency, key=f"{KEY}-funds")
        screen.success(
            "topped up by card", f"{format_money({'amount_minor': missing, 'currency': currency})}  {top_up['id']}"
        )
    order = {"plan_id": plan.id, "name": "My first workspace"}
    subscription = api.call("POST", "/subscriptions", order, key=KEY)
    screen.success(
        f"ordered {plan.code}", f"{format_money({'amount_minor': price, 'currency': currency})}  {subscription['id']}"
    )

    printed_events = 0

    def poll_until_ready() -> dict[str, Any] | None:
        nonlocal printed_events
        if is_stopping():
            raise ContractViolation("stopped")
        for entry in api.timeline(subscription["id"])[printed_events:]:
            screen.note(f"  {entry['at'][11:19]}  {entry['kind']:<28}{entry['message']}")
            printed_events += 1
        now = api.subscription(subscription["id"])
        if now["status"] in ("failed", "expired", "cancelled", "terminated"):
            raise ContractViolation(f"the order became {now['status']}")
        ready = now["status"] in ("active", "trialing") and now["instance"]["status"] == "ready"
        return now if ready else None

    ready = api.wait_until("the instance", poll_until_ready, READY_TIMEOUT_SECONDS)
    screen.success("ready", f"{ready['instance']['url']}")
