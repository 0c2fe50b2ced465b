"""The mailbox for people: a list and a mail, plain HTML that needs no script."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from deploy.local.mailbox.store import Mail

_STYLE = """
:root{--ink:#1c2433;--soft:#64708a;--line:#e4e8ef;--paper:#fff;--ground:#f5f7fa;--accent:#2563eb}
@media(prefers-color-scheme:dark){:root{--ink:#e6eaf2;--soft:#93a0b8;--line:#2b3446;--paper:#182030;--ground:#10161f;
--accent:#7aa7ff}}
*{box-sizing:border-box}body{margin:0;background:var(--ground);color:var(--ink);font:15px/1.5 system-ui,sans-serif}
header,main{max-width:60rem;margin:0 auto;padding:1.25rem}
header{display:flex;gap:1rem;align-items:center;flex-wrap:wrap}
h1{font-size:1.25rem;margin:0 auto 0 0}a{color:inherit;text-decoration:none}small,.soft{color:var(--soft)}
.card{background:var(--paper);border:1px solid var(--line);border-radius:12px;overflow:hidden}
ol{list-style:none;margin:0;padding:0}li+li{border-top:1px solid var(--line)}
li a{display:grid;grid-template-columns:14rem 1fr auto;gap:1rem;padding:.8rem 1.1rem}
li a:hover{background:var(--ground)}
li span{overflow:hidden;text-overflow:ellipsis;white-space:nowrap}
input{font:inherit;color:inherit;background:var(--paper);border:1px solid var(--line);border-radius:8px;
padding:.4rem .7rem;width:16rem}
button{font:inherit;border:1px solid var(--line);background:var(--paper);color:inherit;border-radius:8px;
padding:.4rem .9rem;cursor:pointer}.empty{padding:3rem;text-align:center}h2{margin:0 0 .8rem;font-size:1.35rem}
dl{display:grid;grid-template-columns:auto 1fr;gap:.2rem 1rem;margin:0}dt{color:var(--soft)}dd{margin:0;
overflow-wrap:anywhere}.top{padding:1.25rem 1.4rem}
iframe{display:block;width:100%;height:34rem;border:0;background:#fff;
border-top:1px solid var(--line)}pre{margin:0;padding:1.25rem 1.4rem;white-space:pre-wrap;overflow-wrap:anywhere;
border-top:1px solid var(--line);font:13px/1.5 ui-monospace,monospace}
details summary{padding:.8rem 1.4rem;cursor:pointer;
border-top:1px solid var(--line);color:var(--soft)}.back{color:var(--accent)}
@media(max-width:40rem){li a{grid-template-columns:1fr}input{width:100%}}
"""


def _page(title: str, body: str) -> str:
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>{body}</body></html>"
    )


def _format_minute(instant: str) -> str:
    return escape(instant[:16].replace("T", " "))


def render_mail_list(mails: Sequence[Mail], to: str | None) -> str:
    """Newest first, as people read; `to` is the filter in force."""
    rows = "".join(
        f'<li><a href="/mail/{mail.id}"><span class="soft">{escape(mail.recipients)}</span>'
        f"<span>{escape(mail.subject) or '(no subject)'}</span><small>{_format_minute(mail.sent_at)}</small></a></li>"
        for mail in reversed(mails)
    )
    inside = f"<ol>{rows}</ol>" if rows else '<p class="empty soft">No mail yet.</p>'
    return _page(
        "Mailbox",
        f"<header><h1>Mailbox <small>{len(mails)}</small></h1>"
        f'<form><input type="search" name="to" value="{escape(to or "")}" placeholder="Recipient’s address" '
        'aria-label="Recipient’s address"> <button>Filter</button></form>'
        f'</header><main><div class="card">{inside}</div></main>',
    )


def render_mail(mail: Mail, headers: Sequence[tuple[str, str]]) -> str:
    facts = (("From", mail.sender), ("To", mail.recipients), ("Sent", mail.sent_at))
    described = "".join(f"<dt>{name}</dt><dd>{escape(value)}</dd>" for name, value in facts)
    listed = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in headers)
    frame = (
        f'<iframe sandbox="allow-popups allow-popups-to-escape-sandbox" src="/mail/{mail.id}/html" title="HTML part">'
        "</iframe>"
        if mail.html
        else ""
    )
    text = f"<pre>{escape(mail.text)}</pre>" if mail.text else ""
    return _page(
        mail.subject or "Mail",
        '<header><a class="back" href="/">← All mail</a></header><main><article class="card">'
        f'<div class="top"><h2>{escape(mail.subject) or "(no subject)"}</h2><dl>{described}</dl></div>{frame}{text}'
        f'<details><summary>Headers</summary><div class="top"><dl>{listed}</dl></div></details></article></main>',
    )
