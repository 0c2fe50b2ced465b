"""Money and instants as people read them."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from zoneinfo import ZoneInfo

from babel.dates import format_date, format_datetime
from babel.numbers import format_currency, get_currency_precision, get_currency_symbol

LOCALE = "en_GB"
UTC = ZoneInfo("UTC")


def money(amount_minor: int, currency: str) -> str:
    """Return ``US$15.00``, ``¥1,500``, ``IDR 1,500.00``: exact, with the currency's own number of decimals.

    Raises:
        TypeError: the amount is not a whole number of minor units.
    """
    if type(amount_minor) is not int:
        raise TypeError("an amount is a whole number of minor units")
    exact = Decimal(amount_minor).scaleb(-get_currency_precision(currency))
    # The locale's pattern leaves no space, also not behind a symbol that ends in a letter, where CLDR wants one.
    wordy = get_currency_symbol(currency, locale=LOCALE)[-1:].isalpha()
    return format_currency(exact, currency, format="¤\u00a0#,##0.00" if wordy else None, locale=LOCALE)


def zone(name: str | None) -> ZoneInfo:
    """Return the time zone, or UTC where the name is missing or unknown."""
    try:
        return ZoneInfo(name) if name else UTC
    except (KeyError, ValueError, OSError):
        return UTC


def day(instant: datetime, timezone: ZoneInfo) -> str:
    """Return ``31 January 2027``."""
    return format_date(instant.astimezone(timezone), "d MMMM y", locale=LOCALE)


def moment(instant: datetime, timezone: ZoneInfo) -> str:
    """Return ``31 January 2027, 10:00 (Europe/Paris)``."""
    local = format_datetime(instant, "d MMMM y, HH:mm", tzinfo=timezone, locale=LOCALE)
    return f"{local} ({timezone.key})"


def parsed(instant: str | datetime) -> datetime:
    """Return an aware instant from ISO 8601 text; text without an offset is UTC."""
    found = instant if isinstance(instant, datetime) else datetime.fromisoformat(instant)
    return found if found.tzinfo else found.replace(tzinfo=UTC)
