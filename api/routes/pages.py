"""Where the links in our mails lead. Following one changes nothing (mail scanners do it too); a button does."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request
from pydantic import ValidationError
from starlette.responses import HTMLResponse, RedirectResponse, Response

from api import identity
from api.deps import Ctx, limit_by_address, limit_sign_in
from api.errors import ApiError
from api.pages import form, page
from api.routes.auth import Visit
from api.schemas.identity import Reset

router = APIRouter(include_in_schema=False, default_response_class=HTMLResponse)

LinkToken = Annotated[str, Query(max_length=512)]
SEEN = [Depends(limit_by_address)]
FEW = [Depends(limit_sign_in)]


@router.get("/", dependencies=SEEN)
async def home() -> Response:
    return RedirectResponse("/docs", status_code=307)


@router.get("/verify-email", dependencies=SEEN)
async def verify_page(token: LinkToken = "") -> Response:
    return page("verify_email", token=token, done=False, problem=None)


@router.post("/verify-email", dependencies=FEW)
async def verify(request: Request, ctx: Ctx, visit: Visit) -> Response:
    given = await form(request)
    try:
        await identity.verify_email(ctx, given.get("token", ""), visit)
    except ApiError as error:
        return page("verify_email", status=error.status, token="", done=False, problem=error.message)
    return page("verify_email", token="", done=True, problem=None)


@router.get("/reset-password", dependencies=SEEN)
async def reset_page(token: LinkToken = "") -> Response:
    return page("reset_password", token=token, done=False, problem=None)


@router.post("/reset-password", dependencies=FEW)
async def reset(request: Request, ctx: Ctx, visit: Visit) -> Response:
    given = await form(request)
    token = given.get("token", "")
    try:
        wanted = Reset(token=token, password=given.get("password", ""))
    except ValidationError:
        problem = "A password has at least 8 characters."
        return page("reset_password", status=422, token=token, done=False, problem=problem)
    try:
        await identity.reset_password(ctx, wanted.token, wanted.password, visit)
    except ApiError as error:
        return page("reset_password", status=error.status, token="", done=False, problem=error.message)
    return page("reset_password", token="", done=True, problem=None)
