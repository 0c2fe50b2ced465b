"""The real control plane for tests, where `make control-plane` has built it: one per session."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from deploy.controlplane.build import find_binaries
from deploy.controlplane.control_plane import ControlPlane
from tests.support.sandboxes import ClusterEndpoint, proxied

SIMULATED = "simulated"
ON_THE_PLANE = pytest.param("control_plane", marks=pytest.mark.controlplane)
EACH = [pytest.param(SIMULATED), *([ON_THE_PLANE] if find_binaries() else [])]


@pytest.fixture(scope="session")
def control_plane_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterEndpoint]:
    """The real control plane behind the proxy that injects faults."""
    directory = tmp_path_factory.mktemp("plane")
    with ControlPlane(directory) as plane, proxied(directory / "proxy", plane.kubeconfig_path, kwok=True) as cluster:
        yield cluster


@pytest.fixture(params=EACH)
def each_cluster(request: pytest.FixtureRequest) -> ClusterEndpoint:
    """The simulated cluster, and the real control plane where its binaries are cached."""
    name = "cluster" if request.param == SIMULATED else "control_plane_server"
    endpoint: ClusterEndpoint = request.getfixturevalue(name)
    return endpoint


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [report for group in terminalreporter.stats.values() for report in group]
    if find_binaries() is None and any(f"[{SIMULATED}" in getattr(report, "nodeid", "") for report in reports):
        terminalreporter.write_line(
            "no real control plane is built (`make control-plane`): these tests ran on the simulated cluster only"
        )
