"""Access tokens: short-lived JWTs that carry what a request needs to know, so that it need not ask the database."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import jwt

from api.ids import generate_id

ALGORITHM = "HS256"
ISSUER = "berth"
AUDIENCE = "berth-api"
LEEWAY_SECONDS = 5
REQUIRED_CLAIMS = ("iss", "aud", "exp", "iat", "jti", "sub", "sid", "org", "role")
MAX_TOKEN_LENGTH = 4096
MAX_VERIFIED_TOKENS = 10_000


class InvalidToken(Exception):
    """Not ours, not for us, altered, or over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """The authenticated user and the organization they act for.

    Attributes:
        platform_role: ``USER ADMINISTRATOR NODE_OPERATOR DASHBOARD_OPERATOR``.
        organization_role: ``owner admin billing member``.
        email_verified: As it was when the token was issued; ``get_verified_caller`` looks again where it is False.
        timezone: The organization's, an IANA name.
    """

    user_id: str
    organization_id: str
    platform_role: str
    organization_role: str
    email_verified: bool
    timezone: str
    session_id: str

    @property
    def is_administrator(self) -> bool:
        return self.platform_role == "ADMINISTRATOR"


@dataclass(frozen=True, slots=True, kw_only=True)
class _VerifiedToken:
    """A token whose signature and claims were verified. ``valid_until`` is a Unix timestamp."""

    caller: Caller
    valid_until: float


class AccessTokens:
    """Issues with the first of ``keys`` (pairs of id and secret) and accepts every one of them, by id.

    The algorithm is ours, whatever a token's header says.
    """

    def __init__(
        self, keys: Sequence[tuple[str, bytes]], *, lifetime: timedelta, clock: Callable[[], float] = time.time
    ) -> None:
        self._current, self._secret = keys[0]
        self._keys = dict(keys)
        self._clock = clock
        self._verified: dict[bytes, _VerifiedToken] = {}
        self.lifetime = lifetime

    def issue(self, caller: Caller, at: datetime) -> str:
        claims = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "iat": int(at.timestamp()),
            "exp": int((at + self.lifetime).timestamp()),
            "jti": generate_id("jti"),
            "sub": caller.user_id,
            "sid": caller.session_id,
            "org": caller.organization_id,
            "role": caller.platform_role,
            "member": caller.organization_role,
            "verified": caller.email_verified,
            "tz": caller.timezone,
        }
        return jwt.encode(claims, self._secret, algorithm=ALGORITHM, headers={"kid": self._current})

    def verify(self, token: str) -> Caller:
        """Return the caller that the token names. The signature of each token is verified once until it expires.

        Raises:
            InvalidToken: without a reason, so that no response can reveal one.
        """
        if len(token) > MAX_TOKEN_LENGTH:
            raise InvalidToken
        digest = hashlib.blake2b(token.encode(), digest_size=32).digest()
        verified = self._verified.get(digest)
        if verified is not None and self._clock() < verified.valid_until:
            return verified.caller
        verified = self._verify(token)
        if len(self._verified) >= MAX_VERIFIED_TOKENS:
            self._verified.clear()
        self._verified[digest] = verified
        return verified.caller

    def _verify(self, token: str) -> _VerifiedToken:
        try:
            key = self._keys[jwt.get_unverified_header(token)["kid"]]
            claims: dict[str, Any] = jwt.decode(
                token,
                key,
                algorithms=[ALGORITHM],
                issuer=ISSUER,
                audience=AUDIENCE,
                leeway=LEEWAY_SECONDS,
                options={"require": list(REQUIRED_CLAIMS), "strict_aud": True},
            )
            caller = Caller(
                user_id=_require_text(claims["sub"]),
                organization_id=_require_text(claims["org"]),
                platform_role=_require_text(claims["role"]),
                organization_role=_require_text(claims.get("member", "member")),
                email_verified=claims.get("verified") is True,
                timezone=_require_text(claims.get("tz", "UTC")),
                session_id=_require_text(claims["sid"]),
            )
            return _VerifiedToken(caller=caller, valid_until=float(claims["exp"]) + LEEWAY_SECONDS)
        except (jwt.PyJWTError, KeyError, TypeError, ValueError) as error:
            raise InvalidToken from error


def _require_text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value
