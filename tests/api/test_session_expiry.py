"""Refresh tokens and access tokens at the instant at which they expire."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from api.login_sessions import caller_for, may_rotate
from api.tokens import LEEWAY_SECONDS, AccessTokens, InvalidToken
from db.queries.identity import RefreshTokenRecord
from tests.support.api import JWT_SECRET

AT = datetime(2027, 1, 31, tzinfo=UTC)
INSTANT = timedelta(microseconds=1)
DAY = timedelta(days=1)
LIFETIME = timedelta(minutes=15)

TOKEN = RefreshTokenRecord(
    session_id="ses_1",
    user_id="usr_1",
    organization_id="org_1",
    role="USER",
    membership="owner",
    timezone="UTC",
    email_verified_at=None,
    disabled_at=None,
    revoked_at=None,
    session_expires_at=AT + DAY,
    expires_at=AT + DAY,
    used_at=None,
)


@pytest.mark.parametrize(
    ("token", "allowed"),
    [
        (TOKEN, True),
        (replace(TOKEN, expires_at=AT + INSTANT), True),
        (replace(TOKEN, expires_at=AT), False),
        (replace(TOKEN, expires_at=AT - INSTANT), False),
        (replace(TOKEN, session_expires_at=AT + INSTANT), True),
        (replace(TOKEN, session_expires_at=AT), False),
        # Its reuse ends the session, as long as there is one.
        (replace(TOKEN, used_at=AT - DAY), True),
        (replace(TOKEN, used_at=AT - DAY, expires_at=AT - DAY), True),
        (replace(TOKEN, used_at=AT - DAY, session_expires_at=AT), False),
        (replace(TOKEN, revoked_at=AT - DAY), False),
        (replace(TOKEN, revoked_at=AT - DAY, used_at=AT - DAY), False),
        (replace(TOKEN, disabled_at=AT - DAY), False),
    ],
)
def test_a_refresh_token_is_refused_from_the_instant_at_which_it_or_its_session_expires(
    token: RefreshTokenRecord, allowed: bool
) -> None:
    assert may_rotate(token, AT) is allowed


def test_a_verified_access_token_is_remembered_until_it_expires_and_no_longer() -> None:
    issued_at = datetime.now(UTC)
    instant = issued_at.timestamp()
    tokens = AccessTokens([("1", JWT_SECRET.encode())], lifetime=LIFETIME, clock=lambda: instant)
    caller = replace(caller_for("usr_1", "org_1"), session_id="ses_1")
    token = tokens.issue(caller, issued_at)
    assert tokens.verify(token) == caller
    expires_at = int((issued_at + LIFETIME).timestamp())
    # The key is withdrawn: only what was verified before is accepted.
    tokens._keys.clear()
    instant = expires_at + LEEWAY_SECONDS - 0.001
    assert tokens.verify(token) == caller
    instant = expires_at + LEEWAY_SECONDS
    with pytest.raises(InvalidToken):
        tokens.verify(token)
    with pytest.raises(InvalidToken):
        AccessTokens([("1", JWT_SECRET.encode())], lifetime=LIFETIME).verify(
            tokens.issue(caller, issued_at - LIFETIME - timedelta(seconds=LEEWAY_SECONDS + 1))
        )
