"""State of the sandbox: one SQLite file, one transaction per request.

The effect of a request, its events and the response stored under its idempotency key are committed together before the
response is sent, so that a `kill -9` at any instant leaves either all of them or none.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_SCHEMA = """
CREATE TABLE IF NOT EXISTS objects (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    kind TEXT NOT NULL,
    customer TEXT,
    parent TEXT,
    body TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS objects_by_kind ON objects (kind, seq);
CREATE INDEX IF NOT EXISTS objects_by_customer ON objects (customer, kind) WHERE customer IS NOT NULL;
CREATE INDEX IF NOT EXISTS objects_by_parent ON objects (parent, kind) WHERE parent IS NOT NULL;
CREATE TABLE IF NOT EXISTS answers (
    key TEXT PRIMARY KEY,
    fingerprint TEXT NOT NULL,
    status INTEGER NOT NULL,
    body TEXT NOT NULL,
    request_id TEXT NOT NULL,
    at REAL NOT NULL
);
CREATE TABLE IF NOT EXISTS deliveries (
    event TEXT PRIMARY KEY,
    lane TEXT NOT NULL,
    place INTEGER NOT NULL,
    round INTEGER NOT NULL DEFAULT 1,
    attempts INTEGER NOT NULL DEFAULT 0,
    judged INTEGER NOT NULL DEFAULT 0,
    held INTEGER NOT NULL DEFAULT 0,
    done INTEGER NOT NULL DEFAULT 0,
    due REAL NOT NULL,
    outcome TEXT
);
CREATE INDEX IF NOT EXISTS deliveries_open ON deliveries (due) WHERE done = 0 AND held = 0;
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class IdempotentResponse:
    """A recorded answer: HTTP status, JSON text, the request id it first left under, and its parameters' digest."""

    fingerprint: str
    status: int
    body: str
    request_id: str


class SandboxStore:
    """SQLite in WAL mode; used from one thread. WAL with synchronous=NORMAL survives every death of the process
    (only a power cut may lose the last commits, and then in whole)."""

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None)
        self._connection.row_factory = sqlite3.Row
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.execute("PRAGMA synchronous=NORMAL")
        self._connection.execute("PRAGMA busy_timeout=5000")
        self._connection.executescript(_SCHEMA)

    def close(self) -> None:
        self._connection.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Commit on a clean exit, roll back on any exception."""
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")

    def execute(self, statement: str, values: Sequence[Any] = ()) -> list[sqlite3.Row]:
        return self._connection.execute(statement, values).fetchall()

    # objects -------------------------------------------------------------------------------------------------------

    def get(self, kind: str, identifier: str) -> dict[str, Any] | None:
        rows = self.execute("SELECT body FROM objects WHERE id = ? AND kind = ?", (identifier, kind))
        return json.loads(rows[0]["body"]) if rows else None

    def put(self, body: Mapping[str, Any], *, parent: str | None = None) -> None:
        """Insert or replace; `parent` is what the object belongs to (a charge to its intent), kept when None."""
        customer = body.get("customer")
        self.execute(
            "INSERT INTO objects (id, kind, customer, parent, body) VALUES (?, ?, ?, ?, ?) "
            "ON CONFLICT (id) DO UPDATE SET body = excluded.body, customer = excluded.customer, "
            "parent = COALESCE(excluded.parent, parent)",
            (body["id"], body["object"], customer, parent, json.dumps(body, separators=(",", ":"))),
        )

    def delete(self, identifier: str) -> None:
        self.execute("DELETE FROM objects WHERE id = ?", (identifier,))

    def find(
        self,
        kind: str,
        *,
        customer: str | None = None,
        parent: str | None = None,
        after: str | None = None,
        before: str | None = None,
        limit: int | None = None,
    ) -> list[dict[str, Any]]:
        """Newest first. `after` continues below an id and `before` above one, as Stripe's cursors do."""
        where, values = ["kind = ?"], [kind]
        for column, value in (("customer", customer), ("parent", parent)):
            if value is not None:
                where.append(f"{column} = ?")
                values.append(value)
        if after is not None:
            where.append("seq < (SELECT seq FROM objects WHERE id = ?)")
            values.append(after)
        if before is not None:
            where.append("seq > (SELECT seq FROM objects WHERE id = ?)")
            values.append(before)
        bound = "" if limit is None else f" LIMIT {int(limit)}"
        statement = f"SELECT body FROM objects WHERE {' AND '.join(where)} ORDER BY seq DESC{bound}"  # noqa: S608
        return [json.loads(row["body"]) for row in self.execute(statement, values)]

    # answers -------------------------------------------------------------------------------------------------------

    def get_response(self, key: str) -> IdempotentResponse | None:
        rows = self.execute("SELECT fingerprint, status, body, request_id FROM answers WHERE key = ?", (key,))
        return IdempotentResponse(**dict(rows[0])) if rows else None

    def save_response(self, key: str, response: IdempotentResponse, at: float) -> None:
        self.execute(
            "INSERT OR REPLACE INTO answers (key, fingerprint, status, body, request_id, at) VALUES (?, ?, ?, ?, ?, ?)",
            (key, response.fingerprint, response.status, response.body, response.request_id, at),
        )

    def delete_responses(self, older_than: float) -> None:
        self.execute("DELETE FROM answers WHERE at < ?", (older_than,))
