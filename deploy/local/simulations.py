"""How the simulations are called: the one place that knows their command lines."""

from __future__ import annotations

import sys
from pathlib import Path

from deploy.local.ports import LOOPBACK


def mailbox_command(*, http_port: int, smtp_port: int, state: Path) -> list[str]:
    return [
        sys.executable, "-m", "deploy.local.mailbox",
        "--http-port", str(http_port), "--smtp-port", str(smtp_port), "--state", str(state),
    ]  # fmt: skip


def stripe_command(*, port: int, state: Path, webhook_url: str, webhook_secret: str, api_key: str) -> list[str]:
    return [
        sys.executable, "-m", "deploy.local.stripe",
        "--port", str(port), "--state", str(state),
        "--webhook-url", webhook_url, "--webhook-secret", webhook_secret, "--api-key", api_key,
    ]  # fmt: skip


def cluster_command(*, port: int, state: Path, kubeconfig: Path) -> list[str]:
    return [
        sys.executable, "-m", "deploy.local.cluster",
        "--host", LOOPBACK, "--port", str(port), "--state", str(state), "--kubeconfig", str(kubeconfig),
    ]  # fmt: skip
