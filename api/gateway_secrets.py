"""Rules for the keys and webhook secrets of payment gateways: where customers are real, none of a test mode."""

from __future__ import annotations

import re

from pydantic import ValidationInfo

from api.environment import is_deployed, is_production
from api.secret_strength import check_not_guessable

MIN_WEBHOOK_SECRET_LENGTH = 16
"""Shorter ones are examples: gateways generate longer ones. With a known secret, anyone can forge a payment."""

STRIPE_SECRET_KEYS = ("sk_live_", "rk_live_")
STRIPE_TEST_KEYS = ("sk_test_", "rk_test_")
STRIPE_KEY_END = re.compile(r"[A-Za-z0-9_-]{16,}")
"""Stripe's keys have 24 characters behind the prefix, or some hundred."""


def check_stripe_key(key: str, info: ValidationInfo) -> None:
    """Require a whole secret or restricted key, in production one of the live mode. The error does not quote it."""
    if not is_deployed(info):
        return
    if not key.startswith(STRIPE_SECRET_KEYS + STRIPE_TEST_KEYS):
        raise ValueError("is not a secret key of Stripe: those begin with sk_live_ or rk_live_")
    if is_production(info) and key.startswith(STRIPE_TEST_KEYS):
        raise ValueError(
            "is a key of Stripe's test mode, in which cards are accepted and no money is collected."
            " Set one that begins with sk_live_ or rk_live_"
        )
    random_part = key[len(STRIPE_SECRET_KEYS[0]) :]
    if not STRIPE_KEY_END.fullmatch(random_part):
        raise ValueError(
            "is not a whole secret key of Stripe: letters and digits follow its prefix. Set the one that Stripe shows"
        )
    check_not_guessable(random_part, info, remedy="Set the one that Stripe shows")


def check_stripe_webhook_secret(secret: str, info: ValidationInfo) -> None:
    """Require a signing secret of an endpoint. Those of the live and the test mode look alike."""
    if is_deployed(info) and not (secret.startswith("whsec_") and len(secret) >= MIN_WEBHOOK_SECRET_LENGTH):
        raise ValueError("is not a signing secret of Stripe: webhooks could be forged. Set the endpoint's, whsec_…")
    check_not_guessable(secret.removeprefix("whsec_"), info, remedy="Set the one that Stripe shows")


def check_midtrans_server_key(key: str, info: ValidationInfo) -> None:
    """Refuse a server key of Midtrans' sandbox in production: its payments are not real."""
    if is_production(info) and key.startswith("SB-"):
        raise ValueError(
            "is a key of Midtrans' sandbox, whose payments would be credited. Set the production environment's"
        )
    _require_long_secret(key.removeprefix("SB-").removeprefix("Mid-server-"), info)


def check_razorpay_webhook_secret(secret: str, info: ValidationInfo) -> None:
    """Require a secret that cannot be guessed: the operator who creates the webhook chooses it."""
    _require_long_secret(secret, info)


def _require_long_secret(secret: str, info: ValidationInfo) -> None:
    if is_deployed(info) and len(secret) < MIN_WEBHOOK_SECRET_LENGTH:
        raise ValueError(f"is too short: webhooks could be forged. Set at least {MIN_WEBHOOK_SECRET_LENGTH} characters")
    check_not_guessable(secret, info)
