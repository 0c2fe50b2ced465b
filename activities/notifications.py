"""Implements ``workflows/ports/notifications.py`` (``Notifications``): drains the outbox over SMTP.

A notice is claimed, composed, handed over and recorded. Whoever dies between the last two leaves a claim that lapses,
and the notice is sent again under the same Message-ID: receivers keep one.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from email.message import EmailMessage
from email.utils import format_datetime, parseaddr

import structlog
from sqlalchemy.exc import SQLAlchemyError
from temporalio import activity

from activities.adapters.smtp import Away, Connection, Interrupted, Refused, Smtp
from activities.documents import DocumentActivities
from activities.rendering import Mail, NotRenderable, Reader, Renderer
from db.queries import delivery
from db.queries.delivery import Claimed, Outcome
from db.sealing import Sealer, UnknownKey
from db.session import Sessions
from workflows.ports.notifications import Drain, Drained, Notifications
from workflows.rules.notices import Setback, retry_after

log = structlog.get_logger(__name__)

BATCH = 20
CLAIM_LASTS = timedelta(seconds=60)
LOOK_AGAIN_SECONDS = 0.25
HEARTBEAT_SECONDS = 3.0


class NotificationActivities(Notifications):
    """``sender`` is ``Name <address>``; its domain is that of the Message-IDs. ``sealer`` opens queued secrets."""

    def __init__(
        self,
        sessions: Sessions,
        smtp: Smtp,
        renderer: Renderer,
        documents: DocumentActivities,
        *,
        sender: str,
        sealer: Sealer | None,
    ) -> None:
        self._sessions = sessions
        self._smtp = smtp
        self._renderer = renderer
        self._documents = documents
        self._sender = sender
        self._address = parseaddr(sender)[1]
        self._sealer = sealer

    @activity.defn(name="notifications.drain")
    async def drain(self, command: Drain) -> Drained:
        sent = setbacks = 0
        until = time.monotonic() + command.seconds
        async with _beating():
            while time.monotonic() < until and not _stopping():
                claim = uuid.uuid4().hex
                async with self._sessions.begin() as session:
                    claimed = await delivery.claim(
                        session, channel=command.channel, claim=claim, most=BATCH, lasts=CLAIM_LASTS
                    )
                if not claimed:
                    await asyncio.sleep(LOOK_AGAIN_SECONDS)
                    continue
                try:
                    async with self._smtp.connected() as connection:
                        outcomes = [await self._deliver(connection, notice) for notice in claimed]
                except Away as away:
                    log.warning("mail.away", error=str(away))
                    await self._record(claim, [_given_back(notice) for notice in claimed])
                    return Drained(sent=sent, setbacks=setbacks, away=True)
                await self._record(claim, outcomes)
                arrived = sum(outcome.status == "sent" for outcome in outcomes)
                sent, setbacks = sent + arrived, setbacks + len(outcomes) - arrived
        return Drained(sent=sent, setbacks=setbacks, away=False)

    async def _deliver(self, connection: Connection, notice: Claimed) -> Outcome:
        if not connection.alive or _stopping():
            return _given_back(notice)
        if not notice.addresses:
            return Outcome(id=notice.id, status="failed", error="NoReader")
        try:
            message = await self._composed(notice)
        except (SQLAlchemyError, OSError):
            # The database is away: that is no mail's fault, and the claims lapse.
            raise
        except Exception as error:  # noqa: BLE001 - one that cannot be composed must not hold up those behind it
            # The text of an unforeseen error may hold somebody's words; what it is called does not.
            known = str(error) if isinstance(error, NotRenderable | UnknownKey) else type(error).__name__
            log.error("mail.faulty", notice=notice.id, kind=notice.kind, error=known)
            return _set_back(notice, Setback.FAULTY, type(error).__name__)
        try:
            await connection.send(message, sender=self._address, recipients=notice.addresses)
        except Refused as refused:
            return _set_back(notice, Setback.PERMANENT if refused.permanent else Setback.TRANSIENT, str(refused))
        except Interrupted as interrupted:
            return _set_back(notice, Setback.TRANSIENT, f"Interrupted {interrupted}")
        log.info("mail.sent", notice=notice.id, kind=notice.kind)
        return Outcome(
            id=notice.id, status="sent", recipient=", ".join(notice.addresses), message_id=message["Message-ID"]
        )

    async def _composed(self, notice: Claimed) -> EmailMessage:
        context = dict(notice.context)
        if notice.secret_context is not None:
            if self._sealer is None:
                raise UnknownKey("no key is configured")
            context |= self._sealer.open_mapping(notice.secret_context, purpose=f"notifications/{notice.id}")
        reader = Reader(name=notice.reader_name, organization_name=notice.organization_name, timezone=notice.timezone)
        attachment = await self._invoice(notice, context)
        mail = self._renderer.render(notice.kind, context, reader)
        message = self._message(notice, mail)
        if attachment is not None:
            number, content = attachment
            message.add_attachment(content, maintype="application", subtype="pdf", filename=f"{number}.pdf")
        return message

    async def _invoice(self, notice: Claimed, context: dict[str, object]) -> tuple[str, bytes] | None:
        """Return number and PDF of the invoice that the mail is about; also tells the template its number."""
        invoice_id = context.get("invoice_id")
        if not isinstance(invoice_id, str):
            return None
        found = await self._documents.invoice(invoice_id, notice.organization_id)
        if found is None:
            return None
        facts, stored = found
        context.setdefault("invoice_number", facts.number)
        return facts.number, stored.content

    def _message(self, notice: Claimed, mail: Mail) -> EmailMessage:
        message = EmailMessage()
        message["From"] = self._sender
        message["To"] = ", ".join(notice.addresses)
        message["Subject"] = mail.subject
        message["Date"] = format_datetime(notice.business_at)
        message["Message-ID"] = f"<{notice.id}@{self._address.rpartition('@')[2]}>"
        message["Auto-Submitted"] = "auto-generated"
        message["X-Berth-Kind"] = notice.kind
        if notice.request_id:
            message["X-Berth-Request-ID"] = notice.request_id
        message.set_content(mail.text)
        message.add_alternative(mail.html, subtype="html")
        return message

    async def _record(self, claim: str, outcomes: Sequence[Outcome]) -> None:
        async with self._sessions.begin() as session:
            await delivery.record(session, claim=claim, outcomes=outcomes)


def _given_back(notice: Claimed) -> Outcome:
    """Nothing was tried: the notice is due again at once and loses no attempt."""
    return Outcome(id=notice.id, status="pending", uncounted=True)


def _set_back(notice: Claimed, setback: Setback, error: str) -> Outcome:
    pause = retry_after(setback, attempts=notice.attempts, created_at=notice.created_at, now=notice.now)
    if pause is None:
        return Outcome(id=notice.id, status="failed", error=error)
    return Outcome(id=notice.id, status="pending", pause=pause, error=error)


def _stopping() -> bool:
    return activity.in_activity() and (activity.is_worker_shutdown() or activity.is_cancelled())


@asynccontextmanager
async def _beating() -> AsyncIterator[None]:
    """Heartbeat beside the work, so that a dead worker is noticed and a cancellation arrives."""
    if not activity.in_activity():
        yield
        return

    async def beat() -> None:
        while True:
            activity.heartbeat()
            await asyncio.sleep(HEARTBEAT_SECONDS)

    task = asyncio.create_task(beat())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
