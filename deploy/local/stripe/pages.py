"""The sandbox for people: what happened at the gateway, and the card holder's 3-D Secure page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from typing import Any

_STYLE = """
:root{--ink:#1a1f36;--soft:#697386;--line:#e3e8ee;--paper:#fff;--ground:#f6f8fa;--accent:#635bff}
@media(prefers-color-scheme:dark){:root{--ink:#e6e9f2;--soft:#97a1b8;--line:#2b3247;--paper:#171c2c;--ground:#0f131f;
--accent:#8f89ff}}
*{box-sizing:border-box}body{margin:0;background:var(--ground);color:var(--ink);font:15px/1.5 system-ui,sans-serif}
main{max-width:96rem;margin:0 auto;padding:1.5rem}h1{font-size:1.35rem}h2{font-size:1.05rem;margin:1.8rem 0 .6rem}
.card{background:var(--paper);border:1px solid var(--line);border-radius:12px;overflow-x:auto}.soft{color:var(--soft)}
table{border-collapse:collapse;width:100%}td,th{padding:.55rem .8rem;text-align:left;white-space:nowrap}
th{color:var(--soft);font-weight:500}tbody tr{border-top:1px solid var(--line)}code{font-size:.85em}
td.n{text-align:right;font-variant-numeric:tabular-nums}
form{display:flex;gap:.6rem}.box{max-width:26rem;margin:12vh auto;padding:2rem 2.4rem}
button{font:inherit;color:inherit;padding:.55rem 1.2rem;border-radius:8px;border:1px solid var(--line);cursor:pointer;
background:var(--paper)}button[value=succeed]{background:var(--accent);border-color:var(--accent);color:#fff}
"""


def _page(title: str, body: str) -> str:
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>{body}</body></html>"
    )


def _table(names: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    body = "".join(
        "<tr>" + "".join(f"<td{_align(cell)}>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f'<div class="card"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _align(cell: object) -> str:
    return ' class="n"' if isinstance(cell, int) else ""


def _format_time(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")


def render_overview(
    *,
    charges: Sequence[Mapping[str, Any]],
    events: Sequence[Mapping[str, Any]],
    delivered: tuple[int, int],
    faults: Sequence[Mapping[str, Any]],
) -> str:
    """The latest hundred charges and events, newest first; amounts in minor units."""
    charge_table = _table(
        ("At (UTC)", "Charge", "Minor units", "Currency", "Status", "Captured", "Given back", "Idempotency key"),
        (
            (
                _format_time(charge["created"]),
                charge["id"],
                charge["amount"],
                str(charge["currency"]).upper(),
                charge["failure_code"] or charge["status"],
                "yes" if charge["captured"] else "no",
                charge["refunded"],
                charge["idempotency_key"] or "",
            )
            for charge in charges
        ),
    )
    event_table = _table(
        ("At (UTC)", "Event", "Type", "About"),
        (
            (_format_time(event["created"]), event["id"], event["type"], event["data"]["object"]["id"])
            for event in events
        ),
    )
    ordered = ", ".join(str(fault["fault"]) for fault in faults) or "none"
    return _page(
        "Stripe sandbox",
        f'<main><h1>Stripe sandbox</h1><p class="soft">Configured faults: {escape(ordered)}. '
        f"Webhooks delivered: {delivered[0]} of {delivered[1]}.</p>"
        f"<h2>Charges</h2>{charge_table}<h2>Events</h2>{event_table}</main>",
    )


def render_authentication(intent: Mapping[str, Any]) -> str:
    """Where the holder of a 3-D Secure card completes or fails an intent."""
    subject = (
        f"{intent['amount']} minor units of {intent['currency'].upper()}" if "amount" in intent else "a saved card"
    )
    back = ((intent.get("next_action") or {}).get("redirect_to_url") or {}).get("return_url") or ""
    return _page(
        "3-D Secure sandbox",
        f'<main class="card box"><h1>Is it you?</h1><p>The sandbox bank asks you to confirm {escape(subject)}.</p>'
        f'<p class="soft"><code>{escape(intent["id"])}</code></p><form method="post">'
        f'<input type="hidden" name="return_url" value="{escape(back)}">'
        '<button name="outcome" value="succeed">Complete</button><button name="outcome" value="fail">Fail</button>'
        "</form></main>",
    )
