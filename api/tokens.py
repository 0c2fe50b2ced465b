"""Access tokens: short-lived JWTs that carry what a request needs to know, so that it need not ask the database."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import jwt

from api.ids import new_id

ALGORITHM = "HS256"
ISSUER = "berth"
AUDIENCE = "berth-api"
LEEWAY_SECONDS = 5
REQUIRED = ("iss", "aud", "exp", "iat", "jti", "sub", "sid", "org", "role")
LONGEST = 4096


class BadToken(Exception):
    """Not ours, not for us, altered, or over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who asks, and for which organisation.

    Attributes:
        role: The platform's: ``USER ADMINISTRATOR NODE_OPERATOR DASHBOARD_OPERATOR``.
        membership: The organisation's: ``owner admin billing member``.
        email_verified: As it was when the token was issued; ``deps.verified_caller`` looks again where it is False.
        timezone: The organisation's, an IANA name.
    """

    user_id: str
    organization_id: str
    role: str
    membership: str
    email_verified: bool
    timezone: str
    session_id: str

    @property
    def is_administrator(self) -> bool:
        return self.role == "ADMINISTRATOR"


class Tokens:
    """Issues with the first of ``keys`` (pairs of id and secret) and accepts every one of them, by id.

    The algorithm is ours, whatever a token's header says.
    """

    def __init__(self, keys: Sequence[tuple[str, bytes]], *, lifetime: timedelta) -> None:
        self._current, self._secret = keys[0]
        self._keys = dict(keys)
        self.lifetime = lifetime

    def issue(self, caller: Caller, at: datetime) -> str:
        claims = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "iat": int(at.timestamp()),
            "exp": int((at + self.lifetime).timestamp()),
            "jti": new_id("jti"),
            "sub": caller.user_id,
            "sid": caller.session_id,
            "org": caller.organization_id,
            "role": caller.role,
            "member": caller.membership,
            "verified": caller.email_verified,
            "tz": caller.timezone,
        }
        return jwt.encode(claims, self._secret, algorithm=ALGORITHM, headers={"kid": self._current})

    def read(self, token: str) -> Caller:
        """Raises ``BadToken``; the reason is for nobody."""
        if len(token) > LONGEST:
            raise BadToken
        try:
            key = self._keys[jwt.get_unverified_header(token)["kid"]]
            claims: dict[str, Any] = jwt.decode(
                token,
                key,
                algorithms=[ALGORITHM],
                issuer=ISSUER,
                audience=AUDIENCE,
                leeway=LEEWAY_SECONDS,
                options={"require": list(REQUIRED), "strict_aud": True},
            )
            return Caller(
                user_id=_text(claims["sub"]),
                organization_id=_text(claims["org"]),
                role=_text(claims["role"]),
                membership=_text(claims.get("member", "member")),
                email_verified=claims.get("verified") is True,
                timezone=_text(claims.get("tz", "UTC")),
                session_id=_text(claims["sid"]),
            )
        except (jwt.PyJWTError, KeyError, TypeError, ValueError) as error:
            raise BadToken from error


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value
