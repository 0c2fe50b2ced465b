"""The proxy before a cluster: its own token and certificate for clients, other credentials for the cluster."""

from __future__ import annotations

import os
import ssl
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import yaml
from aiohttp import ClientSession, web

from deploy.identity import issue
from deploy.local.cluster_proxy.kwok_faults import KwokPodFaults
from deploy.local.cluster_proxy.upstream import BadKubeconfig, Upstream
from tests.contracts.cluster.conftest import ClusterFixture
from tests.contracts.cluster.targets import call


def test_the_kubeconfig_is_private_and_says_https(sandbox: ClusterFixture) -> None:
    path = sandbox.target.kubeconfig
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    kubeconfig: Any = yaml.safe_load(path.read_text())
    server = kubeconfig["clusters"][0]["cluster"]["server"]
    assert server == sandbox.target.sandbox.replace("http:", "https:")
    assert kubeconfig["users"][0]["user"]["token"]


def test_requests_need_the_token_over_http_as_well(sandbox: ClusterFixture) -> None:
    status, error = call(f"{sandbox.target.sandbox}/api/v1/namespaces")
    assert (status, error["reason"]) == (401, "Unauthorized")
    assert call(f"{sandbox.target.sandbox}/sandbox/faults") == (200, {"faults": []})


def test_the_token_of_the_cluster_is_not_the_token_of_the_proxy(sandbox: ClusterFixture) -> None:
    status, error, _ = sandbox.raw("GET", "/api/v1/namespaces", headers={"Authorization": "Bearer wrong"})
    assert (status, error["reason"]) == (401, "Unauthorized")


class UpstreamServer:
    """A TLS server that wants a client certificate, and the kubeconfig with one that it accepts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.kubeconfig = folder / "kubeconfig"
        self.received_headers: list[dict[str, str]] = []

    def context(self) -> ssl.SSLContext:
        server, server_key = issue(["localhost"], days=1, addresses=("127.0.0.1",))
        client, client_key = issue(["client"], days=1)
        for name, data in (("server", server + server_key), ("client.crt", client), ("client.key", client_key)):
            (self.folder / name).write_bytes(data)
        (self.folder / "server.crt").write_bytes(server)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.folder / "server")
        context.load_verify_locations(self.folder / "client.crt")
        context.verify_mode = ssl.CERT_REQUIRED
        return context

    def write_kubeconfig(self, port: int, user: dict[str, str]) -> None:
        config = {
            "current-context": "c",
            "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
            "clusters": [
                {
                    "name": "k",
                    "cluster": {"server": f"https://127.0.0.1:{port}", "certificate-authority": "server.crt"},
                }
            ],
            "users": [{"name": "u", "user": user}],
        }
        self.kubeconfig.write_text(yaml.safe_dump(config))


@pytest_asyncio.fixture
async def guarded(tmp_path: Path) -> AsyncIterator[UpstreamServer]:
    server = UpstreamServer(tmp_path)

    async def respond(request: web.BaseRequest) -> web.Response:
        server.received_headers.append(dict(request.headers))
        return web.Response(text="ok")

    runner = web.ServerRunner(web.Server(respond))
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=server.context())
    await site.start()
    port = runner.addresses[0][1]
    server.write_kubeconfig(port, {"client-certificate": "client.crt", "client-key": "client.key"})
    yield server
    await runner.cleanup()


async def test_a_client_certificate_authenticates_the_proxy(guarded: UpstreamServer) -> None:
    upstream = Upstream.from_kubeconfig(guarded.kubeconfig)
    assert upstream.headers == {}
    assert upstream.tls is not None
    async with ClientSession() as session, session.get(f"{upstream.url}/version", ssl=upstream.tls) as response:
        assert (response.status, await response.text()) == (200, "ok")


async def test_cleanup_skips_a_kind_that_is_not_served_yet() -> None:
    """The API server is ready before it serves the kind Stage, and answers in plain text until then."""

    async def respond(request: web.BaseRequest) -> web.Response:
        return web.Response(status=404, text="404 page not found")

    runner = web.ServerRunner(web.Server(respond))
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    upstream = Upstream(url=f"http://127.0.0.1:{runner.addresses[0][1]}", tls=None, headers={})
    try:
        async with ClientSession() as session:
            faults = KwokPodFaults(upstream, session)
            await faults.remove_leftovers()
            assert await faults.listed() == []
    finally:
        await runner.cleanup()


def test_a_kubeconfig_without_its_context_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "kubeconfig"
    path.write_text(yaml.safe_dump({"current-context": "c", "contexts": []}))
    with pytest.raises(BadKubeconfig):
        Upstream.from_kubeconfig(path)
