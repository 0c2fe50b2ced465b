"""Signing up, signing in, and one's own account."""

from __future__ import annotations

import unicodedata
from typing import Annotated, Literal
from zoneinfo import available_timezones

import email_validator
from pydantic import AfterValidator, Field

from api.envelope import Body, Instant, Schema

# Whoever runs this inside a company or a sandbox mails to addresses that the public internet does not know.
email_validator.SPECIAL_USE_DOMAIN_NAMES.clear()

LONGEST_PASSWORD = 256


def _address(given: str) -> str:
    try:
        found = email_validator.validate_email(given.strip(), check_deliverability=False, allow_quoted_local=False)
    except email_validator.EmailNotValidError:
        raise ValueError("This is not an email address.") from None
    return found.normalized


def _one_line(given: str) -> str:
    """Names end up in mail headers and pages: line breaks, control and direction characters become spaces."""
    visible = "".join(" " if unicodedata.category(c) in ("Cc", "Cf", "Zl", "Zp") else c for c in given)
    found = " ".join(visible.split())
    if not found:
        raise ValueError("This must not be empty.")
    return found


def _zone(given: str) -> str:
    if given not in available_timezones():
        raise ValueError("This is not the name of a time zone.")
    return given


Email = Annotated[str, Field(max_length=254, examples=["ada@example.com"]), AfterValidator(_address)]
Name = Annotated[str, Field(min_length=1, max_length=200, examples=["Ada Lovelace"]), AfterValidator(_one_line)]
NewPassword = Annotated[str, Field(min_length=8, max_length=LONGEST_PASSWORD, examples=["correct horse battery"])]
Password = Annotated[str, Field(max_length=LONGEST_PASSWORD, examples=["correct horse battery"])]
Token = Annotated[str, Field(min_length=1, max_length=512)]
Country = Annotated[str, Field(pattern=r"^[A-Z]{2}$", examples=["DE"])]
Currency = Annotated[str, Field(pattern=r"^[A-Z]{3}$", examples=["USD"])]
Zone = Annotated[str, Field(max_length=64, examples=["Europe/Berlin"]), AfterValidator(_zone)]


class Registration(Body):
    email: Email
    password: NewPassword
    name: Name
    country: Country | None = None
    currency: Currency = "USD"
    timezone: Zone = "UTC"


class Login(Body):
    email: Annotated[str, Field(max_length=254, examples=["ada@example.com"])]
    password: Password


class Refresh(Body):
    refresh_token: Token


class Logout(Body):
    refresh_token: Token | None = None


class TokenBody(Body):
    token: Token


class Forgotten(Body):
    email: Annotated[str, Field(max_length=254, examples=["ada@example.com"])]


class Reset(Body):
    token: Token
    password: NewPassword


class PasswordChange(Body):
    current_password: Password
    password: NewPassword


class OrganizationPatch(Body):
    name: Name | None = None
    country: Country | None = None
    timezone: Zone | None = None


class UserPatch(Body):
    name: Name | None = None
    organization: OrganizationPatch | None = None


class OrganizationView(Schema):
    id: str
    name: str
    currency: str
    country: str | None
    timezone: str


class UserView(Schema):
    id: str
    email: str
    name: str
    role: str = Field(examples=["USER"])
    email_verified: bool


class Registered(Schema):
    user: UserView
    organization: OrganizationView


class MeView(UserView):
    organization: OrganizationView
    created_at: Instant


class TokensView(Schema):
    """``expires_in`` seconds."""

    access_token: str
    token_type: Literal["Bearer"] = "Bearer"  # noqa: S105 - the name of a scheme
    expires_in: int
    refresh_token: str


class SessionView(Schema):
    id: str
    created_at: Instant
    last_used_at: Instant
    expires_at: Instant
    ip: str | None
    user_agent: str | None
    current: bool


class Nothing(Schema):
    """There is nothing more to say."""
