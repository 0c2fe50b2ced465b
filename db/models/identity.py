"""People, the organizations they act for, their sessions, and what they did."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import (
    CheckConstraint,
    ForeignKey,
    ForeignKeyConstraint,
    Identity,
    Index,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from db.base import Base


class Organization(Base):
    """The account: what is ordered, owned and billed belongs to one. ``currency`` never changes."""

    __tablename__ = "organizations"

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    currency: Mapped[str]
    country: Mapped[str | None]
    timezone: Mapped[str]
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]


class User(Base):
    """A person. ``email`` is unique whatever its case; ``role`` is the platform's, an organization's is a membership's.

    ``role`` is one of ``USER ADMINISTRATOR NODE_OPERATOR DASHBOARD_OPERATOR``; the API's database role cannot write it.
    """

    __tablename__ = "users"
    __table_args__ = (
        CheckConstraint(
            "role IN ('USER', 'ADMINISTRATOR', 'NODE_OPERATOR', 'DASHBOARD_OPERATOR')",
            name="role",
        ),
        Index("uq_users_email_lower", func.lower(text("email")), unique=True),
        Index("ix_users_created_at_id", "created_at", "id"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    email: Mapped[str]
    name: Mapped[str]
    password_hash: Mapped[str]
    role: Mapped[str] = mapped_column(server_default=text("'USER'"))
    email_verified_at: Mapped[datetime | None]
    password_changed_at: Mapped[datetime]
    disabled_at: Mapped[datetime | None]
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]


class Membership(Base):
    """What a user may do in an organization: ``owner admin billing member``."""

    __tablename__ = "memberships"
    __table_args__ = (CheckConstraint("role IN ('owner', 'admin', 'billing', 'member')", name="role"),)

    organization_id: Mapped[str] = mapped_column(ForeignKey("organizations.id"), primary_key=True)
    user_id: Mapped[str] = mapped_column(ForeignKey("users.id"), primary_key=True, index=True)
    role: Mapped[str]
    created_at: Mapped[datetime]


class UserSession(Base):
    """One sign-in and the family of refresh tokens that grew from it. A revoked one takes its tokens with it."""

    __tablename__ = "user_sessions"
    __table_args__ = (UniqueConstraint("id", "user_id"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    user_id: Mapped[str] = mapped_column(ForeignKey("users.id"), index=True)
    organization_id: Mapped[str] = mapped_column(ForeignKey("organizations.id"))
    created_at: Mapped[datetime]
    last_used_at: Mapped[datetime]
    expires_at: Mapped[datetime] = mapped_column(index=True)
    revoked_at: Mapped[datetime | None]
    revocation_reason: Mapped[str | None]
    ip: Mapped[str | None]
    user_agent: Mapped[str | None]


class RefreshToken(Base):
    """One link of a session's chain, as its SHA-256. A link that was used stays, so that its reuse is noticed.

    It belongs to the user of its session: row-level security admits it by ``user_id``.
    """

    __tablename__ = "refresh_tokens"
    __table_args__ = (
        ForeignKeyConstraint(
            ["session_id", "user_id"],
            ["user_sessions.id", "user_sessions.user_id"],
            name="fk_refresh_tokens_session",
            ondelete="CASCADE",
        ),
    )

    token_hash: Mapped[str] = mapped_column(primary_key=True)
    session_id: Mapped[str] = mapped_column(index=True)
    user_id: Mapped[str]
    issued_at: Mapped[datetime]
    expires_at: Mapped[datetime]
    used_at: Mapped[datetime | None]


class OneTimeToken(Base):
    """A mailed link, as the SHA-256 of its token. ``purpose`` is ``verify_email`` or ``reset_password``."""

    __tablename__ = "one_time_tokens"

    token_hash: Mapped[str] = mapped_column(primary_key=True)
    user_id: Mapped[str] = mapped_column(ForeignKey("users.id"), index=True)
    purpose: Mapped[str]
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime] = mapped_column(index=True)
    used_at: Mapped[datetime | None]


class RevokedSession(Base):
    """A session whose access tokens are refused although they have not expired. Short-lived, read by every process."""

    __tablename__ = "revoked_sessions"

    session_id: Mapped[str] = mapped_column(primary_key=True)
    revoked_at: Mapped[datetime]
    expires_at: Mapped[datetime] = mapped_column(index=True)


class IdempotencyRecord(Base):
    """The response stored under an idempotency key, kept as long as the objects whose ids derive from the key.

    ``route`` is method and path, ``request_hash`` the SHA-256 of the canonical body. ``response_status`` is null until
    a response is stored; a response that is not final (202) is replaced by the next request under the key. ``attempt``
    counts the requests that started something; ``is_retry``: the claim continues the attempt of an earlier request.
    """

    __tablename__ = "idempotency_records"

    organization_id: Mapped[str] = mapped_column(primary_key=True)
    route: Mapped[str] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    request_hash: Mapped[str]
    claim_id: Mapped[str]
    claimed_until: Mapped[datetime]
    attempt: Mapped[int] = mapped_column(server_default=text("1"))
    is_retry: Mapped[bool] = mapped_column(server_default=text("false"))
    response_status: Mapped[int | None]
    response_body: Mapped[str | None]
    is_final: Mapped[bool] = mapped_column(server_default=text("false"))


class AuditEntry(Base):
    """Who did what, when, from where; append-only and chained by hash, one chain per organization.

    ``sequence``, ``previous_hash`` and ``hash`` are written by the database itself. ``organization_id`` is null for
    what concerns the platform as a whole.
    """

    __tablename__ = "audit_log"
    __table_args__ = (
        Index("ix_audit_log_organization_id_id", "organization_id", "id"),
        Index("ix_audit_log_actor_id", "actor", "id"),
        Index("ix_audit_log_action_id", "action", "id"),
        Index("ix_audit_log_object_id_id", "object_id", "id"),
    )

    id: Mapped[int] = mapped_column(Identity(always=True), primary_key=True)
    organization_id: Mapped[str | None]
    actor: Mapped[str]
    action: Mapped[str]
    object_id: Mapped[str | None]
    before: Mapped[dict[str, Any] | None] = mapped_column(JSONB)
    after: Mapped[dict[str, Any] | None] = mapped_column(JSONB)
    reason: Mapped[str | None]
    ip: Mapped[str | None]
    request_id: Mapped[str | None]
    at: Mapped[datetime]
    sequence: Mapped[int | None]
    previous_hash: Mapped[str | None]
    hash: Mapped[str | None]


class AuditChainHead(Base):
    """Where each chain of the audit log stands; a chain that was cut short no longer ends here."""

    __tablename__ = "audit_chain_heads"

    chain: Mapped[str] = mapped_column(primary_key=True)
    sequence: Mapped[int]
    hash: Mapped[str]
