"""Five-field cron schedules in UTC."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

_ALIASES = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
_MONTH_NAMES = {
    name: i
    for i, name in enumerate(["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"], 1)
}
_DAY_NAMES = {name: i for i, name in enumerate(["sun", "mon", "tue", "wed", "thu", "fri", "sat"])}
_RANGES = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 7))


class BadSchedule(ValueError):
    """The expression is not a cron schedule."""


class Schedule:
    """A parsed cron expression. Raises BadSchedule."""

    def __init__(self, text: str) -> None:
        fields = _ALIASES.get(text.strip(), text).split()
        if len(fields) != 5:
            raise BadSchedule(f"expected exactly 5 fields, found {len(fields)}: [{text}]")
        self._minutes, self._hours, self._days, self._months, weekdays = (
            _field(field, *bounds) for field, bounds in zip(fields, _RANGES, strict=True)
        )
        self._weekdays = {day % 7 for day in weekdays}
        self._any_day, self._any_weekday = fields[2] in ("*", "?"), fields[4] in ("*", "?")

    def next(self, after: datetime) -> datetime:
        """Return the first due minute after `after`."""
        at = (after.astimezone(UTC) + timedelta(minutes=1)).replace(second=0, microsecond=0)
        for _ in range(366 * 5):
            if at.month in self._months and self._day(at):
                for _ in range(24 - at.hour):
                    if at.hour in self._hours:
                        for minute in sorted(self._minutes):
                            if minute >= at.minute:
                                return at.replace(minute=minute)
                    at = at.replace(minute=0) + timedelta(hours=1)
            else:
                at = at.replace(hour=0, minute=0) + timedelta(days=1)
        raise BadSchedule("never due")

    def _day(self, at: datetime) -> bool:
        day, weekday = at.day in self._days, at.isoweekday() % 7 in self._weekdays
        if self._any_day or self._any_weekday:
            return day and weekday
        return day or weekday


def _number(text: str, low: int, high: int) -> int:
    value = (
        {**_MONTH_NAMES, **_DAY_NAMES}.get(text.lower()) if text.isalpha() else int(text) if text.isdigit() else None
    )
    if value is None or not low <= value <= high:
        raise BadSchedule(f"failed to parse {text!r}: not between {low} and {high}")
    return value


def _field(text: str, low: int, high: int) -> set[int]:
    values: set[int] = set()
    for part in text.split(","):
        span, _, step = part.partition("/")
        if step and (not step.isdigit() or int(step) == 0):
            raise BadSchedule(f"step of range should be a positive number: {part}")
        if span in ("*", "?"):
            first, last = low, high
        elif "-" in span:
            low_text, _, high_text = span.partition("-")
            first, last = _number(low_text, low, high), _number(high_text, low, high)
            if first > last:
                raise BadSchedule(f"beginning of range ({first}) beyond end of range ({last}): {part}")
        else:
            first = _number(span, low, high)
            last = high if step else first
        values |= set(range(first, last + 1, int(step) if step else 1))
    return values
