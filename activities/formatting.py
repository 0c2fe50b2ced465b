"""Formats money and instants for mails, documents and the timeline."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from functools import lru_cache
from zoneinfo import ZoneInfo

import babel.dates
from babel.numbers import format_currency, get_currency_precision, get_currency_symbol

from workflows.rules.money import Money

LOCALE = "en_GB"
UTC = ZoneInfo("UTC")


@lru_cache(maxsize=4096, typed=True)
def format_money(amount_minor: int, currency: str) -> str:
    """Return ``US$15.00``, ``¥1,500``, ``IDR 1,500.00``: exact, with the currency's own number of decimals.

    Raises:
        TypeError: the amount is not a whole number of minor units.
    """
    if type(amount_minor) is not int:
        raise TypeError("an amount is a whole number of minor units")
    exact = Decimal(amount_minor).scaleb(-get_currency_precision(currency))
    # The locale's pattern leaves no space, also not behind a symbol that ends in a letter, where CLDR wants one.
    is_letter_symbol = get_currency_symbol(currency, locale=LOCALE)[-1:].isalpha()
    return format_currency(exact, currency, format="¤\u00a0#,##0.00" if is_letter_symbol else None, locale=LOCALE)


def format_amount(amount: Money) -> str:
    """Return an amount of money as ``format_money`` shows it."""
    return format_money(amount.amount_minor, amount.currency)


def describe_decline(code: str | None) -> str:
    """Return a gateway's decline code in words: ``insufficient_funds`` is "insufficient funds"."""
    return "the card was declined" if code in (None, "declined", "generic_decline") else str(code).replace("_", " ")


def timezone_or_utc(name: str | None) -> ZoneInfo:
    """Return the time zone, or UTC where the name is missing or unknown."""
    try:
        return ZoneInfo(name) if name else UTC
    except (KeyError, ValueError, OSError):
        return UTC


def format_date(instant: datetime, timezone: ZoneInfo) -> str:
    """Return ``31 January 2027``."""
    return babel.dates.format_date(instant.astimezone(timezone), "d MMMM y", locale=LOCALE)


def format_datetime(instant: datetime, timezone: ZoneInfo) -> str:
    """Return ``31 January 2027, 10:00 (Europe/Paris)``."""
    local = babel.dates.format_datetime(instant, "d MMMM y, HH:mm", tzinfo=timezone, locale=LOCALE)
    return f"{local} ({timezone.key})"


def parse_instant(instant: str | datetime) -> datetime:
    """Return an aware instant from ISO 8601 text; text without an offset is UTC."""
    parsed = instant if isinstance(instant, datetime) else datetime.fromisoformat(instant)
    return parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)
