"""Notification outbox and rendered documents."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import CheckConstraint, Index, LargeBinary, SmallInteger, UniqueConstraint, func, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from db.base import Base


class Notification(Base):
    """One message about one event over one channel, enqueued in the transaction that records the event.

    ``id`` derives from organization, event, channel and user. The mail's Message-ID derives from ``id``, so a receiver
    recognizes a message that is sent again. ``user_id`` NULL addresses the organization (owners and billing members),
    or the administrators where ``organization_id`` is NULL too. ``recipient_addresses`` is set when the
    message is sent.

    Instants of the database's clock: ``available_at`` (the first instant it may be sent), ``next_attempt_at`` (when a
    ``pending`` row is due, or when the claim of a ``sending`` row expires), ``created_at``, ``sent_at``. Instants of
    the subscription's clock: ``occurred_at`` and, for a reminder, ``scheduled_for``. ``claim_id`` names the dispatcher
    that may record the delivery. Lower ``priority`` is sent first. ``requires_render``: the context is loaded when the
    message is sent. ``voided``: a reminder whose reason is gone.

    ``encrypted_context`` (sign-in links) is encrypted and cleared when the message is sent.
    """

    __tablename__ = "notifications"
    __table_args__ = (
        UniqueConstraint("organization_id", "dedup_key", "channel", "user_id", postgresql_nulls_not_distinct=True),
        CheckConstraint("status IN ('pending', 'sending', 'sent', 'failed', 'voided')", name="status"),
        Index(
            "ix_notifications_due",
            "channel",
            "priority",
            "next_attempt_at",
            postgresql_where=text("status IN ('pending', 'sending')"),
        ),
        Index(
            "ix_notifications_reminders",
            "subscription_id",
            postgresql_where=text("status = 'pending' AND scheduled_for IS NOT NULL"),
        ),
        Index("ix_notifications_organization_id_occurred_at", "organization_id", "occurred_at"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    organization_id: Mapped[str | None]
    user_id: Mapped[str | None]
    kind: Mapped[str]
    channel: Mapped[str]
    dedup_key: Mapped[str]
    subscription_id: Mapped[str | None]
    recipient_addresses: Mapped[str | None]
    template_context: Mapped[dict[str, Any]] = mapped_column(JSONB)
    encrypted_context: Mapped[str | None]
    request_id: Mapped[str] = mapped_column(default="", server_default=text("''"))
    status: Mapped[str] = mapped_column(default="pending", server_default=text("'pending'"))
    attempts: Mapped[int] = mapped_column(default=0, server_default=text("0"))
    priority: Mapped[int] = mapped_column(SmallInteger, default=1, server_default=text("1"))
    scheduled_for: Mapped[datetime | None]
    requires_render: Mapped[bool] = mapped_column(default=False, server_default=text("false"))
    available_at: Mapped[datetime] = mapped_column(server_default=func.now())
    next_attempt_at: Mapped[datetime] = mapped_column(server_default=func.now())
    claim_id: Mapped[str | None]
    occurred_at: Mapped[datetime]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    sent_at: Mapped[datetime | None]
    message_id: Mapped[str | None]
    error: Mapped[str | None]


class Document(Base):
    """A rendered document. ``subject_id`` is an invoice's id for ``invoice_pdf``, ``subject_status`` the
    invoice's status it shows.

    ``id`` derives from ``kind`` and ``subject_id``. Rendering the same facts gives the same bytes; ``content_sha256``
    (hexadecimal) is their hash.
    """

    __tablename__ = "documents"

    id: Mapped[str] = mapped_column(primary_key=True)
    organization_id: Mapped[str]
    kind: Mapped[str]
    subject_id: Mapped[str]
    subject_status: Mapped[str]
    content_sha256: Mapped[str]
    content: Mapped[bytes] = mapped_column(LargeBinary)
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
