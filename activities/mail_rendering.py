"""Renders notifications from templates: one template per kind gives subject, text and HTML.

A kind's template (``templates/email/<kind>.j2``) fills blocks with plain text; ``layout.html`` and ``layout.txt`` show
the same blocks. Customer text is passed as values, never as template source. Control characters are removed from it,
and it is escaped in HTML.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template, TemplateError, select_autoescape

from activities import formatting
from activities.notification_keys import ALLOWED_KEYS, REQUIRED_KEYS
from workflows.rules.notifications import NotificationKind

TEMPLATES = Path(__file__).resolve().parents[1] / "templates" / "email"
BLOCKS = ("severity", "subject", "heading", "body", "details", "call_to_action", "footnote")
SUBJECT_LIMIT = 150
FALLBACK_NAME = "your service"
LINK_LIKE = re.compile(r"://|\bwww\.|@|/|[^\W\d_]\.[^\W\d_]{2,}", re.IGNORECASE)


class RenderingError(Exception):
    """The notification's context does not fit its template. The message names keys, never values."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipient:
    """The recipient of a mail. ``timezone`` is the organization's."""

    name: str | None
    organization_name: str | None
    timezone: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderedMail:
    subject: str
    text: str
    html: str


@dataclass(frozen=True, slots=True)
class DetailRow:
    label: str
    value: str
    link: str | None


class MailRenderer:
    """Renders notifications.

    Args:
        public_url: Base of the links in mails.
        support_email: Address for questions, shown at the end of every mail; None omits it.
    """

    def __init__(self, *, public_url: str, support_email: str | None = None, templates: Path = TEMPLATES) -> None:
        self._public_url = public_url.rstrip("/")
        self._support_email = support_email
        self._environment = Environment(
            loader=FileSystemLoader(templates),
            undefined=StrictUndefined,
            autoescape=select_autoescape(enabled_extensions=("html",), default=False),
            trim_blocks=True,
            lstrip_blocks=True,
        )

    def render(self, kind: str, context: Mapping[str, Any], recipient: Recipient) -> RenderedMail:
        """Return the mail of ``kind``.

        Raises:
            RenderingError: the kind is unknown, a required key is missing, or a value has the wrong type.
        """
        if kind not in REQUIRED_KEYS:
            raise RenderingError("unknown kind")
        notification_kind = NotificationKind(kind)
        missing = sorted(key for key in REQUIRED_KEYS[notification_kind] if context.get(key) is None)
        if missing:
            raise RenderingError(f"{kind} needs {', '.join(missing)}")
        try:
            values = self._template_context(context, recipient)
            template = self._environment.get_template(f"{notification_kind}.j2")
            blocks = {name: _render_block(template, name, values) for name in BLOCKS}
            return self._layout(blocks, recipient)
        except (TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:
            raise RenderingError(f"{kind}: {type(error).__name__}") from error

    def _layout(self, blocks: Mapping[str, str], recipient: Recipient) -> RenderedMail:
        call_to_action = _parse_detail_row(blocks["call_to_action"])
        subject = _single_line(blocks["subject"])[:SUBJECT_LIMIT]
        rows = map(_parse_detail_row, blocks["details"].splitlines())
        page = {
            "severity": blocks["severity"] or "info",
            "subject": subject,
            "heading": _single_line(blocks["heading"]),
            "paragraphs": _paragraphs(blocks["body"]),
            "details": [row for row in rows if row is not None],
            "call_to_action": call_to_action
            if call_to_action is not None and call_to_action.link is not None
            else None,
            "footnotes": _paragraphs(blocks["footnote"]),
            "support_email": self._support_email,
            "organization_name": _name_without_link(recipient.organization_name),
            "public_url": self._public_url,
        }
        return RenderedMail(
            subject=subject,
            text=self._environment.get_template("layout.txt").render(page).strip() + "\n",
            html=self._environment.get_template("layout.html").render(page),
        )

    def _template_context(self, context: Mapping[str, Any], recipient: Recipient) -> dict[str, Any]:
        timezone = formatting.timezone_or_utc(recipient.timezone)

        def format_money(amount: Mapping[str, Any]) -> str:
            return formatting.format_money(amount["amount_minor"], amount["currency"])

        def format_date(instant: str | datetime) -> str:
            return formatting.format_date(formatting.parse_instant(instant), timezone)

        def format_datetime(instant: str | datetime) -> str:
            return formatting.format_datetime(formatting.parse_instant(instant), timezone)

        values: dict[str, Any] = dict.fromkeys(ALLOWED_KEYS)
        values.update({key: _sanitize_value(value) for key, value in context.items()})
        named = (values["subscription_name"], values["service_name"], values["plan_name"])
        return values | {
            "format_money": format_money,
            "format_date": format_date,
            "format_datetime": format_datetime,
            "portal_url": self._portal_url,
            "name": next(filter(None, named), FALLBACK_NAME),
            "recipient_name": _name_without_link(recipient.name),
        }

    def _portal_url(self, path: str, **query: str) -> str:
        """Return a URL of the portal. Parts of the path and the query are quoted."""
        parts = "/".join(quote(str(part), safe="") for part in path.split("/"))
        pairs = "&".join(f"{key}={quote(str(value), safe='')}" for key, value in query.items())
        return f"{self._public_url}{parts}" + (f"?{pairs}" if pairs else "")


def _render_block(template: Template, name: str, values: Mapping[str, Any]) -> str:
    block = template.blocks.get(name)
    if block is None:
        return ""
    return "".join(block(template.new_context(dict(values)))).strip()


def _single_line(text: str) -> str:
    """Join the lines. The fallback name of a service is capitalized at the beginning."""
    line = " ".join(text.split())
    return line[0].upper() + line[1:] if line.startswith(FALLBACK_NAME) else line


def _paragraphs(text: str) -> list[str]:
    """Split at empty lines. A single line break is a space."""
    joined = (_single_line(part) for part in text.split("\n\n"))
    return [part for part in joined if part]


def _parse_detail_row(line: str) -> DetailRow | None:
    """Parse ``Label | value``. The label comes from the template, the value may be customer text."""
    label, bar, value = (piece.strip() for piece in line.partition("|"))
    if not bar or not value:
        return None
    return DetailRow(label, value, value if _is_link(value) else None)


def _is_link(value: str) -> bool:
    if not value.isprintable() or " " in value:
        return False
    try:
        parts = urlsplit(value)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.netloc)


def _sanitize_value(value: Any) -> Any:
    if isinstance(value, str):
        return _sanitize_text(value)
    if isinstance(value, Mapping):
        return {str(key): _sanitize_value(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_sanitize_value(inner) for inner in value]
    return value


def _name_without_link(name: str | None) -> str | None:
    """Return the name of a user or an organization, which is first its user's; None if it looks like a link.

    Anyone can register a foreign address: a link in the name would make the mail a carrier of spam.
    """
    cleaned = _sanitize_text(name) if name else ""
    return cleaned if cleaned and not LINK_LIKE.search(cleaned) else None


def _sanitize_text(text: str) -> str:
    """Return one line without control characters, including those that change the direction of writing."""
    printable = "".join(
        " " if unicodedata.category(char) in ("Cc", "Zl", "Zp") else char
        for char in text
        if unicodedata.category(char) not in ("Cs", "Cf") or char in "\u200c\u200d"
    )
    return " ".join(printable.split())
