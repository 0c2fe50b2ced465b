"""What the supervisor and the demonstration show: plain ANSI on a terminal, plain text elsewhere."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any, TextIO


class Screen:
    """Lines for a person. Colour only on a terminal, and not where NO_COLOR is set."""

    def __init__(self, out: TextIO | None = None) -> None:
        self.out = out or sys.stdout
        self.colour = self.out.isatty() and "NO_COLOR" not in os.environ

    def paint(self, code: str, text: str) -> str:
        return f"\033[{code}m{text}\033[0m" if self.colour else text

    def line(self, text: str = "") -> None:
        try:
            print(text, file=self.out, flush=True)
        except (BrokenPipeError, OSError):
            # Whoever read us is gone (a closed terminal, a finished pipe); the stack goes on.
            self.out = open(os.devnull, "w")  # noqa: SIM115 - lives as long as the process

    def good(self, text: str, evidence: str = "") -> None:
        self.line(f"  {self.paint('32', '✓')} {text:<34}{self.paint('2', evidence)}".rstrip())

    def bad(self, text: str, evidence: str = "") -> None:
        self.line(f"  {self.paint('31', '✗')} {text:<34}{evidence}".rstrip())

    def note(self, text: str) -> None:
        self.line(self.paint("2", f"  {text}"))

    def title(self, text: str) -> None:
        self.line()
        self.line(self.paint("1", text))

    def card(self, card: Mapping[str, Any], files: Mapping[str, str]) -> None:
        """The addresses and credentials of a stack that serves."""
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
