"""Simulated cluster, card gateway and mailbox for tests: each is a process, one set per xdist worker."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from deploy.local.process import ChildProcess
from deploy.local.sandbox_commands import cluster_command, cluster_proxy_command, mailbox_command, stripe_command
from deploy.ports import LOOPBACK, free_ports
from tests.support.wait import wait_until_sync

STRIPE_KEY = "sk_test_sandbox"
WEBHOOK_SECRET = "whsec_sandbox"


@dataclass(frozen=True, slots=True)
class MailboxEndpoint:
    url: str
    smtp_host: str
    smtp_port: int

    def messages(self, to: str | None = None) -> list[dict[str, str]]:
        messages: list[dict[str, str]] = httpx.get(f"{self.url}/messages", params={"to": to} if to else None).json()
        return messages


@dataclass(frozen=True, slots=True)
class ClusterEndpoint:
    url: str
    kubeconfig: Path


@dataclass(frozen=True, slots=True)
class StripeEndpoint:
    """The simulated card gateway. `deliveries` holds its webhooks as (headers, body) in order of arrival."""

    url: str
    api_key: str
    webhook_secret: str
    deliveries: list[tuple[dict[str, str], bytes]] = field(default_factory=list)


def _start_and_wait(process: ChildProcess, url: str) -> None:
    def is_serving() -> bool:
        assert process.is_alive, process.log_tail()
        try:
            return httpx.get(url, timeout=2).status_code < 500
        except httpx.TransportError:
            return False

    process.start()
    try:
        wait_until_sync(is_serving, description=f"{process.name} is ready")
    except BaseException:
        process.kill()
        raise


@pytest.fixture(scope="session")
def mailbox_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MailboxEndpoint]:
    state = tmp_path_factory.mktemp("mailbox")
    http_port, smtp_port = free_ports(2)
    command = mailbox_command(http_port=http_port, smtp_port=smtp_port, state=state)
    process = ChildProcess("mailbox", command, log=state / "log")
    url = f"http://{LOOPBACK}:{http_port}"
    _start_and_wait(process, f"{url}/messages")
    yield MailboxEndpoint(url, LOOPBACK, smtp_port)
    process.stop()


@pytest.fixture
def mailbox(mailbox_server: MailboxEndpoint) -> MailboxEndpoint:
    """An empty mailbox."""
    httpx.delete(f"{mailbox_server.url}/messages").raise_for_status()
    return mailbox_server


@pytest.fixture(scope="session")
def cluster_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterEndpoint]:
    state = tmp_path_factory.mktemp("cluster")
    (port,) = free_ports(1)
    kubeconfig = state / "kubeconfig"
    process = ChildProcess("cluster", cluster_command(port=port, state=state, kubeconfig=kubeconfig), log=state / "log")
    _start_and_wait(process, f"http://{LOOPBACK}:{port}/version")
    try:
        with proxied(state / "proxy", kubeconfig) as cluster:
            yield cluster
    finally:
        process.stop()


@contextmanager
def proxied(state: Path, upstream: Path, *, kwok: bool = False) -> Iterator[ClusterEndpoint]:
    """Start the fault-injecting proxy in front of the cluster of the kubeconfig `upstream`."""
    state.mkdir()
    (port,) = free_ports(1)
    kubeconfig, url = state / "kubeconfig", f"http://{LOOPBACK}:{port}"
    command = cluster_proxy_command(port=port, upstream=upstream, state=state, kubeconfig=kubeconfig, kwok=kwok)
    proxy = ChildProcess("cluster_proxy", command, log=state / "log")
    _start_and_wait(proxy, f"{url}/sandbox/healthz")
    try:
        yield ClusterEndpoint(url, kubeconfig)
    finally:
        proxy.stop()


@pytest.fixture
def cluster(cluster_server: ClusterEndpoint) -> Iterator[ClusterEndpoint]:
    """The simulated cluster without faults. It is shared: each test uses its own namespaces."""
    httpx.delete(f"{cluster_server.url}/sandbox/faults").raise_for_status()
    yield cluster_server
    httpx.delete(f"{cluster_server.url}/sandbox/faults").raise_for_status()


class _WebhookServer(http.server.ThreadingHTTPServer):
    daemon_threads = True
    deliveries: list[tuple[dict[str, str], bytes]]


class _WebhookHandler(http.server.BaseHTTPRequestHandler):
    server: _WebhookServer

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        self.server.deliveries.append((dict(self.headers.items()), body))
        self.send_response(204)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""


@pytest.fixture(scope="session")
def stripe_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StripeEndpoint]:
    state = tmp_path_factory.mktemp("stripe")
    (port,) = free_ports(1)
    receiver = _WebhookServer((LOOPBACK, 0), _WebhookHandler)
    receiver.deliveries = []
    thread = threading.Thread(target=receiver.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    command = stripe_command(
        port=port,
        state=state,
        webhook_url=f"http://{LOOPBACK}:{receiver.server_port}/webhook",
        webhook_secret=WEBHOOK_SECRET,
        api_key=STRIPE_KEY,
    )
    process = ChildProcess("stripe", command, log=state / "log")
    url = f"http://{LOOPBACK}:{port}"
    _start_and_wait(process, f"{url}/sandbox/charges")
    yield StripeEndpoint(url, STRIPE_KEY, WEBHOOK_SECRET, receiver.deliveries)
    process.stop()
    receiver.shutdown()
    thread.join(5)
    receiver.server_close()


@pytest.fixture
def stripe(stripe_server: StripeEndpoint) -> Iterator[StripeEndpoint]:
    """The card gateway without faults and deliveries. Charges of other tests remain: use separate customers."""
    httpx.delete(f"{stripe_server.url}/sandbox/faults").raise_for_status()
    stripe_server.deliveries.clear()
    yield stripe_server
    httpx.delete(f"{stripe_server.url}/sandbox/faults").raise_for_status()
