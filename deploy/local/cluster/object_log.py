"""The append-only file behind the store: one JSON line per write, rewritten once most lines are obsolete.

A write is acknowledged after `write(2)` returned: it survives kill -9 of this process, not a crash of the machine. An
incomplete last line was never acknowledged and is dropped on reading.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import orjson

# Rewrite once the file holds this many more lines than live objects.
SLACK = 20_000


class ObjectLog:
    """Lines of `{"k": resource key, "ns", "n": name, "rv": version, "o": object or null}`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines = 0
        self._file = -1

    def read(self) -> Iterator[dict[str, Any]]:
        """Yield the complete lines, oldest first; truncate an incomplete last one."""
        good = 0
        if self.path.exists():
            with self.path.open("rb") as file:
                for line in file:
                    if not line.endswith(b"\n"):
                        break
                    good += len(line)
                    self.lines += 1
                    yield orjson.loads(line)
            os.truncate(self.path, good)

    def open(self) -> None:
        """Start appending."""
        self._file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def append(self, head: bytes, raw: bytes) -> None:
        """Append one write. `head` is the JSON up to `"o":`, `raw` the object (or `null`)."""
        line = head + raw + b"}\n"
        written = os.write(self._file, line)
        while written < len(line):
            line = line[written:]
            written = os.write(self._file, line)
        self.lines += 1

    def compact(self, live: Iterable[tuple[bytes, bytes]]) -> None:
        """Replace the file by the live objects, atomically."""
        fresh = self.path.with_suffix(".new")
        count = 0
        with fresh.open("wb") as file:
            os.fchmod(file.fileno(), 0o600)
            for head, raw in live:
                file.write(head + raw + b"}\n")
                count += 1
            file.flush()
            os.fsync(file.fileno())
        os.replace(fresh, self.path)
        os.close(self._file)
        self.lines = count
        self.open()

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def head(key: str, namespace: str, name: str, version: int) -> bytes:
    """Return the part of a line before the object. The arguments are plain ASCII without quotes."""
    return f'{{"k":"{key}","ns":"{namespace}","n":"{name}","rv":{version},"o":'.encode()
