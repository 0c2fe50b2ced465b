"""What happens on the way, read from a file: ``[{"at": "P1M2D", "do": "top_up", "amount_minor": 5000}, …]``."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any

from workflows.rules.periods import Interval, boundary

MOST_MONTHS = 600
EARLIEST = datetime(2001, 1, 1, tzinfo=UTC)
"""The catalogue's first prices are older than this, so every plan has one."""

_DURATION = re.compile(
    r"P(?!$)(?:(?P<years>\d+)Y)?(?:(?P<months>\d+)M)?(?:(?P<weeks>\d+)W)?(?:(?P<days>\d+)D)?"
    r"(?:T(?!$)(?:(?P<hours>\d+)H)?(?:(?P<minutes>\d+)M)?(?:(?P<seconds>\d+)S)?)?"
)


class WrongEvents(Exception):
    """The file cannot be read, or an entry is wrong; the message names the entry."""


class Deed(StrEnum):
    TOP_UP = "top_up"
    CHANGE_PLAN = "change_plan"
    CANCEL = "cancel"
    RESUME = "resume"
    PAUSE = "pause"
    CARD_DECLINES = "card_declines"
    CARD_WORKS = "card_works"
    REFUND = "refund"


ON_CARDS = frozenset({Deed.TOP_UP, Deed.CARD_DECLINES, Deed.CARD_WORKS, Deed.REFUND})

# Deed -> what else its entry may say, and whether it has to.
_FIELDS: Mapping[Deed, Mapping[str, bool]] = {
    Deed.TOP_UP: {"amount_minor": True},
    Deed.CHANGE_PLAN: {"plan": True, "mode": False},
    Deed.CANCEL: {"when": False},
    Deed.RESUME: {},
    Deed.PAUSE: {},
    Deed.CARD_DECLINES: {"decline_code": False},
    Deed.CARD_WORKS: {},
    Deed.REFUND: {"amount_minor": False, "to": False},
}
_CHOICES: Mapping[str, tuple[str, ...]] = {
    "mode": ("immediate", "period_end"),
    "when": ("now", "period_end"),
    "to": ("source", "wallet"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """``at`` is on the subscription's calendar, ``since`` is how the file spelled it; ``fields`` are the rest."""

    entry: int
    at: datetime
    since: str
    do: Deed
    fields: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Events:
    """In the order of their instants; those of one instant in the order of the file."""

    all: tuple[Event, ...] = ()

    @staticmethod
    def read(path: Path, start: datetime, months: int) -> Events:
        """Read a file; instants are counted from ``start``, the readiness.

        Raises:
            WrongEvents: with a sentence for whoever wrote the file.
        """
        try:
            given = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise WrongEvents(f"{path} cannot be read: {error.strerror}") from error
        except ValueError as error:
            raise WrongEvents(f"{path} is not JSON: {error}") from error
        if not isinstance(given, list):
            raise WrongEvents(f"{path} is not a list of events")
        end = boundary(start, months, Interval.MONTH, "UTC")
        found = [_event(number, entry, start, end) for number, entry in enumerate(given, start=1)]
        return Events(all=tuple(sorted(found, key=lambda event: event.at)))

    @property
    def need_cards(self) -> bool:
        return any(event.do in ON_CARDS for event in self.all)

    @property
    def about_money(self) -> bool:
        """The events themselves decide what pays for the renewals."""
        return any(event.do in ON_CARDS - {Deed.REFUND} for event in self.all)

    def of(self, *deeds: Deed) -> list[Event]:
        return [event for event in self.all if event.do in deeds]


def instant_of(given: str) -> datetime:
    """Read an RFC 3339 instant, or a bare date as its first moment in UTC.

    Raises:
        ValueError: it is neither.
    """
    if re.fullmatch(r"\d{4}-\d\d-\d\d", given):
        given += "T00:00:00Z"
    found = datetime.fromisoformat(given)
    if found.tzinfo is None:
        raise ValueError("an instant needs its offset from UTC")
    return found.astimezone(UTC)


def after(start: datetime, duration: str) -> datetime:
    """Return the instant an ISO 8601 duration after ``start``: months as billing counts them, then the rest.

    Raises:
        ValueError: it is no such duration.
    """
    found = _DURATION.fullmatch(duration)
    if found is None:
        raise ValueError(duration)
    part = {name: int(value or 0) for name, value in found.groupdict().items()}
    months = boundary(start, part["years"] * 12 + part["months"], Interval.MONTH, "UTC")
    return months + timedelta(**{name: part[name] for name in ("weeks", "days", "hours", "minutes", "seconds")})


def _event(number: int, entry: object, start: datetime, end: datetime) -> Event:
    if not isinstance(entry, dict):
        raise WrongEvents(f"entry {number}: not an object")
    named = f"entry {number} ({entry.get('do')!r})"
    try:
        do = Deed(str(entry.get("do")))
    except ValueError:
        raise WrongEvents(f"entry {number}: `do` is one of {', '.join(Deed)}, not {entry.get('do')!r}") from None
    since = entry.get("at")
    try:
        at = after(start, since if isinstance(since, str) else "")
    except (ValueError, OverflowError):
        raise WrongEvents(f"{named}: `at` is an ISO 8601 duration such as P1M2D or PT12H, not {since!r}") from None
    if at >= end:
        raise WrongEvents(f"{named}: {since} lies beyond the months that are simulated")
    wanted = _FIELDS[do]
    unknown = sorted(set(entry) - {"at", "do", *wanted})
    if unknown:
        raise WrongEvents(f"{named}: knows no {', '.join(unknown)}")
    missing = [name for name, required in wanted.items() if required and name not in entry]
    if missing:
        raise WrongEvents(f"{named}: needs {', '.join(missing)}")
    fields = {name: _checked(named, name, entry[name]) for name in wanted if name in entry}
    return Event(entry=number, at=at, since=str(since), do=do, fields=fields)


def _checked(named: str, name: str, value: object) -> object:
    if name == "amount_minor":
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= 10**12:
            raise WrongEvents(f"{named}: `amount_minor` is a positive whole number of minor units, not {value!r}")
    elif name in _CHOICES:
        if value not in _CHOICES[name]:
            raise WrongEvents(f"{named}: `{name}` is {' or '.join(_CHOICES[name])}, not {value!r}")
    elif not isinstance(value, str) or not value:
        raise WrongEvents(f"{named}: `{name}` is a text, not {value!r}")
    return value
