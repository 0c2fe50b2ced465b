"""The SMTP side: 250 only after the commit, and the faults a test can order."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from aiosmtpd.smtp import SMTP, Envelope, Session

from deploy.local.mailbox.store import MailStore

FAULT_KINDS = ("reject", "defer", "drop")
MAX_MESSAGE_BYTES = 16 << 20


@dataclass(slots=True, kw_only=True)
class Fault:
    """`count` is what is left of it (None: until cleared), `until` a monotonic instant."""

    kind: str
    count: int | None
    until: float | None

    def to_json(self) -> dict[str, Any]:
        seconds_left = None if self.until is None else max(0.0, round(self.until - time.monotonic(), 3))
        return {"fault": self.kind, "count": self.count, "seconds": seconds_left}


class FaultInjector:
    """In memory: a restart clears them."""

    def __init__(self) -> None:
        self._configured: list[Fault] = []

    def add(self, request: Mapping[str, Any]) -> Fault:
        """Add a fault from a request body. Raises ValueError with the reason for an invalid one."""
        kind, count, seconds = request.get("fault"), request.get("count"), request.get("seconds")
        if kind not in FAULT_KINDS:
            raise ValueError(f"fault must be one of {', '.join(FAULT_KINDS)}")
        if count is not None and (not isinstance(count, int) or isinstance(count, bool) or count < 1):
            raise ValueError("count must be a positive integer")
        if seconds is not None and (not isinstance(seconds, int | float) or isinstance(seconds, bool) or seconds < 0):
            raise ValueError("seconds must be a number, zero or more")
        until = None if seconds is None else time.monotonic() + seconds
        fault = Fault(kind=str(kind), count=count, until=until)
        self._configured.append(fault)
        return fault

    def active(self) -> list[Fault]:
        now = time.monotonic()
        self._configured = [
            fault for fault in self._configured if (fault.until is None or fault.until > now) and fault.count != 0
        ]
        return list(self._configured)

    def clear(self) -> None:
        self._configured.clear()

    def consume(self) -> str | None:
        for fault in self.active():
            if fault.count is not None:
                fault.count -= 1
            return fault.kind
        return None


class SmtpHandler:
    """aiosmtpd's handler: one mail per DATA."""

    def __init__(self, store: MailStore, faults: FaultInjector) -> None:
        self._store = store
        self._faults = faults

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        fault = self._faults.consume()
        if fault == "reject":
            return "550 5.7.1 Rejected by the sandbox"
        if fault == "defer":
            return "451 4.7.1 Deferred by the sandbox, try again later"
        content = envelope.content
        raw = content.encode() if isinstance(content, str) else content or b""
        self._store.add(raw, envelope.mail_from or "", list(envelope.rcpt_tos), datetime.now(UTC))
        if fault == "drop" and isinstance(server.transport, asyncio.WriteTransport):
            # The mail is stored, but the sender does not receive the reply.
            server.transport.abort()
        return "250 2.0.0 OK"


async def listen(port: int, receiver: SmtpHandler) -> asyncio.Server:
    loop = asyncio.get_running_loop()

    def connect() -> SMTP:
        return SMTP(
            receiver,
            data_size_limit=MAX_MESSAGE_BYTES,
            enable_SMTPUTF8=True,
            hostname="mailbox.localhost",
            ident="Berth mailbox",
            loop=loop,
        )

    return await loop.create_server(connect, "127.0.0.1", port, reuse_address=True)
