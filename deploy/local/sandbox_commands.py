"""How the simulations and the control plane are called: the one place that knows their command lines."""

from __future__ import annotations

import sys
from pathlib import Path

from deploy.ports import LOOPBACK


def mailbox_command(*, http_port: int, smtp_port: int, state: Path) -> list[str]:
    return [
        sys.executable, "-m", "deploy.local.mailbox",
        "--http-port", str(http_port), "--smtp-port", str(smtp_port), "--state", str(state),
    ]  # fmt: skip


def stripe_command(*, port: int, state: Path, webhook_url: str | None, webhook_secret: str, api_key: str) -> list[str]:
    """Without `webhook_url` events are stored and not sent."""
    command = [
        sys.executable, "-m", "deploy.local.stripe",
        "--port", str(port), "--state", str(state), "--webhook-secret", webhook_secret, "--api-key", api_key,
    ]  # fmt: skip
    command += [] if webhook_url is None else ["--webhook-url", webhook_url]
    return command


def control_plane_command(*, port: int, state: Path, kubeconfig: Path) -> list[str]:
    return [
        sys.executable, "-m", "deploy.controlplane",
        "--port", str(port), "--state", str(state), "--kubeconfig", str(kubeconfig),
    ]  # fmt: skip


def cluster_proxy_command(*, port: int, upstream: Path, state: Path, kubeconfig: Path, kwok: bool = False) -> list[str]:
    """The proxy before the cluster of the kubeconfig `upstream`; clients use `kubeconfig`, which it writes.

    Args:
        kwok: The cluster's pods are run by kwok, not by the simulated cluster.
    """
    command = [
        sys.executable, "-m", "deploy.local.cluster_proxy",
        "--port", str(port), "--upstream", str(upstream), "--state", str(state), "--kubeconfig", str(kubeconfig),
    ]  # fmt: skip
    return command + (["--kwok"] if kwok else [])


def cluster_command(*, port: int, state: Path | None, kubeconfig: Path, time_scale: float = 1.0) -> list[str]:
    """`state` None forgets everything at the end; `speed` divides the simulated delays."""
    command = [
        sys.executable, "-m", "deploy.local.cluster",
        "--host", LOOPBACK, "--port", str(port), "--kubeconfig", str(kubeconfig), "--speed", str(time_scale),
    ]  # fmt: skip
    return command + ([] if state is None else ["--state", str(state)])
