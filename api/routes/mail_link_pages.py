"""Where the links in our mails lead. Following one changes nothing (mail scanners do it too); a button does."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request
from pydantic import ValidationError
from starlette.responses import HTMLResponse, RedirectResponse, Response

from api import registration
from api.dependencies.context import AppContextDep
from api.dependencies.rate_limits import rate_limit_by_address, rate_limit_sign_in
from api.errors import ApiError
from api.html_pages import parse_form, render_page
from api.routes.auth import ClientInfoDep
from api.schemas.identity import MAX_PASSWORD_LENGTH, MIN_PASSWORD_LENGTH, ResetPasswordIn

router = APIRouter(include_in_schema=False, default_response_class=HTMLResponse)

LinkToken = Annotated[str, Query(max_length=512)]
ADDRESS_RATE_LIMIT = [Depends(rate_limit_by_address)]
SIGN_IN_RATE_LIMIT = [Depends(rate_limit_sign_in)]


@router.get("/", dependencies=ADDRESS_RATE_LIMIT)
async def home() -> Response:
    return RedirectResponse("/docs", status_code=307)


@router.get("/verify-email", dependencies=ADDRESS_RATE_LIMIT)
async def verify_page(token: LinkToken = "") -> Response:
    return render_page("verify_email", token=token, done=False, problem=None)


@router.post("/verify-email", dependencies=SIGN_IN_RATE_LIMIT)
async def verify(request: Request, ctx: AppContextDep, visit: ClientInfoDep) -> Response:
    form = await parse_form(request)
    try:
        await registration.verify_email(ctx, form.get("token", ""), visit)
    except ApiError as error:
        return render_page("verify_email", status=error.status, token="", done=False, problem=error.message)
    return render_page("verify_email", token="", done=True, problem=None)


@router.get("/reset-password", dependencies=ADDRESS_RATE_LIMIT)
async def reset_page(token: LinkToken = "") -> Response:
    return render_page("reset_password", token=token, done=False, problem=None)


@router.post("/reset-password", dependencies=SIGN_IN_RATE_LIMIT)
async def reset(request: Request, ctx: AppContextDep, visit: ClientInfoDep) -> Response:
    form = await parse_form(request)
    token = form.get("token", "")
    try:
        reset = ResetPasswordIn(token=token, password=form.get("password", ""))
    except ValidationError as error:
        if any(item["loc"] == ("token",) for item in error.errors()):
            problem = "The link is incomplete."
            return render_page("reset_password", status=422, token="", done=False, problem=problem)
        problem = f"The password must have {MIN_PASSWORD_LENGTH} to {MAX_PASSWORD_LENGTH} characters."
        return render_page("reset_password", status=422, token=token, done=False, problem=problem)
    try:
        await registration.reset_password(ctx, reset.token, reset.password, visit)
    except ApiError as error:
        return render_page("reset_password", status=error.status, token="", done=False, problem=error.message)
    return render_page("reset_password", token="", done=True, problem=None)
