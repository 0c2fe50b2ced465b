"""Events of a simulation, read from a file: ``[{"at": "P1M2D", "do": "top_up", "amount_minor": 5000}, …]``."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any

from workflows.rules.periods import Interval, period_boundary

MAX_MONTHS = 600
EARLIEST_START = datetime(2001, 1, 1, tzinfo=UTC)
"""The catalog's first prices are older than this, so every plan has one."""

_DURATION = re.compile(
    r"P(?!$)(?:(?P<years>\d+)Y)?(?:(?P<months>\d+)M)?(?:(?P<weeks>\d+)W)?(?:(?P<days>\d+)D)?"
    r"(?:T(?!$)(?:(?P<hours>\d+)H)?(?:(?P<minutes>\d+)M)?(?:(?P<seconds>\d+)S)?)?"
)


class InvalidEventsFile(Exception):
    """The file cannot be read, or an entry is wrong; the message names the entry."""


class EventAction(StrEnum):
    TOP_UP = "top_up"
    CHANGE_PLAN = "change_plan"
    CANCEL = "cancel"
    RESUME = "resume"
    PAUSE = "pause"
    CARD_DECLINES = "card_declines"
    CARD_WORKS = "card_works"
    REFUND = "refund"


CARD_ACTIONS = frozenset({EventAction.TOP_UP, EventAction.CARD_DECLINES, EventAction.CARD_WORKS, EventAction.REFUND})

# Action -> its fields, and whether each is required.
_FIELDS: Mapping[EventAction, Mapping[str, bool]] = {
    EventAction.TOP_UP: {"amount_minor": True},
    EventAction.CHANGE_PLAN: {"plan": True, "mode": False},
    EventAction.CANCEL: {"when": False},
    EventAction.RESUME: {},
    EventAction.PAUSE: {},
    EventAction.CARD_DECLINES: {"decline_code": False},
    EventAction.CARD_WORKS: {},
    EventAction.REFUND: {"amount_minor": False, "to": False},
}
_CHOICES: Mapping[str, tuple[str, ...]] = {
    "mode": ("immediate", "period_end"),
    "when": ("now", "period_end"),
    "to": ("source", "wallet"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """``at`` is an instant of the simulated clock, ``duration`` its spelling in the file, ``fields`` the other keys."""

    entry: int
    at: datetime
    duration: str
    action: EventAction
    fields: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Events:
    """Events in the order of their instants; events of one instant keep the order of the file."""

    events: tuple[Event, ...] = ()

    @staticmethod
    def read(path: Path, start: datetime, months: int) -> Events:
        """Read a file of events; durations count from ``start``, when the instance is ready.

        Raises:
            InvalidEventsFile: The message names the entry and the error.
        """
        try:
            entries = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise InvalidEventsFile(f"{path} cannot be read: {error.strerror}") from error
        except ValueError as error:
            raise InvalidEventsFile(f"{path} is not JSON: {error}") from error
        if not isinstance(entries, list):
            raise InvalidEventsFile(f"{path} is not a list of events")
        end = period_boundary(start, months, Interval.MONTH, "UTC")
        events = [_parse_event(number, entry, start, end) for number, entry in enumerate(entries, start=1)]
        return Events(events=tuple(sorted(events, key=lambda event: event.at)))

    @property
    def needs_card_gateway(self) -> bool:
        return any(event.action in CARD_ACTIONS for event in self.events)

    @property
    def controls_funding(self) -> bool:
        """Whether the events decide how renewals are paid."""
        return any(event.action in CARD_ACTIONS - {EventAction.REFUND} for event in self.events)

    def with_action(self, *actions: EventAction) -> list[Event]:
        return [event for event in self.events if event.action in actions]


def parse_instant(text: str) -> datetime:
    """Read an RFC 3339 instant, or a bare date as its first moment in UTC.

    Raises:
        ValueError: The text is neither.
    """
    if re.fullmatch(r"\d{4}-\d\d-\d\d", text):
        text += "T00:00:00Z"
    instant = datetime.fromisoformat(text)
    if instant.tzinfo is None:
        raise ValueError("an instant needs its offset from UTC")
    return instant.astimezone(UTC)


def add_duration(start: datetime, duration: str) -> datetime:
    """Return the instant an ISO 8601 duration after ``start``: months as billing counts them, then the rest.

    Raises:
        ValueError: The text is not such a duration.
    """
    match = _DURATION.fullmatch(duration)
    if match is None:
        raise ValueError(duration)
    part = {name: int(value or 0) for name, value in match.groupdict().items()}
    months = period_boundary(start, part["years"] * 12 + part["months"], Interval.MONTH, "UTC")
    return months + timedelta(**{name: part[name] for name in ("weeks", "days", "hours", "minutes", "seconds")})


def _parse_event(number: int, entry: object, start: datetime, end: datetime) -> Event:
    if not isinstance(entry, dict):
        raise InvalidEventsFile(f"entry {number}: not an object")
    named = f"entry {number} ({entry.get('do')!r})"
    try:
        do = EventAction(str(entry.get("do")))
    except ValueError:
        raise InvalidEventsFile(
            f"entry {number}: `do` is one of {', '.join(EventAction)}, not {entry.get('do')!r}"
        ) from None
    since = entry.get("at")
    try:
        at = add_duration(start, since if isinstance(since, str) else "")
    except (ValueError, OverflowError):
        raise InvalidEventsFile(
            f"{named}: `at` is an ISO 8601 duration such as P1M2D or PT12H, not {since!r}"
        ) from None
    if at >= end:
        raise InvalidEventsFile(f"{named}: `at` {since} is after the end of the simulation")
    fields_of_action = _FIELDS[do]
    unknown = sorted(set(entry) - {"at", "do", *fields_of_action})
    if unknown:
        raise InvalidEventsFile(f"{named}: unknown fields: {', '.join(unknown)}")
    missing = [name for name, required in fields_of_action.items() if required and name not in entry]
    if missing:
        raise InvalidEventsFile(f"{named}: missing fields: {', '.join(missing)}")
    fields = {name: _validate_field(named, name, entry[name]) for name in fields_of_action if name in entry}
    return Event(entry=number, at=at, duration=str(since), action=do, fields=fields)


def _validate_field(named: str, name: str, value: object) -> object:
    if name == "amount_minor":
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= 10**12:
            raise InvalidEventsFile(f"{named}: `amount_minor` is a positive whole number of minor units, not {value!r}")
    elif name in _CHOICES:
        if value not in _CHOICES[name]:
            raise InvalidEventsFile(f"{named}: `{name}` is {' or '.join(_CHOICES[name])}, not {value!r}")
    elif not isinstance(value, str) or not value:
        raise InvalidEventsFile(f"{named}: `{name}` is a text, not {value!r}")
    return value
