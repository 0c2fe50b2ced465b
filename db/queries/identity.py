"""People, organizations, sessions and what belongs to signing in. Functions take a session and never commit.

Before authentication the API's role can call only ``find_credentials``, ``find_refresh_token``,
``consume_one_time_token`` and ``list_revocations``. The others see the rows that the RLS context admits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, cast

from sqlalchemy import CursorResult, insert, select, text, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncSession

from db.models.identity import (
    Membership,
    OneTimeToken,
    Organization,
    RefreshToken,
    RevokedSession,
    User,
    UserSession,
)
from db.session import set_rls_context

VERIFY_EMAIL = "verify_email"
RESET_PASSWORD = "reset_password"  # noqa: S105 - the name of a purpose


@dataclass(frozen=True, slots=True, kw_only=True)
class NewAccount:
    """A user who owns a new organization. ``role`` other than ``USER`` takes the worker's database role."""

    user_id: str
    organization_id: str
    email: str
    name: str
    password_hash: str
    organization_name: str
    currency: str
    country: str | None
    timezone: str
    role: str = "USER"
    verified: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CredentialsRecord:
    """What a sign-in is checked against. ``membership`` is the role in the organization."""

    user_id: str
    email: str
    name: str
    password_hash: str
    role: str
    email_verified_at: datetime | None
    disabled_at: datetime | None
    organization_id: str
    membership: str
    timezone: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RefreshTokenRecord:
    """A refresh token, its session and its user, whatever state they are in."""

    session_id: str
    user_id: str
    organization_id: str
    role: str
    membership: str
    timezone: str
    email_verified_at: datetime | None
    disabled_at: datetime | None
    revoked_at: datetime | None
    session_expires_at: datetime
    expires_at: datetime
    used_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenOwner:
    """Whose one-time token it was."""

    user_id: str
    organization_id: str
    role: str


# ---------------------------------------------------------------- before authentication


async def find_credentials(session: AsyncSession, email: str) -> CredentialsRecord | None:
    row = (
        (await session.execute(text("SELECT * FROM auth_find_credentials(:email)"), {"email": email}))
        .mappings()
        .first()
    )
    if row is None:
        return None
    return CredentialsRecord(**{("membership" if name == "membership_role" else name): row[name] for name in row})


async def find_refresh_token(session: AsyncSession, token_hash: str) -> RefreshTokenRecord | None:
    result = await session.execute(text("SELECT * FROM auth_find_refresh_token(:hashed)"), {"hashed": token_hash})
    row = result.mappings().first()
    if row is None:
        return None
    return RefreshTokenRecord(**{("membership" if name == "membership_role" else name): row[name] for name in row})


async def consume_one_time_token(
    session: AsyncSession, token_hash: str, purpose: str, at: datetime
) -> TokenOwner | None:
    """Use up a one-time token; None when it is unknown, was used, has expired or serves another purpose."""
    result = await session.execute(
        text("SELECT * FROM auth_consume_one_time_token(:hashed, :purpose, :at)"),
        {"hashed": token_hash, "purpose": purpose, "at": at},
    )
    row = result.mappings().first()
    return TokenOwner(**row) if row is not None else None


async def act_as_token_owner(session: AsyncSession, holder: TokenOwner) -> None:
    """Set the RLS context of the rest of the transaction to the owner of a one-time token."""
    await set_rls_context(session, organization_id=holder.organization_id, user_id=holder.user_id, role=holder.role)


async def list_revocations(session: AsyncSession) -> dict[str, datetime]:
    """Return until when the access tokens of which sessions are refused."""
    rows = await session.execute(select(RevokedSession.session_id, RevokedSession.expires_at))
    return {row.session_id: row.expires_at for row in rows}


async def delete_expired(session: AsyncSession, *, batch_size: int) -> bool:
    """Delete what has expired by the database's clock: revocations, one-time tokens, sessions with their tokens.

    Args:
        batch_size: The most rows of each kind, up to 1,000.

    Returns:
        Whether there may be more.
    """
    deleted = await session.scalar(text("SELECT auth_delete_expired(:batch_size)"), {"batch_size": batch_size})
    return bool(deleted == batch_size)


# ---------------------------------------------------------------- accounts


async def create_user_with_organization(session: AsyncSession, account: NewAccount, at: datetime) -> None:
    """Write user, organization and membership. ``set_rls_context`` has named the user.

    Raises:
        sqlalchemy.exc.IntegrityError: the address is taken (``uq_users_email_lower``).
    """
    user: dict[str, Any] = {
        "id": account.user_id,
        "email": account.email,
        "name": account.name,
        "password_hash": account.password_hash,
        "password_changed_at": at,
        "created_at": at,
        "updated_at": at,
    }
    if account.role != "USER":
        user["role"] = account.role
    if account.verified:
        user["email_verified_at"] = at
    await session.execute(insert(User.__table__).values(user))  # type: ignore[arg-type] # a Table, typed FromClause
    await session.execute(
        text(
            "SELECT identity_create_organization("
            ":organization_id, :user_id, :name, :currency, :country, :timezone, :at)"
        ),
        {
            "organization_id": account.organization_id,
            "user_id": account.user_id,
            "name": account.organization_name,
            "currency": account.currency,
            "country": account.country,
            "timezone": account.timezone,
            "at": at,
        },
    )


async def get_user_and_organization(
    session: AsyncSession, user_id: str, organization_id: str
) -> tuple[User, Organization] | None:
    """The user and the organization that they act for, in one query."""
    result = await session.execute(
        select(User, Organization)
        .join(Membership, Membership.user_id == User.id)
        .join(Organization, Organization.id == Membership.organization_id)
        .where(User.id == user_id, Organization.id == organization_id)
    )
    row = result.first()
    return (row[0], row[1]) if row is not None else None


async def get_organization(session: AsyncSession, organization_id: str) -> Organization | None:
    organization: Organization | None = await session.scalar(
        select(Organization).where(Organization.id == organization_id)
    )
    return organization


async def is_email_verified(session: AsyncSession, user_id: str) -> bool:
    verified_at = await session.scalar(select(User.email_verified_at).where(User.id == user_id))
    return verified_at is not None


async def mark_email_verified(session: AsyncSession, user_id: str, at: datetime) -> bool:
    """Return whether it was not verified before."""
    done = await session.execute(
        update(User)
        .where(User.id == user_id, User.email_verified_at.is_(None))
        .values(email_verified_at=at, updated_at=at)
    )
    return _row_count(done) == 1


async def set_password(session: AsyncSession, user_id: str, password_hash: str, at: datetime) -> None:
    await session.execute(
        update(User)
        .where(User.id == user_id)
        .values(password_hash=password_hash, password_changed_at=at, updated_at=at)
    )


async def lock_password(session: AsyncSession, user_id: str, password_hash: str) -> bool:
    """Return whether this is still the user's password; it cannot be changed until the transaction ends."""
    query = select(User.id).where(User.id == user_id, User.password_hash == password_hash)
    return await session.scalar(query.with_for_update(key_share=True)) is not None


async def update_password_hash(session: AsyncSession, user_id: str, password_hash: str) -> None:
    """The same password under newer parameters."""
    await session.execute(update(User).where(User.id == user_id).values(password_hash=password_hash))


async def update_user(session: AsyncSession, user_id: str, values: Mapping[str, Any], at: datetime) -> None:
    await session.execute(update(User).where(User.id == user_id).values(**values, updated_at=at))


async def update_organization(
    session: AsyncSession, organization_id: str, values: Mapping[str, Any], at: datetime
) -> None:
    await session.execute(
        update(Organization).where(Organization.id == organization_id).values(**values, updated_at=at)
    )


# ---------------------------------------------------------------- sessions and tokens


async def create_session(
    session: AsyncSession,
    *,
    session_id: str,
    user_id: str,
    organization_id: str,
    at: datetime,
    expires_at: datetime,
    ip: str | None,
    user_agent: str | None,
) -> None:
    await session.execute(
        insert(UserSession).values(
            id=session_id,
            user_id=user_id,
            organization_id=organization_id,
            created_at=at,
            last_used_at=at,
            expires_at=expires_at,
            ip=ip,
            user_agent=user_agent,
        )
    )


async def add_refresh_token(
    session: AsyncSession, token_hash: str, *, session_id: str, user_id: str, at: datetime, expires_at: datetime
) -> None:
    await session.execute(
        insert(RefreshToken).values(
            token_hash=token_hash, session_id=session_id, user_id=user_id, issued_at=at, expires_at=expires_at
        )
    )


async def consume_refresh_token(session: AsyncSession, token_hash: str, session_id: str, at: datetime) -> bool:
    """Mark a refresh token and its session as used; False when another request was first."""
    done = await session.execute(
        update(RefreshToken)
        .where(RefreshToken.token_hash == token_hash, RefreshToken.used_at.is_(None))
        .values(used_at=at)
    )
    if _row_count(done) != 1:
        return False
    touched = await session.execute(
        update(UserSession)
        .where(UserSession.id == session_id, UserSession.revoked_at.is_(None))
        .values(last_used_at=at)
    )
    return _row_count(touched) == 1


async def revoke_sessions(
    session: AsyncSession,
    user_id: str,
    *,
    reason: str,
    at: datetime,
    access_lifetime: timedelta,
    session_id: str | None = None,
    except_session_id: str | None = None,
) -> dict[str, datetime]:
    """Revoke a user's sessions: all, only ``session_id``, or all but ``except_session_id``.

    Returns:
        The revoked sessions, each with the instant until which its access tokens must be rejected.
    """
    statement = update(UserSession).where(UserSession.user_id == user_id, UserSession.revoked_at.is_(None))
    if session_id is not None:
        statement = statement.where(UserSession.id == session_id)
    if except_session_id is not None:
        statement = statement.where(UserSession.id != except_session_id)
    revoked_ids = await session.scalars(
        statement.values(revoked_at=at, revocation_reason=reason).returning(UserSession.id)
    )
    until = at + access_lifetime
    revoked = dict.fromkeys(revoked_ids.all(), until)
    if revoked:
        rows = [{"session_id": name, "revoked_at": at, "expires_at": until} for name in revoked]
        await session.execute(upsert(RevokedSession).values(rows).on_conflict_do_nothing())
    return revoked


async def list_active_sessions(session: AsyncSession, user_id: str, at: datetime) -> Sequence[UserSession]:
    """A user's sessions that are neither revoked nor expired, the most recently used first."""
    sessions = await session.scalars(
        select(UserSession)
        .where(UserSession.user_id == user_id, UserSession.revoked_at.is_(None), UserSession.expires_at > at)
        .order_by(UserSession.last_used_at.desc(), UserSession.id)
        .limit(100)
    )
    return sessions.all()


async def add_one_time_token(
    session: AsyncSession, token_hash: str, *, user_id: str, purpose: str, at: datetime, expires_at: datetime
) -> None:
    """Earlier tokens of the same purpose are used up: of several mails only the last one's link works."""
    await session.execute(
        update(OneTimeToken)
        .where(OneTimeToken.user_id == user_id, OneTimeToken.purpose == purpose, OneTimeToken.used_at.is_(None))
        .values(used_at=at)
    )
    await session.execute(
        insert(OneTimeToken).values(
            token_hash=token_hash, user_id=user_id, purpose=purpose, created_at=at, expires_at=expires_at
        )
    )


def _row_count(result: object) -> int:
    return cast("CursorResult[Any]", result).rowcount
