"""Implements ``workflows/ports/notifications.py`` (``NotificationActivities``): sends the outbox over SMTP.

A notification is claimed, rendered, sent and recorded. After a crash between sending and recording, the claim expires
and the message is sent again under the same Message-ID, by which receivers recognize duplicates.
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
from typing import Any

import structlog
from sqlalchemy.exc import SQLAlchemyError
from temporalio import activity

from activities import reminders
from activities.adapters.mail_addresses import with_ascii_domain
from activities.adapters.smtp import SmtpClient, SmtpConnection, SmtpConnectionLost, SmtpRejected, SmtpUnavailable
from activities.invoice_documents import PdfDocumentActivities
from activities.mail_rendering import MailRenderer, Recipient, RenderedMail, RenderingError
from activities.notification_context import money_to_json
from db.encryption import FieldEncryption, UnknownEncryptionKey
from db.queries import outbox_delivery
from db.queries.outbox_delivery import ClaimedNotification, DeliveryOutcome
from db.session import SessionFactory
from workflows.ports.notifications import DrainOutbox, DrainOutcome, NotificationActivities
from workflows.rules.notifications import DeliveryFailure, is_superseded, next_retry_delay

log = structlog.get_logger(__name__)

BATCH_SIZE = 20
CLAIM_LEASE = timedelta(seconds=60)
POLL_INTERVAL_SECONDS = 0.25
HEARTBEAT_SECONDS = 3.0


class SmtpNotificationActivities(NotificationActivities):
    """Sends the outbox.

    Args:
        sender: ``Name <address>``; the domain of the address is that of the Message-IDs.
        encryptor: Decrypts secret contexts.
    """

    def __init__(
        self,
        sessions: SessionFactory,
        smtp: SmtpClient,
        renderer: MailRenderer,
        documents: PdfDocumentActivities,
        *,
        sender: str,
        encryptor: FieldEncryption | None,
    ) -> None:
        self._sessions = sessions
        self._smtp = smtp
        self._renderer = renderer
        self._documents = documents
        self._sender = sender
        self._address = parseaddr(sender)[1]
        self._encryptor = encryptor

    @activity.defn(name="notifications.drain_outbox")
    async def drain_outbox(self, command: DrainOutbox) -> DrainOutcome:
        sent = failures = 0
        until = time.monotonic() + command.duration_seconds
        async with heartbeating():
            while time.monotonic() < until and not _is_shutting_down():
                claim_id = uuid.uuid4().hex
                async with self._sessions.begin() as session:
                    claimed = await outbox_delivery.claim_due(
                        session, channel=command.channel, claim_id=claim_id, limit=BATCH_SIZE, lease=CLAIM_LEASE
                    )
                if not claimed:
                    await asyncio.sleep(POLL_INTERVAL_SECONDS)
                    continue
                outcomes: list[DeliveryOutcome] = []
                try:
                    async with self._smtp.connect() as connection:
                        for notification in claimed:
                            outcomes.append(await self._deliver(connection, notification))
                except (SQLAlchemyError, OSError):
                    # Record the sent ones, which would be sent again when their claims expire, and release the claims
                    # of those that follow. The one that failed keeps its claim.
                    following = claimed[len(outcomes) + 1 :]
                    outcomes += [_unattempted_outcome(notification) for notification in following]
                    await self._record_deliveries(claim_id, outcomes)
                    raise
                except SmtpUnavailable as error:
                    log.warning("mail.unavailable", error=str(error))
                    await self._record_deliveries(
                        claim_id, [_unattempted_outcome(notification) for notification in claimed]
                    )
                    return DrainOutcome(sent=sent, failures=failures, server_unavailable=True)
                await self._record_deliveries(claim_id, outcomes)
                sent_count = sum(outcome.status == "sent" for outcome in outcomes)
                sent, failures = sent + sent_count, failures + len(outcomes) - sent_count
        return DrainOutcome(sent=sent, failures=failures, server_unavailable=False)

    async def _deliver(self, connection: SmtpConnection, notification: ClaimedNotification) -> DeliveryOutcome:
        if not connection.is_connected or _is_shutting_down():
            return _unattempted_outcome(notification)
        if not notification.recipient_addresses:
            return DeliveryOutcome(id=notification.id, status="failed", error="NoRecipient")
        try:
            if (context := await self._load_context(notification)) is None:
                return DeliveryOutcome(id=notification.id, status="voided")
            message = await self._compose(notification, context)
        except (SQLAlchemyError, OSError):
            # The database failed, not the message: its claim expires and it is claimed again.
            raise
        except Exception as error:  # noqa: BLE001 - a message that cannot be rendered must not block the others
            # The text of an unexpected error may contain personal data; its type does not.
            reason = str(error) if isinstance(error, RenderingError | UnknownEncryptionKey) else type(error).__name__
            log.error("mail.faulty", notification=notification.id, kind=notification.kind, error=reason)
            return _failure_outcome(notification, DeliveryFailure.UNRENDERABLE, type(error).__name__)
        try:
            await connection.send(message, sender=self._address, recipients=_ascii_recipients(notification))
        except SmtpRejected as rejection:
            return _failure_outcome(
                notification,
                DeliveryFailure.PERMANENT if rejection.permanent else DeliveryFailure.TRANSIENT,
                str(rejection),
            )
        except SmtpConnectionLost as interrupted:
            return _failure_outcome(notification, DeliveryFailure.TRANSIENT, f"SmtpConnectionLost {interrupted}")
        log.info("mail.sent", notification=notification.id, kind=notification.kind)
        return DeliveryOutcome(
            id=notification.id,
            status="sent",
            recipient_addresses=", ".join(notification.recipient_addresses),
            message_id=message["Message-ID"],
            subject=message["Subject"],
        )

    async def _load_context(self, notification: ClaimedNotification) -> dict[str, Any] | None:
        """Return the template's context; None for a reminder that no longer applies or that the next one replaces."""
        if not notification.requires_render:
            return dict(notification.template_context)
        if is_superseded(notification.template_context["days"], notification.now - notification.available_at):
            return None
        async with self._sessions() as session:
            return await reminders.load_context(session, notification.template_context)

    async def _compose(self, notification: ClaimedNotification, context: dict[str, Any]) -> EmailMessage:
        if notification.encrypted_context is not None:
            if self._encryptor is None:
                raise UnknownEncryptionKey("field encryption key is not configured")
            context |= self._encryptor.decrypt_mapping(
                notification.encrypted_context, purpose=f"notifications/{notification.id}"
            )
        recipient = Recipient(
            name=notification.recipient_name,
            organization_name=notification.organization_name,
            timezone=notification.timezone,
        )
        attachment = await self._invoice_attachment(notification, context)
        mail = self._renderer.render(notification.kind, context, recipient)
        message = self._build_message(notification, mail)
        if attachment is not None:
            number, content = attachment
            message.add_attachment(content, maintype="application", subtype="pdf", filename=f"{number}.pdf")
        return message

    async def _invoice_attachment(
        self, notification: ClaimedNotification, context: dict[str, object]
    ) -> tuple[str, bytes] | None:
        """Return number and PDF of the mail's invoice; add its number and what paid it to ``context``."""
        invoice_id = context.get("invoice_id")
        if not isinstance(invoice_id, str):
            return None
        document = await self._documents.get_or_render_invoice_pdf(invoice_id, notification.organization_id)
        if document is None:
            return None
        facts, stored = document
        context.setdefault("invoice_number", facts.number)
        if facts.payment_summary is not None:
            context.setdefault("paid_by", facts.payment_summary)
        if facts.debt_paid:
            context.setdefault("debt_paid", money_to_json(facts.debt_paid))
        return facts.number, stored.content

    def _build_message(self, notification: ClaimedNotification, mail: RenderedMail) -> EmailMessage:
        message = EmailMessage()
        message["From"] = self._sender
        message["To"] = ", ".join(_ascii_recipients(notification))
        message["Subject"] = mail.subject
        message["Date"] = format_datetime(notification.occurred_at)
        message["Message-ID"] = f"<{notification.id}@{self._address.rpartition('@')[2]}>"
        message["Auto-Submitted"] = "auto-generated"
        message["X-Berth-Kind"] = notification.kind
        if notification.request_id:
            message["X-Berth-Request-ID"] = notification.request_id
        message.set_content(mail.text)
        message.add_alternative(mail.html, subtype="html")
        return message

    async def _record_deliveries(self, claim_id: str, outcomes: Sequence[DeliveryOutcome]) -> None:
        async with self._sessions.begin() as session:
            await outbox_delivery.record_outcomes(session, claim_id=claim_id, outcomes=outcomes)


def _unattempted_outcome(notification: ClaimedNotification) -> DeliveryOutcome:
    """Return the outcome of a claimed notification that was not attempted: due at once, attempt not counted."""
    return DeliveryOutcome(id=notification.id, status="pending", attempt_refunded=True)


def _failure_outcome(notification: ClaimedNotification, failure: DeliveryFailure, error: str) -> DeliveryOutcome:
    delay = next_retry_delay(
        failure, attempts=notification.attempts, available_at=notification.available_at, now=notification.now
    )
    if delay is None:
        return DeliveryOutcome(id=notification.id, status="failed", error=error)
    return DeliveryOutcome(id=notification.id, status="pending", retry_delay=delay, error=error)


def _is_shutting_down() -> bool:
    return activity.in_activity() and (activity.is_worker_shutdown() or activity.is_cancelled())


@asynccontextmanager
async def heartbeating() -> AsyncIterator[None]:
    """Send heartbeats during the block, so that the server notices a dead worker and can deliver a cancellation."""
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


def _ascii_recipients(notification: ClaimedNotification) -> list[str]:
    """Return the addresses as a mail server takes them that does not offer SMTPUTF8."""
    return [with_ascii_domain(address) for address in notification.recipient_addresses]
