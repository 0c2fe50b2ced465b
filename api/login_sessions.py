"""Sessions: signing in, staying in and getting out. ``routes/auth.py`` is their door."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from sqlalchemy.ext.asyncio import AsyncSession

from api import ratelimit
from api.app_context import AppContext
from api.dependencies.transactions import transaction
from api.errors import ApiError, unauthenticated_error
from api.ids import generate_id, generate_secret, hash_token
from api.schemas.identity import TokensOut
from api.tokens import Caller
from db.queries import identity
from db.queries.identity import CredentialsRecord, RefreshTokenRecord

MAX_USER_AGENT_LENGTH = 300
DEFAULT_ROLE = "USER"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientInfo:
    """From where a request comes, for the records."""

    address: str
    user_agent: str | None
    request_id: str


def caller_for(user_id: str, organization_id: str, role: str = DEFAULT_ROLE) -> Caller:
    """The user and organization of the transaction that signs a user in."""
    return Caller(
        user_id=user_id,
        organization_id=organization_id,
        platform_role=role,
        organization_role="owner",
        email_verified=False,
        timezone="UTC",
        session_id="",
    )


def invalid_credentials_error() -> ApiError:
    """The same whether the address is unknown, the password wrong or the account closed."""
    return ApiError(401, "INVALID_CREDENTIALS", "Invalid email or password.")


async def login(ctx: AppContext, email: str, password: str, visitor: ClientInfo) -> TokensOut:
    """Start a session.

    Raises:
        ApiError: 401 ``INVALID_CREDENTIALS``, 429 ``RATE_LIMITED``.
    """
    async with transaction(ctx, None) as session:
        credentials = await identity.find_credentials(session, email.strip())
    rejection = await rate_limit_account(ctx, credentials, email, visitor.address)
    # No transaction waits for the hashing, and an unknown address takes as long as a credentials one.
    right, renewed = await ctx.passwords.verify(password, credentials.password_hash if credentials else None)
    if credentials is None or not right or credentials.disabled_at is not None:
        raise rejection or invalid_credentials_error()
    at = datetime.now(UTC)
    caller = Caller(
        user_id=credentials.user_id,
        organization_id=credentials.organization_id,
        platform_role=credentials.role,
        organization_role=credentials.membership,
        email_verified=credentials.email_verified_at is not None,
        timezone=credentials.timezone,
        session_id=generate_id("ses"),
    )
    refresh_token = generate_secret("brt")
    expires_at = at + timedelta(seconds=ctx.settings.refresh_token_seconds)
    async with transaction(ctx, caller) as session:
        # A reset meanwhile ended the sessions that there were; this one would outlive it.
        if not await identity.lock_password(session, caller.user_id, credentials.password_hash):
            raise invalid_credentials_error()
        if renewed is not None:
            await identity.update_password_hash(session, caller.user_id, renewed)
        await identity.create_session(
            session,
            session_id=caller.session_id,
            user_id=caller.user_id,
            organization_id=caller.organization_id,
            at=at,
            expires_at=expires_at,
            ip=visitor.address,
            user_agent=(visitor.user_agent or "")[:MAX_USER_AGENT_LENGTH] or None,
        )
        await identity.add_refresh_token(
            session,
            hash_token(refresh_token),
            session_id=caller.session_id,
            user_id=caller.user_id,
            at=at,
            expires_at=expires_at,
        )
    await remember_address(ctx, caller.user_id, visitor.address)
    return _token_response(ctx, caller, refresh_token, at)


async def rate_limit_account(
    ctx: AppContext, credentials: CredentialsRecord | None, email: str, address: str
) -> ApiError | None:
    """Count one try to sign in to an account, whatever address it comes from.

    Anyone can use up the limit of an account and would so keep its owner out. The right password is therefore accepted
    beyond it: from an address that the owner came from before, and for a few tries from any address that is new to the
    account. A wrong one is answered as if it had not been looked at. All of it applies to unknown accounts as well.

    Returns:
        None within the limit; the error that answers a wrong password beyond it.

    Raises:
        ApiError: 429 ``RATE_LIMITED``: the password is not looked at.
    """
    try:
        await rate_limit_by_email(ctx, "login", credentials.email if credentials else email)
    except ApiError as rejection:
        limits, network = ctx.rate_limits, ratelimit.limited_network(address)
        account = credentials.user_id if credentials else hash_token(email.strip().lower())
        if (
            await limits.is_marked(ratelimit.KNOWN_ADDRESS, account, network)
            # An address without tries left does not use up those of the others.
            or (
                await limits.count(ratelimit.SIGN_IN_OF_NEW_ADDRESS, account, network)
                and await limits.count(ratelimit.SIGN_IN_OF_NEW_ADDRESSES, account)
            )
        ):
            return rejection
        raise
    return None


async def remember_address(ctx: AppContext, user_id: str, address: str) -> None:
    """Remember that the owner of an account came from ``address``: they knew its password or opened its mail."""
    await ctx.rate_limits.mark(ratelimit.KNOWN_ADDRESS, user_id, ratelimit.limited_network(address))


async def rotate_refresh_token(ctx: AppContext, token: str) -> TokensOut:
    """Exchange a refresh token for new ones. A token that was used before takes its whole session down.

    Raises:
        ApiError: 401 ``UNAUTHENTICATED``.
    """
    hashed, at = hash_token(token), datetime.now(UTC)
    async with transaction(ctx, None) as session:
        stored_token = await identity.find_refresh_token(session, hashed)
    session_ended = unauthenticated_error("The refresh token is invalid, expired or revoked. Log in again.")
    if stored_token is None or not may_rotate(stored_token, at):
        raise session_ended
    holder = caller_for(stored_token.user_id, stored_token.organization_id)
    fresh = generate_secret("brt")
    expires_at = min(stored_token.session_expires_at, at + timedelta(seconds=ctx.settings.refresh_token_seconds))
    rotated = False
    if stored_token.used_at is None:
        async with transaction(ctx, holder) as session:
            rotated = await identity.consume_refresh_token(session, hashed, stored_token.session_id, at)
            if rotated:
                await identity.add_refresh_token(
                    session,
                    hash_token(fresh),
                    session_id=stored_token.session_id,
                    user_id=stored_token.user_id,
                    at=at,
                    expires_at=expires_at,
                )
    if not rotated:
        await revoke_sessions(ctx, holder, because="refresh_token_reuse_detected", only=stored_token.session_id)
        raise session_ended
    caller = replace(
        holder,
        platform_role=stored_token.role,
        organization_role=stored_token.membership,
        email_verified=stored_token.email_verified_at is not None,
        timezone=stored_token.timezone,
        session_id=stored_token.session_id,
    )
    return _token_response(ctx, caller, fresh, at)


def may_rotate(token: RefreshTokenRecord, at: datetime) -> bool:
    """Return whether a refresh token is looked at any further at ``at``. It expires at ``expires_at``, not after it.

    A token that was used before passes until its session expires, also if it expired itself: its reuse has to end the
    session. One that expired unused was not stolen: the session goes on with its other tokens.
    """
    if token.revoked_at is not None or token.disabled_at is not None or token.session_expires_at <= at:
        return False
    return token.used_at is not None or at < token.expires_at


async def revoke_sessions(
    ctx: AppContext, caller: Caller, *, because: str, only: str | None = None, sparing: str | None = None
) -> int:
    """Revoke sessions of the caller's; their access tokens are refused here at once. Returns how many."""
    async with transaction(ctx, caller) as session:
        revoked = await revoke_sessions_in(ctx, session, caller.user_id, because=because, only=only, sparing=sparing)
    return len(revoked)


async def revoke_sessions_in(
    ctx: AppContext,
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
        reason=because,
        at=datetime.now(UTC),
        access_lifetime=ctx.tokens.lifetime + timedelta(minutes=1),
        session_id=only,
        except_session_id=sparing,
    )
    for name, until in revoked.items():
        ctx.revocations.add(name, until)
    return revoked


async def logout(ctx: AppContext, caller: Caller, refresh_token: str | None) -> None:
    """End this session, and the one that ``refresh_token`` belongs to where that is another one of the caller's."""
    await revoke_sessions(ctx, caller, because="signed out", only=caller.session_id)
    if refresh_token is None:
        return
    async with transaction(ctx, None) as session:
        stored_token = await identity.find_refresh_token(session, hash_token(refresh_token))
    if (
        stored_token is not None
        and stored_token.user_id == caller.user_id
        and stored_token.session_id != caller.session_id
    ):
        await revoke_sessions(ctx, caller, because="signed out", only=stored_token.session_id)


def _token_response(ctx: AppContext, caller: Caller, refresh_token: str, at: datetime) -> TokensOut:
    return TokensOut(
        access_token=ctx.tokens.issue(caller, at),
        expires_in=int(ctx.tokens.lifetime.total_seconds()),
        refresh_token=refresh_token,
    )


async def rate_limit_by_email(ctx: AppContext, action: str, email: str) -> None:
    """A few tries a minute for one account, from wherever they come. The limiter does not learn the address.

    Args:
        email: Of an account as it is stored: PostgreSQL finds it by spellings that Python's ``lower`` keeps apart.
    """
    await ctx.rate_limits.consume(ratelimit.AUTH, action, hash_token(email.strip().lower()))
