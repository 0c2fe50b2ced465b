"""A simulated life as JSON (``contract.md``) and as a story for the terminal."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from activities import formatting
from worker.simulate.records import Row, Story
from workflows.rules.money import Money


def as_json(story: Story, seconds: float) -> str:
    told: dict[str, Any] = {
        "months": story.months,
        "subscription": {name: story.subscription[name] for name in ("id", "status", "plan")},
        "invoices": [
            {
                "number": row["number"],
                "period_start": _instant(row["period_start"]),
                "period_end": _instant(row["period_end"]),
                "total": {"amount_minor": row["total_minor"], "currency": row["currency"]},
                "status": row["status"],
                "kind": row["kind"],
            }
            for row in story.invoices
        ],
        "notifications": [{"kind": row["kind"], "at": _instant(row["at"])} for row in story.notifications],
        "changes": [
            {"at": _instant(row["at"]), "from": row["from"], "to": row["to"], "reason": row["reason"]}
            for row in story.changes
        ],
        "events": [{"at": _instant(one.at), "do": one.do, "outcome": one.outcome} for one in story.happened],
        "ledger": {
            "transactions": story.transactions,
            "unbalanced": story.unbalanced,
            "wallet": {"amount_minor": story.wallet.amount_minor, "currency": story.wallet.currency},
            "drift": story.drift,
        },
        "seconds": seconds,
    }
    return json.dumps(told, indent=2) + "\n"


def as_text(story: Story, seconds: float) -> str:
    return "\n".join(_lines(story, seconds)) + "\n"


def _lines(story: Story, seconds: float) -> Iterator[str]:
    told = story.subscription
    yield f"{story.months} months of {told['plan']} ({told['id']}), now {told['status']}, instance {told['instance']}"
    yield ""
    yield "Timeline"
    events = [(row["at"], row["kind"], row["message"]) for row in story.timeline]
    events += [(one.at, f"> {one.do}", one.outcome) for one in story.happened]
    for at, kind, message in sorted(events, key=lambda event: event[0]):
        yield f"  {_minute(at)}  {kind:<34} {message}"
    yield ""
    yield "Invoices"
    for row in story.invoices:
        amount = _plain(Money(amount_minor=row["total_minor"], currency=row["currency"]))
        period = f"{row['period_start']:%Y-%m-%d} to {row['period_end']:%Y-%m-%d}"
        yield f"  {row['number'] or '(draft)':<16} {row['kind']:<7} {period}  {amount:>14}  {row['status']}"
    yield ""
    yield "Mails"
    for row in story.notifications:
        yield f"  {_minute(row['at'])}  {_mail(row)}"
    yield ""
    balanced = "balanced" if not story.unbalanced and not story.drift else "NOT BALANCED"
    yield (
        f"Ledger: {story.transactions} transactions, {balanced} ({story.unbalanced} unbalanced, {story.drift} drifted),"
        f" {_plain(story.wallet)} left in the wallet"
    )
    yield f"{seconds:.1f} s"


def _mail(row: Row) -> str:
    context = row["context"]
    days = context.get("days")
    return str(row["kind"]) + (f" (in {days} days)" if days else "")


def _plain(amount: Money) -> str:
    return formatting.money(amount.amount_minor, amount.currency)


def _minute(at: datetime) -> str:
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M}"


def _instant(at: datetime) -> str:
    return at.astimezone(UTC).isoformat().replace("+00:00", "Z")
