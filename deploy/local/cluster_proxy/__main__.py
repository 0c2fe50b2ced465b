"""`python -m deploy.local.cluster_proxy --upstream KUBECONFIG --state DIR --kubeconfig PATH`: serve until SIGTERM."""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
from pathlib import Path

import aiohttp
from aiohttp import web

from deploy.identity import Identity, write_private
from deploy.local.cluster_proxy.kwok_faults import KwokPodFaults
from deploy.local.cluster_proxy.listener import Listener
from deploy.local.cluster_proxy.proxy import PodFaults, Proxy
from deploy.local.cluster_proxy.simulated_faults import SimulatedPodFaults
from deploy.local.cluster_proxy.upstream import BadKubeconfig, Upstream

WAIT_SECONDS = 60.0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m deploy.local.cluster_proxy", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--upstream", type=Path, required=True, help="kubeconfig of the cluster behind the proxy")
    parser.add_argument("--state", type=Path, required=True, help="directory that keeps the certificate and the token")
    parser.add_argument("--kubeconfig", type=Path, required=True, help="where to write the clients' kubeconfig")
    parser.add_argument("--kwok", action="store_true", help="the pods of that cluster are run by kwok")
    return parser.parse_args()


async def _upstream(path: Path) -> Upstream:
    """Read the kubeconfig, which the cluster writes when it starts. Raises BadKubeconfig after a minute."""
    deadline = asyncio.get_running_loop().time() + WAIT_SECONDS
    while True:
        try:
            return Upstream.from_kubeconfig(path)
        except BadKubeconfig:
            if asyncio.get_running_loop().time() >= deadline:
                raise
            await asyncio.sleep(0.1)


async def _until_ready(upstream: Upstream, session: aiohttp.ClientSession) -> None:
    """Wait until the cluster answers /readyz. Raises TimeoutError after a minute."""
    async with asyncio.timeout(WAIT_SECONDS):
        while True:
            try:
                url, tls = f"{upstream.url}/readyz", upstream.tls or False
                async with session.get(url, headers=upstream.headers, ssl=tls) as response:
                    if response.status == 200:
                        return
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.1)


async def serve(arguments: argparse.Namespace) -> None:
    """Serve until SIGINT or SIGTERM."""
    ended = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    arguments.state.mkdir(parents=True, exist_ok=True)
    identity = Identity(arguments.state, arguments.host)
    upstream = await _upstream(arguments.upstream)
    async with aiohttp.ClientSession(
        auto_decompress=False, connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=60.0)
    ) as session:
        pod_faults: PodFaults = SimulatedPodFaults(upstream, session)
        if arguments.kwok:
            await _until_ready(upstream, session)
            pod_faults = kwok = KwokPodFaults(upstream, session)
            await kwok.remove_leftovers()
        proxy = Proxy(upstream, pod_faults, session, identity.token)
        server = web.Server(proxy.handle, access_log=None, keepalive_timeout=75.0)
        listener = Listener(server, identity.tls(), arguments.host, arguments.port)
        listener.start()
        url = f"{arguments.host}:{listener.port}"
        write_private(arguments.kubeconfig, identity.kubeconfig(f"https://{url}"))
        print(f"cluster proxy on http://{url}, kubeconfig {arguments.kubeconfig}", flush=True)
        await ended.wait()
        await listener.stop()


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        asyncio.run(serve(_arguments()))
    except (OSError, TimeoutError, BadKubeconfig) as exc:
        raise SystemExit(f"cluster proxy: {exc}") from exc


if __name__ == "__main__":
    main()
