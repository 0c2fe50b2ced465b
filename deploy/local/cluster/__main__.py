"""`python -m deploy.local.cluster --port P --state DIR --kubeconfig PATH`: serve until SIGINT or SIGTERM."""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import signal
from pathlib import Path

from deploy.local.cluster import SimulatedCluster


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m deploy.local.cluster", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--state", type=Path, help="directory that keeps the objects; none: forget them")
    parser.add_argument("--kubeconfig", type=Path, help="where to write the kubeconfig")
    parser.add_argument("--speed", type=float, default=1.0, help="how much faster than usual pods come up")
    parser.add_argument("--nodes", type=int, default=3)
    return parser.parse_args()


async def serve(arguments: argparse.Namespace) -> None:
    """Serve until SIGINT or SIGTERM."""
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, ended.set)
    cluster = SimulatedCluster(
        state_dir=arguments.state,
        host=arguments.host,
        port=arguments.port,
        kubeconfig_path=arguments.kubeconfig,
        speed=arguments.speed,
        nodes=arguments.nodes,
    )
    async with cluster:
        print(f"simulated cluster on {cluster.url}, kubeconfig {cluster.kubeconfig_path}", flush=True)
        await ended.wait()


def main() -> None:
    # Tens of thousands of objects live long: collecting after every 700 new ones costs more than it frees.
    gc.set_threshold(50_000, 20, 50)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        asyncio.run(serve(_arguments()))
    except OSError as exc:
        # Most often the port is taken.
        raise SystemExit(f"simulated cluster: {exc}") from exc


if __name__ == "__main__":
    main()
