"""The API and the worker refuse to start with missing or unsafe settings and name every fault on stderr."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from deploy.ports import free_ports
from tests.support.wait import wait_until_sync

ROOT = Path(__file__).resolve().parents[2]
KEY = "Wt1nqHrgIMDG8sKycvo0fD8f4BTvuDA4IvtLYkBgM2A="
KUBECONFIG = """
apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: "http://127.0.0.1:9"}}]
contexts: [{name: c, context: {cluster: c, user: u}}]
users: [{name: u, user: {}}]
current-context: c
"""
SHARED = {
    "BERTH_ENVIRONMENT": "production",
    "BERTH_ENCRYPTION_KEY": KEY,
    "BERTH_PUBLIC_URL": "https://berth.example.com",
    "BERTH_BASE_DOMAIN": "apps.example.com",
    "BERTH_TEMPORAL_ADDRESS": "127.0.0.1:9",
}
COMPLETE = {
    "api": SHARED
    | {
        "BERTH_API_DATABASE_URL": "postgresql+psycopg://berth_api@127.0.0.1:9/berth",
        "BERTH_JWT_SECRET": "7Kq2vXw0PfGz9RbL4mJtYc8NdHs5EaUo",
        "BERTH_STRIPE_WEBHOOK_SECRET": "whsec_7Kq2vXw0PfGz9RbL",
        "BERTH_RATE_LIMIT_STORAGE": "redis://127.0.0.1:9",
        "BERTH_TRUSTED_PROXIES": "10.0.0.0/8",
        "BERTH_METRICS_ALLOWED_NETWORKS": "127.0.0.0/8, 10.0.0.0/8",
    },
    "worker": SHARED
    | {
        "BERTH_WORKER_DATABASE_URL": "postgresql+psycopg://berth_worker@127.0.0.1:9/berth",
        "BERTH_STRIPE_API_KEY": "sk_live_7Kq2vXw0PfGz9RbL4mJtYc8N",
        "BERTH_STRIPE_URL": "https://stripe.invalid",
        "BERTH_SMTP_HOST": "127.0.0.1",
        "BERTH_SMTP_SECURITY": "starttls",
        "BERTH_MAIL_FROM": "Berth <billing@berth.company.com>",
    },
}
FAULTS = {
    "api": [
        "BERTH_PUBLIC_URL is http://127.0.0.1:8000, which only this machine reaches",
        "BERTH_BASE_DOMAIN is apps.berth.localhost, which only this machine reaches",
        "BERTH_API_DATABASE_URL is not set",
        "BERTH_TEMPORAL_ADDRESS is not set",
        "BERTH_JWT_SECRET is not set",
        "BERTH_ENCRYPTION_KEY is not set",
        "BERTH_STRIPE_WEBHOOK_SECRET is not set",
        "BERTH_RATE_LIMIT_STORAGE is memory://",
        "BERTH_TRUSTED_PROXIES is not set",
        "BERTH_METRICS_ALLOWED_NETWORKS is not set",
    ],
    "worker": [
        "BERTH_WORKER_DATABASE_URL is not set",
        "BERTH_TEMPORAL_ADDRESS is not set",
        "BERTH_ENCRYPTION_KEY is not set",
        "BERTH_STRIPE_API_KEY is not set",
        "BERTH_SMTP_HOST is not set: no mail could be sent",
        "BERTH_SMTP_SECURITY is none",
        "BERTH_MAIL_FROM is Berth <no-reply@berth.localhost>, a placeholder",
        "BERTH_BASE_DOMAIN is apps.berth.localhost, which only this machine reaches",
        "BERTH_PUBLIC_URL is http://127.0.0.1:8000, which only this machine reaches",
    ],
}
PROGRAMS = {"api": "API", "worker": "worker"}


def clean_environment(**settings: str) -> dict[str, str]:
    """Return this process's environment without the product's settings, and with ``settings``."""
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith(("BERTH_", "RATE_LIMIT_STORAGE"))
    }
    return inherited | settings


def refused_start(module: str, **settings: str) -> list[str]:
    """Start the process, expect that it refuses, and return the lines of its faults."""
    done = subprocess.run(
        [sys.executable, "-m", module], cwd=ROOT, env=clean_environment(**settings),
        capture_output=True, text=True, timeout=180, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert done.stdout == ""
    summary, *faults = done.stderr.splitlines()
    assert summary.startswith(f"The {PROGRAMS[module]} does not start: settings are missing or unsafe")
    return faults


@pytest.mark.parametrize("module", ["api", "worker"])
@pytest.mark.parametrize("environment", ["production", "staging", ""])
def test_nothing_set_names_every_missing_and_unsafe_setting(module: str, environment: str) -> None:
    faults = refused_start(module, BERTH_ENVIRONMENT=environment)
    assert len(faults) == len(FAULTS[module]), faults
    for fault, expected in zip(faults, FAULTS[module], strict=True):
        assert fault.startswith(expected), fault
        assert fault.endswith("."), fault


@pytest.mark.parametrize(
    ("module", "name", "value", "expected"),
    [
        ("api", "BERTH_RATE_LIMIT", "off", "BERTH_RATE_LIMIT is off"),
        ("api", "BERTH_RATE_LIMIT_STORAGE", "async+memory://", "BERTH_RATE_LIMIT_STORAGE is memory://"),
        ("api", "BERTH_RATE_LIMIT_STORAGE", "postgres://127.0.0.1", "BERTH_RATE_LIMIT_STORAGE begins with none of"),
        ("api", "BERTH_PUBLIC_URL", "https://[::1]:8000", "BERTH_PUBLIC_URL is https://[::1]:8000, which only"),
        ("api", "BERTH_PUBLIC_URL", "http://berth.example.com", "BERTH_PUBLIC_URL is http://berth.example.com: pass"),
        ("worker", "BERTH_PUBLIC_URL", "https://localhost", "BERTH_PUBLIC_URL is https://localhost, which only"),
        ("api", "BERTH_METRICS_ALLOWED_NETWORKS", "10.0.0.0/8, home", "BERTH_METRICS_ALLOWED_NETWORKS has an entry"),
        (
            "api",
            "BERTH_METRICS_ALLOWED_NETWORKS",
            "0.0.0.0/1, 128.0.0.0/1",
            "BERTH_METRICS_ALLOWED_NETWORKS names nearly",
        ),
        ("api", "BERTH_METRICS_ALLOWED_NETWORKS", "::/0", "BERTH_METRICS_ALLOWED_NETWORKS names nearly"),
        ("api", "BERTH_JWT_SECRET", "1:short", "BERTH_JWT_SECRET is too short"),
        ("api", "BERTH_JWT_SECRET", "2:,1:7Kq2vXw0PfGz9RbL4mJtYc8NdHs5EaUo", "BERTH_JWT_SECRET is too short"),
        ("api", "BERTH_ENCRYPTION_KEY", "1:c2hvcnQ=", "BERTH_ENCRYPTION_KEY is malformed"),
        ("worker", "BERTH_ENCRYPTION_KEY", "not base64", "BERTH_ENCRYPTION_KEY is malformed"),
        ("api", "BERTH_PORT", "abc", "BERTH_PORT must be a valid integer."),
        ("api", "BERTH_RATE_LIMIT", "maybe", "BERTH_RATE_LIMIT must be 'on' or 'off'."),
        ("worker", "BERTH_SUPPORT_EMAIL", "help@example.com", "BERTH_SUPPORT_EMAIL is help@example.com, a placeholder"),
        ("worker", "BERTH_STRIPE_API_KEY", "sk_test_0123456789", "BERTH_STRIPE_API_KEY is a key of Stripe's test mode"),
        ("worker", "BERTH_STRIPE_URL", "http://stripe.invalid", "BERTH_STRIPE_URL is http://stripe.invalid: keys and"),
        ("api", "BERTH_STRIPE_WEBHOOK_SECRET", "whsec_sandbox", "BERTH_STRIPE_WEBHOOK_SECRET is not a signing secret"),
        ("api", "BERTH_MIDTRANS_SERVER_KEY", "SB-Mid-server-0123456789", "BERTH_MIDTRANS_SERVER_KEY is a key of Mid"),
        ("api", "BERTH_JWT_SECRET_FILE", "/no/such/file", "BERTH_JWT_SECRET_FILE names a file that cannot be read"),
    ],
)
def test_one_unsafe_setting_is_the_only_fault(module: str, name: str, value: str, expected: str) -> None:
    settings = {key: complete for key, complete in COMPLETE[module].items() if f"{key}_FILE" != name}
    (fault,) = refused_start(module, **(settings | {name: value}))
    assert fault.startswith(expected)
    assert name.endswith(("URL", "STORAGE", "NETWORKS", "LIMIT", "EMAIL")) or value not in fault


@pytest.mark.parametrize(
    ("module", "port_setting", "path"), [("api", "BERTH_PORT", "/health"), ("worker", "BERTH_METRICS_PORT", "/metrics")]
)
def test_production_starts_with_complete_settings(module: str, port_setting: str, path: str, tmp_path: Path) -> None:
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(KUBECONFIG)
    (port,) = free_ports(1)
    settings = COMPLETE[module] | {port_setting: str(port), "BERTH_KUBECONFIG": str(kubeconfig)}
    output = tmp_path / "output"
    with output.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", module], cwd=ROOT, env=clean_environment(**settings), stdout=out, stderr=out
        )
    try:

        def serves() -> bool:
            assert process.poll() is None, output.read_text()
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=1) as response:
                    return bool(response.status == 200)
            except OSError:
                return False

        wait_until_sync(serves, description=f"{module} to serve", timeout=60)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)
