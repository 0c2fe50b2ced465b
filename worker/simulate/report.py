"""A simulation result as JSON (``contract.md``) and as text for the terminal."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from activities.formatting import format_amount
from worker.simulate.result import Row, SimulationResult
from workflows.rules.money import Money


def render_json(simulated: SimulationResult, seconds: float) -> str:
    document: dict[str, Any] = {
        "months": simulated.months,
        "subscription": {name: simulated.subscription[name] for name in ("id", "status", "plan")},
        "invoices": [
            {
                "number": row["number"],
                "period_start": _format_instant(row["period_start"]),
                "period_end": _format_instant(row["period_end"]),
                "total": {"amount_minor": row["total_minor"], "currency": row["currency"]},
                "status": row["status"],
                "kind": row["kind"],
            }
            for row in simulated.invoices
        ],
        "notifications": [{"kind": row["kind"], "at": _format_instant(row["at"])} for row in simulated.notifications],
        "changes": [
            {"at": _format_instant(row["at"]), "from": row["from"], "to": row["to"], "reason": row["reason"]}
            for row in simulated.changes
        ],
        "events": [
            {"at": _format_instant(outcome.at), "do": outcome.do, "outcome": outcome.outcome}
            for outcome in simulated.event_outcomes
        ],
        "ledger": {
            "transactions": simulated.transactions,
            "unbalanced": simulated.unbalanced,
            "wallet": {"amount_minor": simulated.wallet.amount_minor, "currency": simulated.wallet.currency},
            "drift": simulated.balance_mismatches,
        },
        "seconds": seconds,
    }
    return json.dumps(document, indent=2) + "\n"


def render_text(simulated: SimulationResult, seconds: float) -> str:
    return "\n".join(_lines(simulated, seconds)) + "\n"


def _lines(simulated: SimulationResult, seconds: float) -> Iterator[str]:
    subscription = simulated.subscription
    yield (
        f"{simulated.months} months of {subscription['plan']} ({subscription['id']}),"
        f" now {subscription['status']}, instance {subscription['instance']}"
    )
    yield ""
    yield "Timeline"
    events = [(row["at"], row["kind"], row["message"]) for row in simulated.timeline]
    events += [(outcome.at, f"> {outcome.do}", outcome.outcome) for outcome in simulated.event_outcomes]
    for at, kind, message in sorted(events, key=lambda event: event[0]):
        yield f"  {_format_minute(at)}  {kind:<34} {message}"
    yield ""
    yield "Invoices"
    for row in simulated.invoices:
        amount = format_amount(Money(amount_minor=row["total_minor"], currency=row["currency"]))
        period = f"{row['period_start']:%Y-%m-%d} to {row['period_end']:%Y-%m-%d}"
        yield f"  {row['number'] or '(draft)':<16} {row['kind']:<7} {period}  {amount:>14}  {row['status']}"
    yield ""
    yield "Mails"
    for row in simulated.notifications:
        yield f"  {_format_minute(row['at'])}  {_notification_label(row)}"
    yield ""
    balanced = "balanced" if not simulated.unbalanced and not simulated.balance_mismatches else "NOT BALANCED"
    yield (
        f"Ledger: {simulated.transactions} transactions, {balanced} ({simulated.unbalanced} unbalanced,"
        f" {simulated.balance_mismatches} balance mismatches), wallet balance {format_amount(simulated.wallet)}"
    )
    yield f"{seconds:.1f} s"


def _notification_label(row: Row) -> str:
    context = row["template_context"]
    days = context.get("days")
    return str(row["kind"]) + (f" (in {days} days)" if days else "")


def _format_minute(at: datetime) -> str:
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M}"


def _format_instant(at: datetime) -> str:
    return at.astimezone(UTC).isoformat().replace("+00:00", "Z")
