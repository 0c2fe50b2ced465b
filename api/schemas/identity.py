"""Signing up, signing in, and one's own account."""

from __future__ import annotations

import unicodedata
from typing import Annotated, Literal

import email_validator
from pydantic import AfterValidator, Field

from api.response_envelope import Instant, RequestModel, ResponseModel
from api.schemas.currencies import CurrencyField
from workflows.time_zones import is_time_zone

# Installations inside a company and sandboxes send mail to domains that do not exist on the public internet.
email_validator.SPECIAL_USE_DOMAIN_NAMES.clear()

MIN_PASSWORD_LENGTH = 8
MAX_PASSWORD_LENGTH = 256


def _normalize_email(text: str) -> str:
    try:
        validated = email_validator.validate_email(text.strip(), check_deliverability=False, allow_quoted_local=False)
    except email_validator.EmailNotValidError:
        raise ValueError("Invalid email address.") from None
    return validated.normalized


def _single_line(text: str) -> str:
    """Names end up in mail headers and pages: line breaks, control and direction characters become spaces."""
    visible = "".join(" " if unicodedata.category(c) in ("Cc", "Cf", "Zl", "Zp") else c for c in text)
    line = " ".join(visible.split())
    if not line:
        raise ValueError("Must not be empty.")
    return line


def _require_timezone(name: str) -> str:
    if not is_time_zone(name):
        raise ValueError("Unknown IANA time zone.")
    return name


Email = Annotated[str, Field(max_length=254, examples=["ada@example.com"]), AfterValidator(_normalize_email)]
Name = Annotated[str, Field(min_length=1, max_length=200, examples=["Ada Lovelace"]), AfterValidator(_single_line)]
NewPassword = Annotated[
    str, Field(min_length=MIN_PASSWORD_LENGTH, max_length=MAX_PASSWORD_LENGTH, examples=["correct horse battery"])
]
Password = Annotated[str, Field(max_length=MAX_PASSWORD_LENGTH, examples=["correct horse battery"])]
Token = Annotated[str, Field(min_length=1, max_length=512)]
Country = Annotated[str, Field(pattern=r"^[A-Z]{2}$", examples=["DE"])]
TimezoneName = Annotated[str, Field(max_length=64, examples=["Europe/Berlin"]), AfterValidator(_require_timezone)]


class RegistrationIn(RequestModel):
    email: Email
    password: NewPassword
    name: Name
    country: Country | None = None
    currency: CurrencyField = "USD"
    timezone: TimezoneName = "UTC"


class LoginIn(RequestModel):
    email: Annotated[str, Field(max_length=254, examples=["ada@example.com"])]
    password: Password


class RefreshIn(RequestModel):
    refresh_token: Token


class LogoutIn(RequestModel):
    refresh_token: Token | None = None


class TokenIn(RequestModel):
    token: Token


class ForgotPasswordIn(RequestModel):
    email: Annotated[str, Field(max_length=254, examples=["ada@example.com"])]


class ResetPasswordIn(RequestModel):
    token: Token
    password: NewPassword


class ChangePasswordIn(RequestModel):
    current_password: Password
    password: NewPassword


class UpdateOrganizationIn(RequestModel):
    name: Name | None = None
    country: Country | None = None
    timezone: TimezoneName | None = None


class UpdateUserIn(RequestModel):
    name: Name | None = None
    organization: UpdateOrganizationIn | None = None


class OrganizationOut(ResponseModel):
    id: str
    name: str
    currency: str
    country: str | None
    timezone: str


class UserOut(ResponseModel):
    id: str
    email: str
    name: str
    role: str = Field(examples=["USER"])
    email_verified: bool


class RegistrationOut(ResponseModel):
    user: UserOut
    organization: OrganizationOut


class MeOut(UserOut):
    organization: OrganizationOut
    created_at: Instant


class TokensOut(ResponseModel):
    """``expires_in`` seconds."""

    access_token: str
    token_type: Literal["Bearer"] = "Bearer"  # noqa: S105 - the name of a scheme
    expires_in: int
    refresh_token: str


class SessionOut(ResponseModel):
    id: str
    created_at: Instant
    last_used_at: Instant
    expires_at: Instant
    ip: str | None
    user_agent: str | None
    current: bool


class EmptyOut(ResponseModel):
    """There is nothing more to say."""
