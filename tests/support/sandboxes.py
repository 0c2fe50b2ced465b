"""The simulated world for tests: cluster, card gateway and mailbox, each a process, one set per xdist worker."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from deploy.local.ports import LOOPBACK, free_ports
from deploy.local.process import Process
from deploy.local.simulations import cluster_command, mailbox_command, stripe_command
from tests.support.wait import eventually_sync

STRIPE_KEY = "sk_test_sandbox"
WEBHOOK_SECRET = "whsec_sandbox"


@dataclass(frozen=True, slots=True)
class Mailbox:
    url: str
    smtp_host: str
    smtp_port: int

    def messages(self, to: str | None = None) -> list[dict[str, str]]:
        found: list[dict[str, str]] = httpx.get(f"{self.url}/messages", params={"to": to} if to else None).json()
        return found


@dataclass(frozen=True, slots=True)
class Cluster:
    url: str
    kubeconfig: Path


@dataclass(frozen=True, slots=True)
class Stripe:
    """`deliveries` is what the gateway sent to its webhook address: (headers, body) in order of arrival."""

    url: str
    api_key: str
    webhook_secret: str
    deliveries: list[tuple[dict[str, str], bytes]] = field(default_factory=list)


def _serve(process: Process, url: str) -> None:
    def answers() -> bool:
        assert process.alive, process.last_words()
        try:
            return httpx.get(url, timeout=2).status_code < 500
        except httpx.TransportError:
            return False

    process.start()
    try:
        eventually_sync(answers, what=f"{process.name} serves")
    except BaseException:
        process.kill()
        raise


@pytest.fixture(scope="session")
def mailbox_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mailbox]:
    state = tmp_path_factory.mktemp("mailbox")
    http_port, smtp_port = free_ports(2)
    command = mailbox_command(http_port=http_port, smtp_port=smtp_port, state=state)
    process = Process("mailbox", command, log=state / "log")
    url = f"http://{LOOPBACK}:{http_port}"
    _serve(process, f"{url}/messages")
    yield Mailbox(url, LOOPBACK, smtp_port)
    process.stop()


@pytest.fixture
def mailbox(mailbox_server: Mailbox) -> Mailbox:
    """An empty mailbox."""
    httpx.delete(f"{mailbox_server.url}/messages").raise_for_status()
    return mailbox_server


@pytest.fixture(scope="session")
def cluster_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    state = tmp_path_factory.mktemp("cluster")
    (port,) = free_ports(1)
    kubeconfig = state / "kubeconfig"
    process = Process("cluster", cluster_command(port=port, state=state, kubeconfig=kubeconfig), log=state / "log")
    url = f"http://{LOOPBACK}:{port}"
    _serve(process, f"{url}/version")
    yield Cluster(url, kubeconfig)
    process.stop()


@pytest.fixture
def cluster(cluster_server: Cluster) -> Iterator[Cluster]:
    """The cluster without faults. Tests use namespaces of their own."""
    httpx.delete(f"{cluster_server.url}/sandbox/faults").raise_for_status()
    yield cluster_server
    httpx.delete(f"{cluster_server.url}/sandbox/faults").raise_for_status()


class _Receiver(http.server.ThreadingHTTPServer):
    daemon_threads = True
    deliveries: list[tuple[dict[str, str], bytes]]


class _Receive(http.server.BaseHTTPRequestHandler):
    server: _Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        self.server.deliveries.append((dict(self.headers.items()), body))
        self.send_response(204)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


@pytest.fixture(scope="session")
def stripe_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stripe]:
    state = tmp_path_factory.mktemp("stripe")
    (port,) = free_ports(1)
    receiver = _Receiver((LOOPBACK, 0), _Receive)
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
    process = Process("stripe", command, log=state / "log")
    url = f"http://{LOOPBACK}:{port}"
    _serve(process, f"{url}/sandbox/charges")
    yield Stripe(url, STRIPE_KEY, WEBHOOK_SECRET, receiver.deliveries)
    process.stop()
    receiver.shutdown()
    thread.join(5)
    receiver.server_close()


@pytest.fixture
def stripe(stripe_server: Stripe) -> Iterator[Stripe]:
    """The card gateway without faults, deliveries forgotten. Charges of other tests remain: use your own customers."""
    httpx.delete(f"{stripe_server.url}/sandbox/faults").raise_for_status()
    stripe_server.deliveries.clear()
    yield stripe_server
    httpx.delete(f"{stripe_server.url}/sandbox/faults").raise_for_status()
