"""Accounts: signing up, proving the address, and new passwords; ``routes/auth.py`` and the pages are the doors.

Before somebody is known a unit of work speaks for nobody, and the database lets it through the doors of
``db.queries.identity`` only.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from api.context import Context
from api.deps import unit_of_work
from api.errors import ApiError
from api.ids import fingerprint, new_id, new_secret
from api.schemas.identity import OrganizationView, Registered, Registration, UserView
from api.sessions import NOBODY, Visitor, acting, limit_account, revoke, wrong_credentials
from api.tokens import Caller
from db.queries import identity
from db.queries.identity import RESET_PASSWORD, VERIFY_EMAIL, Holder, NewAccount
from db.queries.outbox import Notice, enqueue
from workflows.rules.notices import NoticeKind

FORGOT_SECONDS = 0.15
"""How long the answer takes at least: longer than the work for an account that exists."""


def bad_link() -> ApiError:
    return ApiError(422, "VALIDATION_ERROR", "This link is not valid, or no longer.", {"field": "token"})


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
        async with unit_of_work(ctx, acting(account.user_id, account.organization_id)) as session:
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
    await revoke(ctx, session, holder.user_id, because=because, sparing=sparing)
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
