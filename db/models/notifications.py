"""The outbox of notices, and rendered documents."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import CheckConstraint, Index, LargeBinary, UniqueConstraint, func, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from db.base import Base


class Notification(Base):
    """One message about one fact over one channel; written in the transaction of the fact, sent by the dispatcher.

    ``id`` derives from organisation, fact, channel and user, and the mail's Message-ID derives from ``id``: whatever
    is repeated on the way, the receiver recognises it. ``user_id`` null addresses the organisation: its owners and
    billing members, or the administrators where ``organization_id`` is null too. ``recipient`` is filled when sent.

    ``next_attempt_at`` is when a ``pending`` one is due, and when the claim on a ``sending`` one lapses. ``claim``
    names the claimer, who alone may record what became of it. ``business_at`` is the clock of what the message tells;
    the other instants are technical and the database's own.

    ``secret_context`` (links that sign somebody in) is encrypted, and blank from the moment of sending.
    """

    __tablename__ = "notifications"
    __table_args__ = (
        UniqueConstraint("organization_id", "fact", "channel", "user_id", postgresql_nulls_not_distinct=True),
        CheckConstraint("status IN ('pending', 'sending', 'sent', 'failed')", name="status"),
        Index(
            "ix_notifications_due",
            "channel",
            "next_attempt_at",
            postgresql_where=text("status IN ('pending', 'sending')"),
        ),
        Index("ix_notifications_organization_id_business_at", "organization_id", "business_at"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    organization_id: Mapped[str | None]
    user_id: Mapped[str | None]
    kind: Mapped[str]
    channel: Mapped[str]
    fact: Mapped[str]
    recipient: Mapped[str | None]
    context: Mapped[dict[str, Any]] = mapped_column(JSONB)
    secret_context: Mapped[str | None]
    request_id: Mapped[str] = mapped_column(default="", server_default=text("''"))
    status: Mapped[str] = mapped_column(default="pending", server_default=text("'pending'"))
    attempts: Mapped[int] = mapped_column(default=0, server_default=text("0"))
    next_attempt_at: Mapped[datetime] = mapped_column(server_default=func.now())
    claim: Mapped[str | None]
    business_at: Mapped[datetime]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    sent_at: Mapped[datetime | None]
    message_id: Mapped[str | None]
    error: Mapped[str | None]


class Document(Base):
    """A rendered document. ``ref`` is an invoice's id for ``invoice_pdf``, ``version`` the invoice's status it shows.

    ``id`` derives from ``kind`` and ``ref``. Rendering the same facts gives the same bytes; ``content_sha256``
    (hexadecimal) is their hash.
    """

    __tablename__ = "documents"

    id: Mapped[str] = mapped_column(primary_key=True)
    organization_id: Mapped[str]
    kind: Mapped[str]
    ref: Mapped[str]
    version: Mapped[str]
    content_sha256: Mapped[str]
    content: Mapped[bytes] = mapped_column(LargeBinary)
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
