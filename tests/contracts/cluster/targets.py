"""What the contract tests run against: the simulated cluster always, a real control plane where it has been built."""

from __future__ import annotations

import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from kubernetes import client, config

from tests.support import sandboxes

ROOT = Path(__file__).resolve().parents[3]


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A cluster under test, behind its proxy.

    Attributes:
        sandbox: The plain address that takes faults.
        timeout: How long the cluster may take for an asynchronous step, in seconds.
    """

    name: str
    kubeconfig: Path
    sandbox: str
    timeout: float

    def api(self) -> client.ApiClient:
        """Return a new client."""
        settings = client.Configuration()
        config.load_kube_config(config_file=str(self.kubeconfig), client_configuration=settings)
        # The tests look at refusals themselves.
        settings.retries = 0
        return client.ApiClient(settings)

    def kubectl(self, *words: str, stdin: str | None = None, check: bool = True) -> str:
        """Run the real `kubectl`; what it printed."""
        done = subprocess.run(
            ["kubectl", "--kubeconfig", str(self.kubeconfig), *words],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert not check or done.returncode == 0, f"kubectl {' '.join(words)}: {done.stdout}{done.stderr}"
        return done.stdout + done.stderr


def call(url: str, method: str = "GET", body: Any = None) -> Any:
    """One plain HTTP call with JSON both ways; (status, body)."""
    data = None if body is None else orjson.dumps(body)
    request = urllib.request.Request(url, data=data, method=method, headers={"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return response.status, _parsed(response.read())
    except urllib.error.HTTPError as refused:
        with refused:
            return refused.code, _parsed(refused.read())


def _parsed(body: bytes) -> Any:
    try:
        return orjson.loads(body or b"null")
    except orjson.JSONDecodeError:
        return body.decode()


class ClusterProcess:
    """The simulated cluster as `make run` starts it: a separate process over a state directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.kubeconfig = directory / "kubeconfig"
        self._child: subprocess.Popen[str] | None = None
        self._port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Start, on the same port as before if there was one."""
        self._child = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "deploy.local.cluster",
                "--port",
                str(self._port),
                "--state",
                str(self.directory / "state"),
                "--kubeconfig",
                str(self.kubeconfig),
            ],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._child.stdout is not None
        line = self._child.stdout.readline()
        assert "simulated cluster on" in line, line
        self._port = int(line.split(",")[0].rpartition(":")[2])

    def kill(self) -> None:
        """kill -9."""
        if self._child is not None:
            self._child.kill()
            self._reap()

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        assert self._child is not None
        self._child.terminate()
        return self._reap()

    def _reap(self) -> int:
        assert self._child is not None
        code = self._child.wait(timeout=15)
        assert self._child.stdout is not None
        self._child.stdout.close()
        self._child = None
        return code


@contextmanager
def simulated(directory: Path) -> Iterator[Target]:
    """The simulated cluster behind its proxy."""
    process = ClusterProcess(directory)
    process.start()
    try:
        with sandboxes.proxied(directory / "proxy", process.kubeconfig) as cluster:
            yield create_target(cluster, name="simulated", timeout=10.0)
    finally:
        process.stop()


def create_target(cluster: sandboxes.ClusterEndpoint, *, name: str, timeout: float) -> Target:
    return Target(name=name, kubeconfig=cluster.kubeconfig, sandbox=cluster.url, timeout=timeout)
