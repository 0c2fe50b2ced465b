"""Mails from templates: one source per kind gives subject, text and HTML with one look.

A kind's template (``templates/email/<kind>.j2``) fills blocks with plain text; ``layout.html`` and ``layout.txt`` show
the same blocks. Customers' words are values, never template source, are stripped of control characters before they
enter, and are escaped where they leave as HTML.
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
from activities.notice_kinds import KNOWN, REQUIRED
from workflows.rules.notices import NoticeKind

TEMPLATES = Path(__file__).resolve().parents[1] / "templates" / "email"
BLOCKS = ("tone", "subject", "heading", "body", "facts", "action", "note")
SUBJECT_LIMIT = 150
NAMELESS = "your service"
ADDRESS_LIKE = re.compile(r"://|\bwww\.|@|/|[^\W\d_]\.[^\W\d_]{2,}", re.IGNORECASE)


class NotRenderable(Exception):
    """The mail cannot be composed from what the notice says. The message names keys, never values."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reader:
    """Whom a mail addresses. ``timezone`` is the account's."""

    name: str | None
    organization_name: str | None
    timezone: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Mail:
    subject: str
    text: str
    html: str


@dataclass(frozen=True, slots=True)
class Fact:
    label: str
    value: str
    link: str | None


class Renderer:
    """Renders notices. ``public_url`` is where the links of the mails lead."""

    def __init__(self, *, public_url: str, templates: Path = TEMPLATES) -> None:
        self._public_url = public_url.rstrip("/")
        self._environment = Environment(
            loader=FileSystemLoader(templates),
            undefined=StrictUndefined,
            autoescape=select_autoescape(enabled_extensions=("html",), default=False),
            trim_blocks=True,
            lstrip_blocks=True,
        )

    def render(self, kind: str, context: Mapping[str, Any], reader: Reader) -> Mail:
        """Return the mail of ``kind``.

        Raises:
            NotRenderable: a required key is missing, or a value is not what its key promises.
        """
        if kind not in REQUIRED:
            raise NotRenderable("a kind that nobody knows")
        known = NoticeKind(kind)
        missing = sorted(key for key in REQUIRED[known] if context.get(key) is None)
        if missing:
            raise NotRenderable(f"{kind} needs {', '.join(missing)}")
        try:
            values = self._values(context, reader)
            template = self._environment.get_template(f"{known}.j2")
            blocks = {name: _block(template, name, values) for name in BLOCKS}
            return self._composed(blocks, reader)
        except (TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:
            raise NotRenderable(f"{kind}: {type(error).__name__}") from error

    def _composed(self, blocks: Mapping[str, str], reader: Reader) -> Mail:
        action, subject = _fact(blocks["action"]), _sentence(blocks["subject"])[:SUBJECT_LIMIT]
        page = {
            "tone": blocks["tone"] or "calm",
            "subject": subject,
            "heading": _sentence(blocks["heading"]),
            "paragraphs": _paragraphs(blocks["body"]),
            "facts": [fact for line in blocks["facts"].splitlines() if (fact := _fact(line)) is not None],
            "action": action if action is not None and action.link is not None else None,
            "notes": _paragraphs(blocks["note"]),
            "organization_name": _clean(reader.organization_name) if reader.organization_name else None,
            "public_url": self._public_url,
        }
        return Mail(
            subject=subject,
            text=self._environment.get_template("layout.txt").render(page).strip() + "\n",
            html=self._environment.get_template("layout.html").render(page),
        )

    def _values(self, context: Mapping[str, Any], reader: Reader) -> dict[str, Any]:
        timezone = formatting.zone(reader.timezone)

        def money(amount: Mapping[str, Any]) -> str:
            return formatting.money(amount["amount_minor"], amount["currency"])

        def day(instant: str | datetime) -> str:
            return formatting.day(formatting.parsed(instant), timezone)

        def moment(instant: str | datetime) -> str:
            return formatting.moment(formatting.parsed(instant), timezone)

        values: dict[str, Any] = dict.fromkeys(KNOWN)
        values.update({key: _cleaned(value) for key, value in context.items()})
        named = (values["subscription_name"], values["service_name"], values["plan_name"])
        return values | {
            "money": money,
            "day": day,
            "moment": moment,
            "link": self._link,
            "name": next(filter(None, named), NAMELESS),
            "reader": _greeted(reader.name),
        }

    def _link(self, path: str, **query: str) -> str:
        """An address of the portal. Parts of the path and the query are quoted."""
        parts = "/".join(quote(str(part), safe="") for part in path.split("/"))
        pairs = "&".join(f"{key}={quote(str(value), safe='')}" for key, value in query.items())
        return f"{self._public_url}{parts}" + (f"?{pairs}" if pairs else "")


def _block(template: Template, name: str, values: Mapping[str, Any]) -> str:
    block = template.blocks.get(name)
    if block is None:
        return ""
    return "".join(block(template.new_context(dict(values)))).strip()


def _sentence(text: str) -> str:
    """One line; a nameless service at its beginning is written large."""
    line = " ".join(text.split())
    return line[0].upper() + line[1:] if line.startswith(NAMELESS) else line


def _paragraphs(text: str) -> list[str]:
    """Paragraphs are parted by empty lines; a line's end within one is a space."""
    joined = (_sentence(part) for part in text.split("\n\n"))
    return [part for part in joined if part]


def _fact(line: str) -> Fact | None:
    """``Label | value``. The label is the template's, the value may be anybody's."""
    label, bar, value = (piece.strip() for piece in line.partition("|"))
    if not bar or not value:
        return None
    return Fact(label, value, value if _is_link(value) else None)


def _is_link(value: str) -> bool:
    if not value.isprintable() or " " in value:
        return False
    try:
        parts = urlsplit(value)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.netloc)


def _cleaned(value: Any) -> Any:
    if isinstance(value, str):
        return _clean(value)
    if isinstance(value, Mapping):
        return {str(key): _cleaned(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_cleaned(inner) for inner in value]
    return value


def _greeted(name: str | None) -> str | None:
    """A name to say hello to. One that mail programs would show as a link is none: anybody can register anybody."""
    cleaned = _clean(name) if name else ""
    return cleaned if cleaned and not ADDRESS_LIKE.search(cleaned) else None


def _clean(text: str) -> str:
    """One line without control characters, also those that turn the direction of writing: words stay words."""
    kept = "".join(
        " " if unicodedata.category(char) in ("Cc", "Zl", "Zp") else char
        for char in text
        if unicodedata.category(char) not in ("Cs", "Cf") or char in "\u200c\u200d"
    )
    return " ".join(kept.split())
