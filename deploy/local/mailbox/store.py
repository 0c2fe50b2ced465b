"""Received mails in one SQLite file."""

from __future__ import annotations

import email.policy
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from email.message import EmailMessage
from email.parser import BytesParser
from email.utils import getaddresses
from pathlib import Path

_SCHEMA = """
CREATE TABLE IF NOT EXISTS messages (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    sender TEXT NOT NULL,
    recipients TEXT NOT NULL,
    subject TEXT NOT NULL,
    sent_at TEXT NOT NULL,
    received_at TEXT NOT NULL,
    text TEXT NOT NULL,
    html TEXT NOT NULL,
    raw BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS recipients (
    address TEXT NOT NULL,
    message INTEGER NOT NULL REFERENCES messages (id) ON DELETE CASCADE,
    PRIMARY KEY (address, message)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS seen (
    message_id TEXT NOT NULL,
    address TEXT NOT NULL,
    PRIMARY KEY (message_id, address)
) WITHOUT ROWID;
"""
_COLUMNS = "id, sender, recipients, subject, sent_at, received_at, text, html"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mail:
    """One stored mail. `recipients` are the envelope's, joined by comma; instants are RFC 3339 UTC."""

    id: str
    sender: str
    recipients: str
    subject: str
    sent_at: str
    received_at: str
    text: str
    html: str

    def to_json(self) -> dict[str, str]:
        return {
            "id": self.id,
            "from": self.sender,
            "to": self.recipients,
            "subject": self.subject,
            "sent_at": self.sent_at,
            "text": self.text,
            "html": self.html,
            "received_at": self.received_at,
        }


class MailStore:
    """WAL with synchronous=NORMAL: what was committed survives every death of the process."""

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None)
        self._connection.row_factory = sqlite3.Row
        for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "busy_timeout=5000", "foreign_keys=ON"):
            self._connection.execute(f"PRAGMA {pragma}")
        self._connection.executescript(_SCHEMA)

    def close(self) -> None:
        self._connection.close()

    def add(self, raw: bytes, sender: str, recipients: Sequence[str], now: datetime) -> bool:
        """Store and commit; False when every recipient already had a mail with this Message-ID.

        A sender that lost our answer sends again; the Message-ID is what makes its "at least once" a "once", and it
        is remembered beyond `clear`.
        """
        message = BytesParser(policy=email.policy.default).parsebytes(raw)
        assert isinstance(message, EmailMessage)
        message_id = str(message.get("Message-ID", "")).strip()
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            new_recipients = [
                address for address in dict.fromkeys(recipients) if self._remember_message_id(message_id, address)
            ]
            if new_recipients:
                self._insert(message, raw, sender, new_recipients, now)
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")
        return bool(new_recipients)

    def _remember_message_id(self, identity: str, address: str) -> bool:
        if not identity:
            return True
        done = self._connection.execute("INSERT OR IGNORE INTO seen VALUES (?, ?)", (identity, address.lower()))
        return done.rowcount == 1

    def _insert(self, message: EmailMessage, raw: bytes, sender: str, fresh: list[str], now: datetime) -> None:
        authors = getaddresses([str(message.get("From", ""))])
        received = _instant(now)
        row = self._connection.execute(
            "INSERT INTO messages (sender, recipients, subject, sent_at, received_at, text, html, raw) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (
                authors[0][1] if authors and authors[0][1] else sender,
                ", ".join(fresh),
                str(message.get("Subject", "")),
                _date_header(message) or received,
                received,
                _body_part(message, "plain"),
                _body_part(message, "html"),
                raw,
            ),
        )
        self._connection.executemany(
            "INSERT INTO recipients VALUES (?, ?)", [(address.lower(), row.lastrowid) for address in fresh]
        )

    def all(self, to: str | None = None) -> list[Mail]:
        """Oldest first; `to` is one recipient's address, in any case."""
        chosen = "" if to is None else "JOIN recipients ON message = id WHERE address = ?"
        values = () if to is None else (to.strip().lower(),)
        statement = f"SELECT {_COLUMNS} FROM messages {chosen} ORDER BY id"  # noqa: S608
        return [_mail(row) for row in self._connection.execute(statement, values)]

    def get(self, identifier: str) -> Mail | None:
        rows = self._rows(identifier, _COLUMNS)
        return _mail(rows[0]) if rows else None

    def raw(self, identifier: str) -> bytes | None:
        rows = self._rows(identifier, "raw")
        return bytes(rows[0]["raw"]) if rows else None

    def headers(self, identifier: str) -> list[tuple[str, str]] | None:
        """The header lines in order, decoded."""
        raw = self.raw(identifier)
        if raw is None:
            return None
        message = BytesParser(policy=email.policy.default).parsebytes(raw, headersonly=True)
        return [(name, str(value)) for name, value in message.items()]

    def _rows(self, identifier: str, columns: str) -> list[sqlite3.Row]:
        if not identifier.isascii() or not identifier.isdigit() or len(identifier) > 18:
            return []
        statement = f"SELECT {columns} FROM messages WHERE id = ?"  # noqa: S608
        with closing(self._connection.execute(statement, (int(identifier),))) as cursor:
            return cursor.fetchall()

    def clear(self) -> int:
        return self._connection.execute("DELETE FROM messages").rowcount


def _mail(row: sqlite3.Row) -> Mail:
    return Mail(**{**dict(row), "id": str(row["id"])})


def _instant(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _date_header(message: EmailMessage) -> str | None:
    """The Date header: on a simulated calendar it is not the moment of arrival."""
    header = message.get("Date")
    at = getattr(header, "datetime", None)
    if not isinstance(at, datetime):
        return None
    return _instant(at if at.tzinfo is not None else at.replace(tzinfo=UTC))


def _body_part(message: EmailMessage, kind: str) -> str:
    body = message.get_body(preferencelist=(kind,))
    if body is None:
        return ""
    try:
        content = body.get_content()
    except (LookupError, UnicodeError):
        payload = body.get_payload(decode=True)
        content = payload.decode("utf-8", "replace") if isinstance(payload, bytes) else ""
    return str(content).replace("\r\n", "\n")
