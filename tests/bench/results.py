"""Figures, and how they are shown and kept."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path


class Rule(StrEnum):
    """What of a figure is bounded by its target."""

    RATIO_AT_LEAST = "ratio >="
    RATIO_AT_MOST = "ratio <="
    VALUE_AT_MOST = "value <="


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """``ratio`` is value over reference. Without a target a figure only informs."""

    name: str
    value: float
    unit: str
    reference: float | None = None
    rule: Rule | None = None
    target: float | None = None

    @property
    def ratio(self) -> float | None:
        return self.value / self.reference if self.reference else None

    @property
    def held(self) -> bool | None:
        if self.rule is None or self.target is None:
            return None
        if self.rule is Rule.VALUE_AT_MOST:
            return self.value <= self.target
        if self.ratio is None:
            return None
        return self.ratio >= self.target if self.rule is Rule.RATIO_AT_LEAST else self.ratio <= self.target

    def as_json(self) -> dict[str, object]:
        return {
            "name": self.name,
            "value": _rounded(self.value),
            "unit": self.unit,
            "reference": _rounded(self.reference),
            "ratio": _rounded(self.ratio),
            "rule": self.rule,
            "target": self.target,
            "held": self.held,
        }


def table(figures: Sequence[Figure]) -> str:
    """Return the figures as lines of text."""
    rows = [("", "measured", "reference", "ratio", "target", "")]
    for figure in figures:
        target = "" if figure.rule is None or figure.target is None else f"{figure.rule} {figure.target:g}"
        held = {True: "held", False: "NOT HELD", None: ""}[figure.held]
        rows.append(
            (
                figure.name,
                f"{_short(figure.value)} {figure.unit}",
                _short(figure.reference),
                _short(figure.ratio),
                target,
                held,
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def write(figures: Sequence[Figure], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([figure.as_json() for figure in figures], indent=2) + "\n", encoding="utf-8")


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the smallest value that ``percent`` of the values do not exceed."""
    ordered = sorted(values)
    return ordered[max(math.ceil(len(ordered) * percent / 100) - 1, 0)]


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def _short(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
