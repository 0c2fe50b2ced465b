"""Production refuses a secret that can be guessed, and accepts every random one."""

from __future__ import annotations

from base64 import b64encode

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from api.environment import check_environment
from api.settings import ApiSettings
from tests.local.test_production_settings import COMPLETE
from tests.local.test_setting_rules import NOT_RANDOM, RANDOM, fault_of
from worker.settings import WorkerSettings


@pytest.mark.parametrize(
    ("secret", "fault"),
    [
        ("abcde" * 7, "repeats a few characters"),
        # Cut off in the last repetition.
        ("correct-horse-1" * 3 + "corr", "repeats a few characters"),
        ("changeme" * 4, "repeats a few characters"),
        ("0123456789abcdef" * 2, "is a sequence of neighbouring characters"),
        ("ABCDEFGHIJKLMNOPQRSTUVWXYZ123456", "is a sequence of neighbouring characters"),
        ("9876543210zyxwvutsrqponmlkjihgfed", "is a sequence of neighbouring characters"),
        ("changeme-" + RANDOM * 2, "contains a placeholder"),
        ("Please-Change-Me-Before-You-Go-Live", "contains a placeholder"),
        ("replace_me_" + RANDOM * 2, "contains a placeholder"),
        ("MY.SECRET." + RANDOM * 2, "contains a placeholder"),
        (RANDOM * 2 + "Password", "contains a placeholder"),
        ("example-key-of-the-documentation-01", "contains a placeholder"),
        ("please change me before it goes live", "contains a placeholder"),
    ],
)
def test_production_refuses_a_secret_that_can_be_guessed(secret: str, fault: str) -> None:
    remedy = f"{NOT_RANDOM}a random one, such as `openssl rand -base64 32` prints."
    for name in ("BERTH_JWT_SECRET", "BERTH_RAZORPAY_WEBHOOK_SECRET"):
        assert fault_of(ApiSettings, **{name: secret}) == f"{name} {fault}, {remedy}"
    encoded = b64encode(secret.encode()[:32]).decode()
    for settings in (ApiSettings, WorkerSettings):
        if not fault.startswith("contains"):
            assert fault_of(settings, BERTH_ENCRYPTION_KEY=encoded) == f"BERTH_ENCRYPTION_KEY {fault}, {remedy}"
    stripe = fault_of(ApiSettings, BERTH_STRIPE_WEBHOOK_SECRET=f"whsec_{secret}")
    assert stripe == f"BERTH_STRIPE_WEBHOOK_SECRET {fault}, {NOT_RANDOM}the one that Stripe shows."
    sandbox = COMPLETE["api"] | {"BERTH_ENVIRONMENT": "sandbox", "BERTH_JWT_SECRET": secret}
    assert check_environment(ApiSettings, sandbox) == []


def test_the_prefix_of_a_key_of_midtrans_makes_it_no_harder_to_guess() -> None:
    for prefix in ("Mid-server-", ""):
        fault = fault_of(ApiSettings, BERTH_MIDTRANS_SERVER_KEY=prefix + "x" * 24)
        assert fault.startswith("BERTH_MIDTRANS_SERVER_KEY repeats a few characters")
    fault = fault_of(ApiSettings, BERTH_MIDTRANS_SERVER_KEY="Mid-server-9f3c07")
    assert fault.startswith("BERTH_MIDTRANS_SERVER_KEY is too short")


@given(st.binary(min_size=32, max_size=32))
def test_a_random_secret_is_accepted(random_bytes: bytes) -> None:
    assume(len(set(random_bytes)) > 8)
    secret = b64encode(random_bytes).decode()
    assert check_environment(ApiSettings, COMPLETE["api"] | {"BERTH_JWT_SECRET": secret}) == []
