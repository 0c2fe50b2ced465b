"""Production refuses a secret that can be guessed, and accepts every random one."""

from __future__ import annotations

import secrets
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Callable
from string import ascii_letters, digits
from uuid import uuid4

import pytest

from api.environment import check_environment
from api.settings import ApiSettings
from tests.local.test_production_settings import COMPLETE, KEY
from tests.local.test_setting_rules import NOT_RANDOM, RANDOM, fault_of
from worker.settings import WorkerSettings

RANDOM_COUNT = 1_000


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


@pytest.mark.parametrize(
    ("secret", "fault"),
    [
        (bytes(range(32)).hex(), "is a sequence"),
        (bytes(range(64, 32, -1)).hex().upper(), "is a sequence"),
        (bytes(range(0, 256, 17)).hex(), "is a sequence"),
        (b64encode(bytes(range(0, 256, 17)) * 2).decode(), "is a sequence"),
        (b64encode(b"0123456789abcdef" * 2).decode(), "is a sequence"),
        (urlsafe_b64encode(bytes(range(255, 223, -1))).decode().rstrip("="), "is a sequence"),
        (b64encode(b"correct-horse" * 3).decode(), "repeats a few characters"),
        ((b"abc" * 11).hex(), "repeats a few characters"),
        (b64encode(b"changeme-changeme-please").decode(), "contains a placeholder"),
        (b"please change me, before going live".hex(), "contains a placeholder"),
        ("qwertyuiopasdfghjklzxcvbnm1234567890", "is a sequence"),
        ("0987654321POIUYTREWQlkjhgfdsaMNBVCXZ", "is a sequence"),
        ("your-256-bit-jwt-key-goes-here-please", "contains a placeholder"),
        ("the-webhook-of-berth-in-production-01", "contains a placeholder"),
    ],
)
def test_an_encoding_makes_a_secret_no_harder_to_guess(secret: str, fault: str) -> None:
    for name, value in (
        ("BERTH_JWT_SECRET", f"2:{RANDOM}{RANDOM[::-1]},1:{secret}"),
        ("BERTH_RAZORPAY_WEBHOOK_SECRET", secret),
        ("BERTH_STRIPE_WEBHOOK_SECRET", f"whsec_{secret}"),
        ("BERTH_MIDTRANS_SERVER_KEY", f"Mid-server-{secret}"),
    ):
        assert fault_of(ApiSettings, **{name: value}).startswith(f"{name} {fault}")


@pytest.mark.parametrize(
    "key",
    [
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQ=",
        "qwertyuiopasdfghjklzxcvbnmQWERTYUIOPASDFGHI=",
        b64encode(bytes(range(0, 256, 17)) * 2).decode(),
        b64encode(b"changeme-changeme-please-change!").decode(),
    ],
)
def test_an_encryption_key_is_judged_as_text_and_as_bytes(key: str) -> None:
    for settings in (ApiSettings, WorkerSettings):
        fault = fault_of(settings, BERTH_ENCRYPTION_KEY=f"2:{KEY},1:{key}")
        assert fault.startswith("BERTH_ENCRYPTION_KEY ")
        assert NOT_RANDOM in fault


RANDOM_SECRETS: dict[str, Callable[[], str]] = {
    "hexadecimal": lambda: secrets.token_hex(32),
    "short hexadecimal": lambda: secrets.token_hex(16),
    "Base64": lambda: b64encode(secrets.token_bytes(32)).decode(),
    "Base64 for URLs": lambda: secrets.token_urlsafe(32),
    "letters and digits": lambda: "".join(secrets.choice(ascii_letters + digits) for _ in range(32)),
    "digits": lambda: "".join(secrets.choice(digits) for _ in range(40)),
    "UUIDs": lambda: str(uuid4()),
}


@pytest.mark.parametrize("make", RANDOM_SECRETS.values(), ids=RANDOM_SECRETS)
def test_every_random_secret_is_accepted(make: Callable[[], str]) -> None:
    ring = ",".join(f"{number}:{make()}" for number in range(RANDOM_COUNT))
    assert check_environment(ApiSettings, COMPLETE["api"] | {"BERTH_JWT_SECRET": ring}) == []


def test_every_random_encryption_key_is_accepted() -> None:
    ring = ",".join(f"{number}:{b64encode(secrets.token_bytes(32)).decode()}" for number in range(RANDOM_COUNT))
    assert check_environment(WorkerSettings, COMPLETE["worker"] | {"BERTH_ENCRYPTION_KEY": ring}) == []


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("BERTH_RAZORPAY_WEBHOOK_SECRET", lambda: secrets.token_hex(8)),
        ("BERTH_RAZORPAY_WEBHOOK_SECRET", lambda: secrets.token_urlsafe(12)),
        ("BERTH_STRIPE_WEBHOOK_SECRET", lambda: "whsec_" + secrets.token_urlsafe(24)),
        ("BERTH_MIDTRANS_SERVER_KEY", lambda: "Mid-server-" + secrets.token_urlsafe(18)),
    ],
)
def test_every_random_secret_of_a_webhook_is_accepted(name: str, make: Callable[[], str]) -> None:
    for _ in range(RANDOM_COUNT):
        assert check_environment(ApiSettings, COMPLETE["api"] | {name: make()}) == []
