"""Output of the supervisor and the demonstration: ANSI colors on a terminal, plain text elsewhere."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO


class Console:
    """Prints lines for a person. Colors only on a terminal, and not when NO_COLOR is set."""

    def __init__(self, out: TextIO | None = None) -> None:
        self.out = out or sys.stdout
        self.event_log: Path | None = None
        self.colour = self.out.isatty() and "NO_COLOR" not in os.environ

    def paint(self, code: str, text: str) -> str:
        return f"\033[{code}m{text}\033[0m" if self.colour else text

    def line(self, text: str = "") -> None:
        try:
            print(text, file=self.out, flush=True)
        except (BrokenPipeError, OSError):
            # The reader has closed the terminal or the pipe; the stack keeps running.
            self.out = open(os.devnull, "w")  # noqa: SIM115 - lives as long as the process

    def success(self, text: str, evidence: str = "") -> None:
        self.line(f"  {self.paint('32', '✓')} {text:<34}{self.paint('2', evidence)}".rstrip())

    def failure(self, text: str, evidence: str = "") -> None:
        self.line(f"  {self.paint('31', '✗')} {text:<34}{evidence}".rstrip())

    def event(self, text: str) -> None:
        """Print an event with the time of day (UTC), and append it to `event_log` with the full timestamp."""
        now = datetime.now(UTC)
        self.note(f"{now:%H:%M:%S}  {text}")
        self.log_event(text, now)

    def log_event(self, text: str, at: datetime | None = None) -> None:
        """Append an event to `event_log` without printing it. A full disk loses the event, not the stack."""
        if self.event_log is None:
            return
        with contextlib.suppress(OSError), self.event_log.open("a", encoding="utf-8") as log:
            log.write(f"{(at or datetime.now(UTC)):%Y-%m-%dT%H:%M:%SZ} {text}\n")

    def note(self, text: str) -> None:
        self.line(self.paint("2", f"  {text}"))

    def heading(self, text: str) -> None:
        self.line()
        self.line(self.paint("1", text))

    def print_card(self, card: Mapping[str, Any], files: Mapping[str, str]) -> None:
        """Print the addresses and credentials of a ready stack."""
        rows: list[tuple[str, str] | None] = []
        labels = {
            "api": "API",
            "docs": "API documentation",
            "temporal_ui": "Temporal",
            "mailbox": "Mailbox",
            "cluster": "Cluster",
            "stripe": "Card gateway",
            "metrics": "Metrics",
        }
        rows += [(label, card["urls"][name]) for name, label in labels.items() if name in card["urls"]]
        rows.append(None)
        for name, account in card["accounts"].items():
            rows.append((name.capitalize(), f"{account['email']}   {account['password']}"))
        rows.append(None)
        rows.append(("Database", card["database"]["url"]))
        rows.append(("Kubeconfig", card["cluster"]["kubeconfig"]))
        rows += list(files.items())
        width = max(len(f"{row[0]:<20}{row[1]}") for row in rows if row) + 4
        head = f" Berth {card['version']} serves "
        self.line()
        self.line(
            self.paint("36", "╭─") + self.paint("1;36", head) + self.paint("36", "─" * (width - len(head) - 1) + "╮")
        )
        edge = self.paint("36", "│")
        for row in rows:
            if row is None:
                self.line(f"{edge}{' ' * width}{edge}")
                continue
            name, value = row
            pad = " " * (width - 2 - 20 - len(value))
            self.line(f"{edge}  {self.paint('2', f'{name:<20}')}{value}{pad}{edge}")
        self.line(self.paint("36", "╰" + "─" * width + "╯"))
        self.line()
