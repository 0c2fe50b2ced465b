"""Registration, email verification and password reset.

Before the user is known, a transaction has no caller; only the functions of ``db.queries.identity`` see rows.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import structlog
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from api import ratelimit
from api.app_context import AppContext
from api.dependencies.transactions import transaction
from api.errors import ApiError
from api.ids import generate_id, generate_secret, hash_token
from api.login_sessions import (
    DEFAULT_ROLE,
    ClientInfo,
    caller_for,
    invalid_credentials_error,
    rate_limit_by_email,
    remember_address,
    revoke_sessions_in,
)
from api.schemas.identity import OrganizationOut, RegistrationIn, RegistrationOut, UserOut
from api.tokens import Caller
from db.queries import audit, identity
from db.queries.identity import RESET_PASSWORD, VERIFY_EMAIL, NewAccount, TokenOwner
from db.queries.outbox import OutboxNotification, enqueue
from workflows.rules.notifications import NotificationKind

log = structlog.get_logger("api.registration")

FORGOT_PASSWORD_MIN_SECONDS = 0.15
"""How long the answer takes at least: longer than the work for an account that exists."""


def invalid_link_error() -> ApiError:
    return ApiError(
        422, "VALIDATION_ERROR", "This link is invalid, expired or already used. Request a new one.", {"field": "token"}
    )


async def register(ctx: AppContext, registration: RegistrationIn, visitor: ClientInfo) -> RegistrationOut:
    """Open an account and mail the link that verifies its address.

    Raises:
        ApiError: 409 ``EMAIL_TAKEN``.
    """
    password_hash = await ctx.passwords.hash(registration.password)
    at = datetime.now(UTC)
    account = NewAccount(
        user_id=generate_id("usr"),
        organization_id=generate_id("org"),
        email=registration.email,
        name=registration.name,
        password_hash=password_hash,
        organization_name=registration.name,
        currency=registration.currency,
        country=registration.country,
        timezone=registration.timezone,
    )
    try:
        async with transaction(ctx, caller_for(account.user_id, account.organization_id)) as session:
            await identity.create_user_with_organization(session, account, at)
            await send_verification(ctx, session, account.user_id, account.organization_id, visitor.request_id, at)
    except IntegrityError as error:
        if "uq_users_email_lower" in str(error.orig):
            raise ApiError(409, "EMAIL_TAKEN", "A user with this email address already exists.") from None
        raise
    await remember_address(ctx, account.user_id, visitor.address)
    return RegistrationOut(
        user=UserOut(id=account.user_id, email=account.email, name=account.name, role="USER", email_verified=False),
        organization=OrganizationOut(
            id=account.organization_id,
            name=account.organization_name,
            currency=account.currency,
            country=account.country,
            timezone=account.timezone,
        ),
    )


async def send_verification(
    ctx: AppContext, session: AsyncSession, user_id: str, organization_id: str, request_id: str, at: datetime
) -> None:
    await _enqueue_token_mail(
        session,
        NotificationKind.EMAIL_VERIFICATION,
        VERIFY_EMAIL,
        holder=TokenOwner(user_id=user_id, organization_id=organization_id, role=DEFAULT_ROLE),
        lifetime=timedelta(seconds=ctx.settings.verification_token_seconds),
        request_id=request_id,
        at=at,
    )


async def _enqueue_token_mail(
    session: AsyncSession,
    kind: NotificationKind,
    purpose: str,
    *,
    holder: TokenOwner,
    lifetime: timedelta,
    request_id: str,
    at: datetime,
) -> None:
    """The token goes into the mail and, hashed, into the table; in the outbox it rests encrypted until sent."""
    token = generate_secret("bot")
    hashed = hash_token(token)
    await identity.add_one_time_token(
        session, hashed, user_id=holder.user_id, purpose=purpose, at=at, expires_at=at + lifetime
    )
    await enqueue(
        session,
        OutboxNotification(
            organization_id=holder.organization_id,
            user_id=holder.user_id,
            kind=kind,
            dedup_key=f"user/{holder.user_id}/{purpose}/{hashed[:16]}",
            context={"expires_at": (at + lifetime).isoformat()},
            secret_context={"token": token},
            occurred_at=at,
            request_id=request_id,
        ),
    )


async def verify_email(ctx: AppContext, token: str, visitor: ClientInfo) -> None:
    """Use up the mailed token.

    Raises:
        ApiError: 422 when it is unknown, was used or has expired.
    """
    at = datetime.now(UTC)
    async with transaction(ctx, None) as session:
        holder = await identity.consume_one_time_token(session, hash_token(token), VERIFY_EMAIL, at)
        if holder is None:
            raise invalid_link_error()
        await identity.act_as_token_owner(session, holder)
        if await identity.mark_email_verified(session, holder.user_id, at):
            await enqueue(
                session,
                OutboxNotification(
                    organization_id=holder.organization_id,
                    user_id=holder.user_id,
                    kind=NotificationKind.WELCOME,
                    dedup_key=f"user/{holder.user_id}/welcome",
                    context={},
                    occurred_at=at,
                    request_id=visitor.request_id,
                ),
            )
    await remember_address(ctx, holder.user_id, visitor.address)


async def forgot_password(ctx: AppContext, email: str, visitor: ClientInfo) -> None:
    """Send a reset link if the address is registered. Response and response time do not depend on whether it is.

    One recipient gets a few mails an hour, as anyone can ask for them.

    Raises:
        ApiError: 429 ``RATE_LIMITED``.
    """
    loop = asyncio.get_running_loop()
    answer_at = loop.time() + FORGOT_PASSWORD_MIN_SECONDS
    await _enqueue_reset_mail(ctx, email, visitor)
    await asyncio.sleep(answer_at - loop.time())


async def _enqueue_reset_mail(ctx: AppContext, email: str, visitor: ClientInfo) -> None:
    at = datetime.now(UTC)
    async with transaction(ctx, None) as session:
        credentials = await identity.find_credentials(session, email.strip())
        await rate_limit_by_email(ctx, "forgot", credentials.email if credentials else email)
        if credentials is None or credentials.disabled_at is not None:
            return
        if not await ctx.rate_limits.count(ratelimit.RESET_MAILS, credentials.user_id):
            # No answer: it would tell that there is an account. The link of the last mail is still valid.
            log.info("password_reset.mail_withheld", user_id=credentials.user_id)
            return
        holder = TokenOwner(user_id=credentials.user_id, organization_id=credentials.organization_id, role=DEFAULT_ROLE)
        await identity.act_as_token_owner(session, holder)
        await _enqueue_token_mail(
            session,
            NotificationKind.PASSWORD_RESET,
            RESET_PASSWORD,
            holder=holder,
            lifetime=timedelta(seconds=ctx.settings.reset_token_seconds),
            request_id=visitor.request_id,
            at=at,
        )


async def reset_password(ctx: AppContext, token: str, password: str, visitor: ClientInfo) -> None:
    """Set a new password by the mailed token; every session of the account ends, and the address counts as verified.

    Raises:
        ApiError: 422 when the token is unknown, was used or has expired.
    """
    password_hash = await ctx.passwords.hash(password)
    at = datetime.now(UTC)
    async with transaction(ctx, None) as session:
        holder = await identity.consume_one_time_token(session, hash_token(token), RESET_PASSWORD, at)
        if holder is None:
            raise invalid_link_error()
        await identity.act_as_token_owner(session, holder)
        await _set_password_and_revoke(ctx, session, holder, password_hash, visitor, because="password reset")
        # The mail was read, so the address is verified.
        await identity.mark_email_verified(session, holder.user_id, at)
    await remember_address(ctx, holder.user_id, visitor.address)
    await ctx.rate_limits.reset(ratelimit.RESET_MAILS, holder.user_id)


async def change_password(ctx: AppContext, caller: Caller, current: str, password: str, visitor: ClientInfo) -> None:
    """Set a new password by the old one; every other session ends.

    Raises:
        ApiError: 401 ``INVALID_CREDENTIALS``.
    """
    await rate_limit_by_email(ctx, "password", caller.user_id)
    async with transaction(ctx, caller) as session:
        registered = await identity.get_user_and_organization(session, caller.user_id, caller.organization_id)
    right, _ = await ctx.passwords.verify(current, registered[0].password_hash if registered else None)
    if not right:
        raise invalid_credentials_error()
    password_hash = await ctx.passwords.hash(password)
    holder = TokenOwner(user_id=caller.user_id, organization_id=caller.organization_id, role=DEFAULT_ROLE)
    async with transaction(ctx, caller) as session:
        await _set_password_and_revoke(
            ctx,
            session,
            holder,
            password_hash,
            visitor,
            because="password changed",
            except_session_id=caller.session_id,
        )


async def _set_password_and_revoke(
    ctx: AppContext,
    session: AsyncSession,
    holder: TokenOwner,
    password_hash: str,
    visitor: ClientInfo,
    *,
    because: str,
    except_session_id: str | None = None,
) -> None:
    at = datetime.now(UTC)
    await identity.set_password(session, holder.user_id, password_hash, at)
    await revoke_sessions_in(ctx, session, holder.user_id, because=because, sparing=except_session_id)
    await audit.append_audit_entry(
        session,
        organization_id=holder.organization_id,
        actor=holder.user_id,
        action=because.replace(" ", "_"),
        object=holder.user_id,
        at=at,
        ip=visitor.address,
        request_id=visitor.request_id,
    )
