"""One's own account."""

from __future__ import annotations

from typing import Annotated

from fastapi import Path
from sqlalchemy.ext.asyncio import AsyncSession

from api import identity
from api.deps import Ctx, SignedIn, Work
from api.envelope import Envelope, Json, Meta, Page, listed, now, ok
from api.errors import SIGNED_IN, forbidden, not_found, unauthenticated
from api.families import family
from api.routes.auth import Visit
from api.schemas.identity import MeView, Nothing, OrganizationView, PasswordChange, SessionView, UserPatch
from api.sessions import end_sessions
from api.tokens import Caller
from db.queries import identity as accounts

router = family("users", prefix="/users/me", responses=SIGNED_IN)

MANAGES = frozenset({"owner", "admin"})


async def _me(session: AsyncSession, caller: Caller) -> MeView:
    found = await accounts.profile(session, caller.user_id, caller.organization_id)
    if found is None:
        raise unauthenticated("This account is gone.")
    user, organization = found
    return MeView(
        id=user.id,
        email=user.email,
        name=user.name,
        role=user.role,
        email_verified=user.email_verified_at is not None,
        created_at=user.created_at,
        organization=OrganizationView.model_validate(organization),
    )


@router.get("")
async def me(session: Work, caller: SignedIn) -> Envelope[MeView]:
    """The signed-in user and the organisation that they act for."""
    return ok(await _me(session, caller))


@router.patch("")
async def update_me(body: UserPatch, session: Work, caller: SignedIn) -> Envelope[MeView]:
    """Change one's name, and as owner or admin the organisation's name, country and time zone."""
    at = now()
    if body.name is not None:
        await accounts.update_user(session, caller.user_id, {"name": body.name}, at)
    if body.organization is not None:
        if caller.membership not in MANAGES:
            raise forbidden("Owners and admins of the organisation may do this.")
        values = body.organization.model_dump(exclude_none=True)
        if values:
            await accounts.update_organization(session, caller.organization_id, values, at)
    return ok(await _me(session, caller))


@router.post("/password")
async def change_password(body: PasswordChange, ctx: Ctx, caller: SignedIn, visit: Visit) -> Envelope[Nothing]:
    """Set a new password by the old one. Every other session ends."""
    await identity.change_password(ctx, caller, body.current_password, body.password, visit)
    return ok(Nothing(), "The password is changed.")


@router.get("/sessions", response_model=Page[SessionView])
async def sessions(session: Work, caller: SignedIn) -> Json:
    """Where one is signed in, the most recently used first; at most a hundred."""
    found = await accounts.open_sessions(session, caller.user_id, now())
    views = [
        SessionView(
            id=item.id,
            created_at=item.created_at,
            last_used_at=item.last_used_at,
            expires_at=item.expires_at,
            ip=item.ip,
            user_agent=item.user_agent,
            current=item.id == caller.session_id,
        )
        for item in found
    ]
    return listed(views, Meta(next_cursor=None, limit=100, total=len(views)))


@router.delete("/sessions/{session_id}")
async def revoke_session(
    session_id: Annotated[str, Path(max_length=64)], ctx: Ctx, caller: SignedIn
) -> Envelope[Nothing]:
    """End one of one's sessions; its tokens are refused from now on."""
    if not await end_sessions(ctx, caller, because="revoked", only=session_id):
        raise not_found("session")
    return ok(Nothing(), "The session has ended.")
