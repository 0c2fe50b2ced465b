"""Signing up, in and out. The rules of it; ``routes/auth.py`` and the pages are its doors.

Before somebody is known a unit of work speaks for nobody, and the database lets it through the doors of
``db.queries.identity`` only.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from api import ratelimit
from api.context import Context
from api.deps import unit_of_work
from api.errors import ApiError, unauthenticated
from api.ids import fingerprint, new_id, new_secret
from api.schemas.identity import OrganizationView, Registered, Registration, TokensView, UserView
from api.tokens import Caller
from db.queries import identity
from db.queries.identity import RESET_PASSWORD, VERIFY_EMAIL, Holder, NewAccount
from db.queries.outbox import Notice, enqueue
from workflows.rules.notices import NoticeKind

LONGEST_AGENT = 300
NOBODY = "USER"
FORGOT_SECONDS = 0.15
"""How long the answer takes at least: longer than the work for an account that exists."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Visitor:
    """From where a request comes, for the records."""

    address: str
    user_agent: str | None
    request_id: str


def _acting(user_id: str, organization_id: str, role: str = NOBODY) -> Caller:
    """Whom a unit of work speaks for while it signs somebody in."""
    return Caller(
        user_id=user_id,
        organization_id=organization_id,
        role=role,
        membership="owner",
        email_verified=False,
        timezone="UTC",
        session_id="",
    )


def wrong_credentials() -> ApiError:
    """The same whether the address is unknown, the password wrong or the account closed."""
    return ApiError(401, "INVALID_CREDENTIALS", "Email and password do not match an account.")


def bad_link() -> ApiError:
    return ApiError(422, "VALIDATION_ERROR", "This link is not valid, or no longer.", {"field": "token"})


# ---------------------------------------------------------------- up


async def register(ctx: Context, wanted: Registration, visitor: Visitor) -> Registered:
    """Open an account and mail the link that verifies its address.

    Raises:
        ApiError: 409 ``EMAIL_TAKEN``.
    """
    password_hash = await ctx.passwords.hash(wanted.password)
    at = datetime.now(UTC)
    account = NewAccount(
        user_id=new_id("usr"),
        organization_id=new_id("org"),
        email=wanted.email,
        name=wanted.name,
        password_hash=password_hash,
        organization_name=wanted.name,
        currency=wanted.currency,
        country=wanted.country,
        timezone=wanted.timezone,
    )
    try:
        async with unit_of_work(ctx, _acting(account.user_id, account.organization_id)) as session:
            await identity.create_account(session, account, at)
            await send_verification(ctx, session, account.user_id, account.organization_id, visitor.request_id, at)
    except IntegrityError as error:
        if "uq_users_email_lower" in str(error.orig):
            raise ApiError(409, "EMAIL_TAKEN", "There is an account with this address already.") from None
        raise
    return Registered(
        user=UserView(id=account.user_id, email=account.email, name=account.name, role="USER", email_verified=False),
        organization=OrganizationView(
            id=account.organization_id,
            name=account.organization_name,
            currency=account.currency,
            country=account.country,
            timezone=account.timezone,
        ),
    )


async def send_verification(
    ctx: Context, session: AsyncSession, user_id: str, organization_id: str, request_id: str, at: datetime
) -> None:
    await _mail_link(
        session,
        NoticeKind.EMAIL_VERIFICATION,
        VERIFY_EMAIL,
        holder=Holder(user_id=user_id, organization_id=organization_id, role=NOBODY),
        lifetime=timedelta(seconds=ctx.settings.verification_seconds),
        request_id=request_id,
        at=at,
    )


async def _mail_link(
    session: AsyncSession,
    kind: NoticeKind,
    purpose: str,
    *,
    holder: Holder,
    lifetime: timedelta,
    request_id: str,
    at: datetime,
) -> None:
    """The token goes into the mail and, hashed, into the table; in the outbox it rests encrypted until sent."""
    token = new_secret("bot")
    hashed = fingerprint(token)
    await identity.add_one_time_token(
        session, hashed, user_id=holder.user_id, purpose=purpose, at=at, expires_at=at + lifetime
    )
    await enqueue(
        session,
        Notice(
            organization_id=holder.organization_id,
            user_id=holder.user_id,
            kind=kind.value,
            fact=f"user/{holder.user_id}/{purpose}/{hashed[:16]}",
            context={"expires_at": (at + lifetime).isoformat()},
            secret={"token": token},
            at=at,
            request_id=request_id,
        ),
    )


async def verify_email(ctx: Context, token: str, visitor: Visitor) -> None:
    """Use up the mailed token.

    Raises:
        ApiError: 422 when it is unknown, was used or has expired.
    """
    at = datetime.now(UTC)
    async with unit_of_work(ctx, None) as session:
        holder = await identity.use_token(session, fingerprint(token), VERIFY_EMAIL, at)
        if holder is None:
            raise bad_link()
        await identity.speak_for(session, holder)
        if await identity.mark_verified(session, holder.user_id, at):
            await enqueue(
                session,
                Notice(
                    organization_id=holder.organization_id,
                    user_id=holder.user_id,
                    kind=NoticeKind.WELCOME.value,
                    fact=f"user/{holder.user_id}/welcome",
                    context={},
                    at=at,
                    request_id=visitor.request_id,
                ),
            )


# ---------------------------------------------------------------- in and out


async def login(ctx: Context, email: str, password: str, visitor: Visitor) -> TokensView:
    """Start a session.

    Raises:
        ApiError: 401 ``INVALID_CREDENTIALS``, 429 ``RATE_LIMITED``.
    """
    await limit_account(ctx, "login", email)
    async with unit_of_work(ctx, None) as session:
        known = await identity.sign_in(session, email.strip())
    # No transaction waits for the hashing, and an unknown address takes as long as a known one.
    right, renewed = await ctx.passwords.verify(password, known.password_hash if known else None)
    if known is None or not right or known.disabled_at is not None:
        raise wrong_credentials()
    at = datetime.now(UTC)
    caller = Caller(
        user_id=known.user_id,
        organization_id=known.organization_id,
        role=known.role,
        membership=known.membership,
        email_verified=known.email_verified_at is not None,
        timezone=known.timezone,
        session_id=new_id("ses"),
    )
    refresh_token = new_secret("brt")
    expires_at = at + timedelta(seconds=ctx.settings.refresh_token_seconds)
    async with unit_of_work(ctx, caller) as session:
        if renewed is not None:
            await identity.rehash(session, caller.user_id, renewed)
        await identity.open_session(
            session,
            session_id=caller.session_id,
            user_id=caller.user_id,
            organization_id=caller.organization_id,
            at=at,
            expires_at=expires_at,
            ip=visitor.address,
            user_agent=(visitor.user_agent or "")[:LONGEST_AGENT] or None,
        )
        await identity.add_refresh_token(
            session,
            fingerprint(refresh_token),
            session_id=caller.session_id,
            user_id=caller.user_id,
            at=at,
            expires_at=expires_at,
        )
    return _tokens(ctx, caller, refresh_token, at)


async def refresh(ctx: Context, token: str) -> TokensView:
    """Exchange a refresh token for new ones. A token that was used before takes its whole session down.

    Raises:
        ApiError: 401 ``UNAUTHENTICATED``.
    """
    hashed, at = fingerprint(token), datetime.now(UTC)
    async with unit_of_work(ctx, None) as session:
        found = await identity.refreshed(session, hashed)
    gone = unauthenticated("The session has ended. Sign in again.")
    if found is None:
        raise gone
    if found.revoked_at is not None or found.disabled_at is not None or found.session_expires_at <= at:
        raise gone
    acting = _acting(found.user_id, found.organization_id)
    fresh = new_secret("brt")
    expires_at = min(found.session_expires_at, at + timedelta(seconds=ctx.settings.refresh_token_seconds))
    rotated = False
    if found.used_at is None and found.expires_at > at:
        async with unit_of_work(ctx, acting) as session:
            rotated = await identity.use_refresh_token(session, hashed, found.session_id, at)
            if rotated:
                await identity.add_refresh_token(
                    session,
                    fingerprint(fresh),
                    session_id=found.session_id,
                    user_id=found.user_id,
                    at=at,
                    expires_at=expires_at,
                )
    if not rotated:
        await end_sessions(ctx, acting, because="refresh token used twice", only=found.session_id)
        raise gone
    caller = replace(
        acting,
        role=found.role,
        membership=found.membership,
        email_verified=found.email_verified_at is not None,
        timezone=found.timezone,
        session_id=found.session_id,
    )
    return _tokens(ctx, caller, fresh, at)


async def end_sessions(
    ctx: Context, caller: Caller, *, because: str, only: str | None = None, sparing: str | None = None
) -> int:
    """Revoke sessions of the caller's; their access tokens are refused here at once. Returns how many."""
    async with unit_of_work(ctx, caller) as session:
        revoked = await _revoke(ctx, session, caller.user_id, because=because, only=only, sparing=sparing)
    return len(revoked)


async def _revoke(
    ctx: Context,
    session: AsyncSession,
    user_id: str,
    *,
    because: str,
    only: str | None = None,
    sparing: str | None = None,
) -> dict[str, datetime]:
    revoked = await identity.revoke_sessions(
        session,
        user_id,
        because=because,
        at=datetime.now(UTC),
        access_lifetime=ctx.tokens.lifetime + timedelta(minutes=1),
        only=only,
        sparing=sparing,
    )
    for name, until in revoked.items():
        ctx.revocations.add(name, until)
    return revoked


async def logout(ctx: Context, caller: Caller, refresh_token: str | None) -> None:
    """End this session, and the one that ``refresh_token`` belongs to where that is another one of the caller's."""
    await end_sessions(ctx, caller, because="signed out", only=caller.session_id)
    if refresh_token is None:
        return
    async with unit_of_work(ctx, None) as session:
        found = await identity.refreshed(session, fingerprint(refresh_token))
    if found is not None and found.user_id == caller.user_id and found.session_id != caller.session_id:
        await end_sessions(ctx, caller, because="signed out", only=found.session_id)


def _tokens(ctx: Context, caller: Caller, refresh_token: str, at: datetime) -> TokensView:
    return TokensView(
        access_token=ctx.tokens.issue(caller, at),
        expires_in=int(ctx.tokens.lifetime.total_seconds()),
        refresh_token=refresh_token,
    )


# ---------------------------------------------------------------- forgotten


async def forgot_password(ctx: Context, email: str, visitor: Visitor) -> None:
    """Mail a link, if there is such an account; whoever asks learns nothing either way, also not by the clock.

    Raises:
        ApiError: 429 ``RATE_LIMITED``.
    """
    await limit_account(ctx, "forgot", email)
    loop = asyncio.get_running_loop()
    answer_at = loop.time() + FORGOT_SECONDS
    await _mail_reset(ctx, email, visitor)
    await asyncio.sleep(answer_at - loop.time())


async def _mail_reset(ctx: Context, email: str, visitor: Visitor) -> None:
    at = datetime.now(UTC)
    async with unit_of_work(ctx, None) as session:
        known = await identity.sign_in(session, email.strip())
        if known is None or known.disabled_at is not None:
            return
        holder = Holder(user_id=known.user_id, organization_id=known.organization_id, role=NOBODY)
        await identity.speak_for(session, holder)
        await _mail_link(
            session,
            NoticeKind.PASSWORD_RESET,
            RESET_PASSWORD,
            holder=holder,
            lifetime=timedelta(seconds=ctx.settings.reset_seconds),
            request_id=visitor.request_id,
            at=at,
        )


async def reset_password(ctx: Context, token: str, password: str, visitor: Visitor) -> None:
    """Set a new password by the mailed token; every session of the account ends, and the address counts as verified.

    Raises:
        ApiError: 422 when the token is unknown, was used or has expired.
    """
    password_hash = await ctx.passwords.hash(password)
    at = datetime.now(UTC)
    async with unit_of_work(ctx, None) as session:
        holder = await identity.use_token(session, fingerprint(token), RESET_PASSWORD, at)
        if holder is None:
            raise bad_link()
        await identity.speak_for(session, holder)
        await _new_password(ctx, session, holder, password_hash, visitor, because="password reset")
        # Whoever read this mail owns the address.
        await identity.mark_verified(session, holder.user_id, at)


async def change_password(ctx: Context, caller: Caller, current: str, password: str, visitor: Visitor) -> None:
    """Set a new password by the old one; every other session ends.

    Raises:
        ApiError: 401 ``INVALID_CREDENTIALS``.
    """
    await limit_account(ctx, "password", caller.user_id)
    async with unit_of_work(ctx, caller) as session:
        found = await identity.profile(session, caller.user_id, caller.organization_id)
    right, _ = await ctx.passwords.verify(current, found[0].password_hash if found else None)
    if not right:
        raise wrong_credentials()
    password_hash = await ctx.passwords.hash(password)
    holder = Holder(user_id=caller.user_id, organization_id=caller.organization_id, role=NOBODY)
    async with unit_of_work(ctx, caller) as session:
        await _new_password(
            ctx, session, holder, password_hash, visitor, because="password changed", sparing=caller.session_id
        )


async def _new_password(
    ctx: Context,
    session: AsyncSession,
    holder: Holder,
    password_hash: str,
    visitor: Visitor,
    *,
    because: str,
    sparing: str | None = None,
) -> None:
    at = datetime.now(UTC)
    await identity.set_password(session, holder.user_id, password_hash, at)
    await _revoke(ctx, session, holder.user_id, because=because, sparing=sparing)
    await identity.record(
        session,
        organization_id=holder.organization_id,
        actor=holder.user_id,
        action=because.replace(" ", "_"),
        object=holder.user_id,
        at=at,
        ip=visitor.address,
        request_id=visitor.request_id,
    )


async def limit_account(ctx: Context, what: str, email: str) -> None:
    """A few tries a minute for one account, from wherever they come. The limiter does not learn the address."""
    await ctx.rate_limits.take(ratelimit.AUTH, what, fingerprint(email.strip().lower()))
