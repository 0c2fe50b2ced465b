"""How the simulations and the control plane are called: the one place that knows their command lines."""

from __future__ import annotations

import sys
from pathlib import Path

from deploy.local.ports import LOOPBACK


def mailbox_command(*, http_port: int, smtp_port: int, state: Path) -> list[str]:
    return [
        sys.executable, "-m", "deploy.local.mailbox",
        "--http-port", str(http_port), "--smtp-port", str(smtp_port), "--state", str(state),
    ]  # fmt: skip


def stripe_command(
    *, port: int, state: Path, webhook_url: str | None, webhook_secret: str, api_key: str, localstripe: bool = True
) -> list[str]:
    """Without `webhook_url` events are kept and nobody is told; `localstripe` False leaves out the process behind."""
    command = [
        sys.executable, "-m", "deploy.local.stripe",
        "--port", str(port), "--state", str(state), "--webhook-secret", webhook_secret, "--api-key", api_key,
    ]  # fmt: skip
    command += [] if webhook_url is None else ["--webhook-url", webhook_url]
    return command + ([] if localstripe else ["--no-localstripe"])


def control_plane_command(*, port: int, state: Path, kubeconfig: Path) -> list[str]:
    return [
        sys.executable, "-m", "deploy.controlplane",
        "--port", str(port), "--state", str(state), "--kubeconfig", str(kubeconfig),
    ]  # fmt: skip


def cluster_command(*, port: int, state: Path | None, kubeconfig: Path, speed: float = 1.0) -> list[str]:
    """`state` None forgets everything at the end; `speed` shortens the pretended waits."""
    command = [
        sys.executable, "-m", "deploy.local.cluster",
        "--host", LOOPBACK, "--port", str(port), "--kubeconfig", str(kubeconfig), "--speed", str(speed),
    ]  # fmt: skip
    return command + ([] if state is None else ["--state", str(state)])
