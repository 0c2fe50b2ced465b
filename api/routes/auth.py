"""Signing up, in and out."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request

from api import login_sessions, ratelimit, registration
from api.dependencies.authentication import AuthenticatedCaller
from api.dependencies.context import Address, AppContextDep, RequestId
from api.dependencies.rate_limits import rate_limit_by_address, rate_limit_sign_in
from api.dependencies.transactions import Transactions
from api.errors import PUBLIC_RESPONSES, error_responses
from api.login_sessions import ClientInfo
from api.response_envelope import Envelope, JsonResponse, now, success
from api.router_factory import api_router
from api.schemas.identity import (
    EmptyOut,
    ForgotPasswordIn,
    LoginIn,
    LogoutIn,
    RefreshIn,
    RegistrationIn,
    RegistrationOut,
    ResetPasswordIn,
    TokenIn,
    TokensOut,
)
from db.queries import identity as accounts

router = api_router("auth", prefix="/auth", responses=PUBLIC_RESPONSES)

SIGN_IN_RATE_LIMIT = [Depends(rate_limit_sign_in)]


async def get_client_info(request: Request, address: Address, request_id: RequestId) -> ClientInfo:
    return ClientInfo(address=address, user_agent=request.headers.get("user-agent"), request_id=request_id)


ClientInfoDep = Annotated[ClientInfo, Depends(get_client_info)]


@router.post("/register", status_code=201, dependencies=SIGN_IN_RATE_LIMIT, response_model=Envelope[RegistrationOut])
async def register(body: RegistrationIn, ctx: AppContextDep, visit: ClientInfoDep) -> JsonResponse:
    """Create a user and their organization, and send a mail with the link that verifies the address."""
    return success(
        await registration.register(ctx, body, visit),
        "Registered. Open the link in the verification email.",
        status=201,
    )


@router.post("/verify-email", dependencies=SIGN_IN_RATE_LIMIT, response_model=Envelope[EmptyOut])
async def verify_email(body: TokenIn, ctx: AppContextDep, visit: ClientInfoDep) -> JsonResponse:
    """Verify the address by the mailed token, which works once."""
    await registration.verify_email(ctx, body.token, visit)
    return success(EmptyOut(), "Email address verified.")


@router.post("/resend-verification", responses=error_responses(401), response_model=Envelope[EmptyOut])
async def resend_verification(
    ctx: AppContextDep, caller: AuthenticatedCaller, units: Transactions, visit: ClientInfoDep
) -> JsonResponse:
    """Mail a fresh link, unless the address is verified already. Links sent before stop working."""
    await login_sessions.rate_limit_by_email(ctx, "resend", caller.user_id)
    # The address may be another person's until it is verified.
    await ctx.rate_limits.consume(ratelimit.VERIFICATION_MAILS, caller.user_id)
    async with units.open() as session:
        if not await accounts.is_email_verified(session, caller.user_id):
            await registration.send_verification(
                ctx, session, caller.user_id, caller.organization_id, visit.request_id, now()
            )
    return success(EmptyOut())


@router.post(
    "/login", dependencies=SIGN_IN_RATE_LIMIT, responses=error_responses(401), response_model=Envelope[TokensOut]
)
async def login(body: LoginIn, ctx: AppContextDep, visit: ClientInfoDep) -> JsonResponse:
    """Start a session: a short-lived access token and a refresh token that is exchanged once."""
    return success(await login_sessions.login(ctx, body.email, body.password, visit))


@router.post(
    "/refresh",
    dependencies=[Depends(rate_limit_by_address)],
    responses=error_responses(401),
    response_model=Envelope[TokensOut],
)
async def refresh(body: RefreshIn, ctx: AppContextDep) -> JsonResponse:
    """Exchange a refresh token. Exchanging one twice ends its session: one of the two was stolen."""
    return success(await login_sessions.rotate_refresh_token(ctx, body.refresh_token))


@router.post("/logout", responses=error_responses(401), response_model=Envelope[EmptyOut])
async def logout(ctx: AppContextDep, caller: AuthenticatedCaller, body: LogoutIn | None = None) -> JsonResponse:
    """End this session; its access token is refused from now on."""
    await login_sessions.logout(ctx, caller, body.refresh_token if body else None)
    return success(EmptyOut(), "Signed out.")


@router.post("/forgot-password", dependencies=SIGN_IN_RATE_LIMIT, response_model=Envelope[EmptyOut])
async def forgot_password(body: ForgotPasswordIn, ctx: AppContextDep, visit: ClientInfoDep) -> JsonResponse:
    """Mail a link for a new password. The answer is the same whether there is such an account or not."""
    await registration.forgot_password(ctx, body.email, visit)
    return success(EmptyOut(), "If the address is registered, an email with a reset link was sent.")


@router.post("/reset-password", dependencies=SIGN_IN_RATE_LIMIT, response_model=Envelope[EmptyOut])
async def reset_password(body: ResetPasswordIn, ctx: AppContextDep, visit: ClientInfoDep) -> JsonResponse:
    """Set a new password by the mailed token, which works once. Every session of the account ends."""
    await registration.reset_password(ctx, body.token, body.password, visit)
    return success(EmptyOut(), "The password is changed.")
