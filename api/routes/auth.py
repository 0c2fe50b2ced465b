"""Signing up, in and out."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request

from api import identity, sessions
from api.deps import Address, Ctx, RequestId, SignedIn, UnitsOfWork, limit_by_address, limit_sign_in
from api.envelope import Envelope, now, ok
from api.errors import COMMON, documented
from api.families import family
from api.schemas.identity import (
    Forgotten,
    Login,
    Logout,
    Nothing,
    Refresh,
    Registered,
    Registration,
    Reset,
    TokenBody,
    TokensView,
)
from api.sessions import Visitor
from db.queries import identity as accounts

router = family("auth", prefix="/auth", responses=COMMON)

FEW = [Depends(limit_sign_in)]


async def visitor(request: Request, address: Address, request_id: RequestId) -> Visitor:
    return Visitor(address=address, user_agent=request.headers.get("user-agent"), request_id=request_id)


Visit = Annotated[Visitor, Depends(visitor)]


@router.post("/register", status_code=201, dependencies=FEW)
async def register(body: Registration, ctx: Ctx, visit: Visit) -> Envelope[Registered]:
    """Open an account with an organisation of its own; a mail brings the link that verifies the address."""
    return ok(await identity.register(ctx, body, visit), "Please follow the link in the mail that we sent you.")


@router.post("/verify-email", dependencies=FEW)
async def verify_email(body: TokenBody, ctx: Ctx, visit: Visit) -> Envelope[Nothing]:
    """Verify the address by the mailed token, which works once."""
    await identity.verify_email(ctx, body.token, visit)
    return ok(Nothing(), "The address is verified.")


@router.post("/resend-verification", responses=documented(401))
async def resend_verification(ctx: Ctx, caller: SignedIn, units: UnitsOfWork, visit: Visit) -> Envelope[Nothing]:
    """Mail a fresh link, unless the address is verified already. Links sent before stop working."""
    await sessions.limit_account(ctx, "resend", caller.user_id)
    async with units.begin() as session:
        if not await accounts.is_verified(session, caller.user_id):
            await identity.send_verification(
                ctx, session, caller.user_id, caller.organization_id, visit.request_id, now()
            )
    return ok(Nothing())


@router.post("/login", dependencies=FEW, responses=documented(401))
async def login(body: Login, ctx: Ctx, visit: Visit) -> Envelope[TokensView]:
    """Start a session: a short-lived access token and a refresh token that is exchanged once."""
    return ok(await sessions.login(ctx, body.email, body.password, visit))


@router.post("/refresh", dependencies=[Depends(limit_by_address)], responses=documented(401))
async def refresh(body: Refresh, ctx: Ctx) -> Envelope[TokensView]:
    """Exchange a refresh token. Exchanging one twice ends its session: one of the two was stolen."""
    return ok(await sessions.refresh(ctx, body.refresh_token))


@router.post("/logout", responses=documented(401))
async def logout(ctx: Ctx, caller: SignedIn, body: Logout | None = None) -> Envelope[Nothing]:
    """End this session; its access token is refused from now on."""
    await sessions.logout(ctx, caller, body.refresh_token if body else None)
    return ok(Nothing(), "Signed out.")


@router.post("/forgot-password", dependencies=FEW)
async def forgot_password(body: Forgotten, ctx: Ctx, visit: Visit) -> Envelope[Nothing]:
    """Mail a link for a new password. The answer is the same whether there is such an account or not."""
    await identity.forgot_password(ctx, body.email, visit)
    return ok(Nothing(), "If there is such an account, a mail is on its way.")


@router.post("/reset-password", dependencies=FEW)
async def reset_password(body: Reset, ctx: Ctx, visit: Visit) -> Envelope[Nothing]:
    """Set a new password by the mailed token, which works once. Every session of the account ends."""
    await identity.reset_password(ctx, body.token, body.password, visit)
    return ok(Nothing(), "The password is changed.")
