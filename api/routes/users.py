"""One's own account."""

from __future__ import annotations

from typing import Annotated

from fastapi import Path
from sqlalchemy.ext.asyncio import AsyncSession

from api import registration
from api.dependencies.authentication import AuthenticatedCaller
from api.dependencies.context import AppContextDep
from api.dependencies.transactions import Session
from api.errors import AUTHENTICATED_RESPONSES, forbidden_error, not_found_error, unauthenticated_error
from api.login_sessions import revoke_sessions
from api.response_envelope import Envelope, JsonResponse, Meta, Page, list_response, now, success
from api.router_factory import api_router
from api.routes.auth import ClientInfoDep
from api.schemas.identity import ChangePasswordIn, EmptyOut, MeOut, OrganizationOut, SessionOut, UpdateUserIn
from api.tokens import Caller
from db.queries import identity as accounts

router = api_router("users", prefix="/users/me", responses=AUTHENTICATED_RESPONSES)

MANAGER_ROLES = frozenset({"owner", "admin"})


async def _load_me(session: AsyncSession, caller: Caller) -> MeOut:
    rows = await accounts.get_user_and_organization(session, caller.user_id, caller.organization_id)
    if rows is None:
        raise unauthenticated_error("This user no longer exists.")
    user, organization = rows
    return MeOut(
        id=user.id,
        email=user.email,
        name=user.name,
        role=user.role,
        email_verified=user.email_verified_at is not None,
        created_at=user.created_at,
        organization=OrganizationOut.model_validate(organization),
    )


@router.get("", response_model=Envelope[MeOut])
async def get_me(session: Session, caller: AuthenticatedCaller) -> JsonResponse:
    """The signed-in user and the organization that they act for."""
    return success(await _load_me(session, caller))


@router.patch("", response_model=Envelope[MeOut])
async def update_me(body: UpdateUserIn, session: Session, caller: AuthenticatedCaller) -> JsonResponse:
    """Change the caller's name and, as owner or admin, the organization's name, country and time zone."""
    at = now()
    if body.name is not None:
        await accounts.update_user(session, caller.user_id, {"name": body.name}, at)
    if body.organization is not None:
        if caller.organization_role not in MANAGER_ROLES:
            raise forbidden_error("Permission denied: requires the organization role owner or admin.")
        values = body.organization.model_dump(exclude_none=True)
        if values:
            await accounts.update_organization(session, caller.organization_id, values, at)
    return success(await _load_me(session, caller))


@router.post("/password", response_model=Envelope[EmptyOut])
async def change_password(
    body: ChangePasswordIn, ctx: AppContextDep, caller: AuthenticatedCaller, visit: ClientInfoDep
) -> JsonResponse:
    """Set a new password by the old one. Every other session ends."""
    await registration.change_password(ctx, caller, body.current_password, body.password, visit)
    return success(EmptyOut(), "The password is changed.")


@router.get("/sessions", response_model=Page[SessionOut])
async def sessions(session: Session, caller: AuthenticatedCaller) -> JsonResponse:
    """Where one is signed in, the most recently used first; at most a hundred."""
    rows = await accounts.list_active_sessions(session, caller.user_id, now())
    views = [
        SessionOut(
            id=item.id,
            created_at=item.created_at,
            last_used_at=item.last_used_at,
            expires_at=item.expires_at,
            ip=item.ip,
            user_agent=item.user_agent,
            current=item.id == caller.session_id,
        )
        for item in rows
    ]
    return list_response(views, Meta(next_cursor=None, limit=100, total=len(views)))


@router.delete("/sessions/{session_id}", response_model=Envelope[EmptyOut])
async def revoke_session(
    session_id: Annotated[str, Path(max_length=64)], ctx: AppContextDep, caller: AuthenticatedCaller
) -> JsonResponse:
    """End one of one's sessions; its tokens are refused from now on."""
    if not await revoke_sessions(ctx, caller, because="revoked", only=session_id):
        raise not_found_error("session")
    return success(EmptyOut(), "The session has ended.")
