"""`python -m deploy.local.cluster --port P --state DIR --kubeconfig PATH`: serve until SIGINT or SIGTERM."""

from __future__ import annotations

import argparse
import gc
import logging
from pathlib import Path

from deploy.local.cluster import SimulatedCluster
from deploy.local.server_process import run_server


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m deploy.local.cluster", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--state", type=Path, help="directory that keeps the objects; none: forget them")
    parser.add_argument("--kubeconfig", type=Path, help="where to write the kubeconfig")
    parser.add_argument("--speed", type=float, default=1.0, help="how much faster than usual pods come up")
    parser.add_argument("--nodes", type=int, default=3)
    return parser.parse_args()


def main() -> None:
    # Tens of thousands of objects live long: collecting after every 700 new ones costs more than it frees.
    gc.set_threshold(50_000, 20, 50)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    arguments = _arguments()
    run_server(
        "simulated cluster",
        lambda: SimulatedCluster(
            state_dir=arguments.state,
            host=arguments.host,
            port=arguments.port,
            kubeconfig_path=arguments.kubeconfig,
            speed=arguments.speed,
            nodes=arguments.nodes,
        ),
        lambda cluster: f"simulated cluster on {cluster.url}, kubeconfig {cluster.kubeconfig_path}",
    )


if __name__ == "__main__":
    main()
