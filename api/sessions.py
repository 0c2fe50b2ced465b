"""Sessions: signing in, staying in and getting out. ``routes/auth.py`` is their door."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from sqlalchemy.ext.asyncio import AsyncSession

from api import ratelimit
from api.context import Context
from api.deps import unit_of_work
from api.errors import ApiError, unauthenticated
from api.ids import fingerprint, new_id, new_secret
from api.schemas.identity import TokensView
from api.tokens import Caller
from db.queries import identity

LONGEST_AGENT = 300
NOBODY = "USER"


@dataclass(frozen=True, slots=True, kw_only=True)
class Visitor:
    """From where a request comes, for the records."""

    address: str
    user_agent: str | None
    request_id: str


def acting(user_id: str, organization_id: str, role: str = NOBODY) -> Caller:
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
    holder = acting(found.user_id, found.organization_id)
    fresh = new_secret("brt")
    expires_at = min(found.session_expires_at, at + timedelta(seconds=ctx.settings.refresh_token_seconds))
    rotated = False
    if found.used_at is None and found.expires_at > at:
        async with unit_of_work(ctx, holder) as session:
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
        await end_sessions(ctx, holder, because="refresh token used twice", only=found.session_id)
        raise gone
    caller = replace(
        holder,
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
        revoked = await revoke(ctx, session, caller.user_id, because=because, only=only, sparing=sparing)
    return len(revoked)


async def revoke(
    ctx: Context,
    session: AsyncSession,
    user_id: str,
    *,
    because: str,
    only: str | None = None,
    sparing: str | None = None,
) -> dict[str, datetime]:
    """The same inside a unit of work: which sessions ended, and until when their access tokens must be refused."""
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


async def limit_account(ctx: Context, what: str, email: str) -> None:
    """A few tries a minute for one account, from wherever they come. The limiter does not learn the address."""
    await ctx.rate_limits.take(ratelimit.AUTH, what, fingerprint(email.strip().lower()))
