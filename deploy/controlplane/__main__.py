"""`python -m deploy.controlplane --state DIR --kubeconfig PATH`: run the control plane until SIGINT or SIGTERM."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from pathlib import Path

from deploy.controlplane.build import BuildError
from deploy.controlplane.control_plane import ControlPlane, ControlPlaneError


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m deploy.controlplane", description=__doc__)
    parser.add_argument("--state", type=Path, required=True, help="directory that keeps the cluster")
    parser.add_argument("--kubeconfig", type=Path, help="where to write the kubeconfig")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--nodes", type=int, default=3)
    arguments = parser.parse_args()
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    plane = ControlPlane(
        arguments.state.resolve(), nodes=arguments.nodes, port=arguments.port, kubeconfig=arguments.kubeconfig
    )
    try:
        with plane:
            sys.stdout.write(f"control plane on {plane.url}, kubeconfig {plane.kubeconfig_path}\n")
            sys.stdout.flush()
            while not ended.wait(0.5):
                dead = plane.dead_process()
                if dead:
                    sys.stderr.write(f"{dead} has died; its log is {plane.directory / f'{dead}.log'}\n")
                    return 1
    except (BuildError, ControlPlaneError) as exc:
        sys.stderr.write(f"{exc}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
