"""People, organisations, sessions and what belongs to signing in. Functions take a session and never commit.

Before anybody is known, ``sign_in``, ``refreshed``, ``use_token`` and ``revocations`` are all that the API's role can
call; everything else sees the rows of the user and organisation that ``act_as`` named.
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
    AuditEntry,
    LoginSession,
    Membership,
    OneTimeToken,
    Organization,
    RefreshToken,
    RevokedToken,
    User,
)
from db.session import act_as

VERIFY_EMAIL = "verify_email"
RESET_PASSWORD = "reset_password"  # noqa: S105 - the name of a purpose


@dataclass(frozen=True, slots=True, kw_only=True)
class NewAccount:
    """A user with an organisation of their own. ``role`` other than ``USER`` takes the worker's database role."""

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
class Credentials:
    """What a sign-in is checked against. ``membership`` is the role in the organisation."""

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
class Refreshed:
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
class Holder:
    """Whose one-time token it was."""

    user_id: str
    organization_id: str
    role: str


# ---------------------------------------------------------------- before anybody is known


async def sign_in(session: AsyncSession, email: str) -> Credentials | None:
    row = (await session.execute(text("SELECT * FROM identity_sign_in(:email)"), {"email": email})).mappings().first()
    if row is None:
        return None
    return Credentials(**{("membership" if name == "membership_role" else name): row[name] for name in row})


async def refreshed(session: AsyncSession, token_hash: str) -> Refreshed | None:
    found = await session.execute(text("SELECT * FROM identity_refresh(:hashed)"), {"hashed": token_hash})
    row = found.mappings().first()
    if row is None:
        return None
    return Refreshed(**{("membership" if name == "membership_role" else name): row[name] for name in row})


async def use_token(session: AsyncSession, token_hash: str, purpose: str, at: datetime) -> Holder | None:
    """Use up a one-time token; None when it is unknown, was used, has expired or serves another purpose."""
    found = await session.execute(
        text("SELECT * FROM identity_use_token(:hashed, :purpose, :at)"),
        {"hashed": token_hash, "purpose": purpose, "at": at},
    )
    row = found.mappings().first()
    return Holder(**row) if row is not None else None


async def speak_for(session: AsyncSession, holder: Holder) -> None:
    """The rest of the transaction speaks for whoever held a one-time token."""
    await act_as(session, organization_id=holder.organization_id, user_id=holder.user_id, role=holder.role)


async def revocations(session: AsyncSession) -> dict[str, datetime]:
    """Return until when the access tokens of which sessions are refused."""
    found = await session.execute(select(RevokedToken.session_id, RevokedToken.expires_at))
    return {row.session_id: row.expires_at for row in found}


async def purge(session: AsyncSession, at: datetime) -> None:
    """Remove what has expired: revocations, idempotency records, one-time tokens, sessions."""
    await session.execute(text("SELECT identity_purge(:at)"), {"at": at})


# ---------------------------------------------------------------- accounts


async def create_account(session: AsyncSession, account: NewAccount, at: datetime) -> None:
    """Write user, organisation and membership.

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
        insert(Organization).values(
            id=account.organization_id,
            name=account.organization_name,
            currency=account.currency,
            country=account.country,
            timezone=account.timezone,
            created_at=at,
            updated_at=at,
        )
    )
    await session.execute(
        insert(Membership).values(
            organization_id=account.organization_id, user_id=account.user_id, role="owner", created_at=at
        )
    )


async def profile(session: AsyncSession, user_id: str, organization_id: str) -> tuple[User, Organization] | None:
    """The user and the organisation that they act for, in one query."""
    found = await session.execute(
        select(User, Organization)
        .join(Membership, Membership.user_id == User.id)
        .join(Organization, Organization.id == Membership.organization_id)
        .where(User.id == user_id, Organization.id == organization_id)
    )
    row = found.first()
    return (row[0], row[1]) if row is not None else None


async def organization(session: AsyncSession, organization_id: str) -> Organization | None:
    found: Organization | None = await session.scalar(select(Organization).where(Organization.id == organization_id))
    return found


async def is_verified(session: AsyncSession, user_id: str) -> bool:
    found = await session.scalar(select(User.email_verified_at).where(User.id == user_id))
    return found is not None


async def mark_verified(session: AsyncSession, user_id: str, at: datetime) -> bool:
    """Return whether it was not verified before."""
    done = await session.execute(
        update(User)
        .where(User.id == user_id, User.email_verified_at.is_(None))
        .values(email_verified_at=at, updated_at=at)
    )
    return _count(done) == 1


async def set_password(session: AsyncSession, user_id: str, password_hash: str, at: datetime) -> None:
    await session.execute(
        update(User)
        .where(User.id == user_id)
        .values(password_hash=password_hash, password_changed_at=at, updated_at=at)
    )


async def rehash(session: AsyncSession, user_id: str, password_hash: str) -> None:
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


async def open_session(
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
        insert(LoginSession).values(
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


async def use_refresh_token(session: AsyncSession, token_hash: str, session_id: str, at: datetime) -> bool:
    """Mark a refresh token and its session as used; False when another request was first."""
    done = await session.execute(
        update(RefreshToken)
        .where(RefreshToken.token_hash == token_hash, RefreshToken.used_at.is_(None))
        .values(used_at=at)
    )
    if _count(done) != 1:
        return False
    touched = await session.execute(
        update(LoginSession)
        .where(LoginSession.id == session_id, LoginSession.revoked_at.is_(None))
        .values(last_used_at=at)
    )
    return _count(touched) == 1


async def revoke_sessions(
    session: AsyncSession,
    user_id: str,
    *,
    because: str,
    at: datetime,
    access_lifetime: timedelta,
    only: str | None = None,
    sparing: str | None = None,
) -> dict[str, datetime]:
    """Revoke a user's sessions, or ``only`` one of them, or all ``sparing`` one.

    Returns the sessions that were revoked and until when their access tokens must be refused.
    """
    wanted = update(LoginSession).where(LoginSession.user_id == user_id, LoginSession.revoked_at.is_(None))
    if only is not None:
        wanted = wanted.where(LoginSession.id == only)
    if sparing is not None:
        wanted = wanted.where(LoginSession.id != sparing)
    gone = await session.scalars(wanted.values(revoked_at=at, revoked_because=because).returning(LoginSession.id))
    until = at + access_lifetime
    revoked = dict.fromkeys(gone.all(), until)
    if revoked:
        rows = [{"session_id": name, "revoked_at": at, "expires_at": until} for name in revoked]
        await session.execute(upsert(RevokedToken).values(rows).on_conflict_do_nothing())
    return revoked


async def open_sessions(session: AsyncSession, user_id: str, at: datetime) -> Sequence[LoginSession]:
    """A user's sessions that are neither revoked nor expired, the most recently used first."""
    found = await session.scalars(
        select(LoginSession)
        .where(LoginSession.user_id == user_id, LoginSession.revoked_at.is_(None), LoginSession.expires_at > at)
        .order_by(LoginSession.last_used_at.desc(), LoginSession.id)
        .limit(100)
    )
    return found.all()


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


# ---------------------------------------------------------------- audit


async def record(
    session: AsyncSession,
    *,
    organization_id: str | None,
    actor: str,
    action: str,
    at: datetime,
    object: str | None = None,
    before: Mapping[str, Any] | None = None,
    after: Mapping[str, Any] | None = None,
    ip: str | None = None,
    request_id: str | None = None,
) -> None:
    """Append to the audit log; the database chains it. Never a secret in ``before`` or ``after``."""
    await session.execute(
        insert(AuditEntry).values(
            organization_id=organization_id,
            actor=actor,
            action=action,
            object=object,
            before=dict(before) if before is not None else None,
            after=dict(after) if after is not None else None,
            ip=ip,
            request_id=request_id,
            at=at,
        )
    )


def _count(result: object) -> int:
    return cast("CursorResult[Any]", result).rowcount
