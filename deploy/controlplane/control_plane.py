"""Runs the built control plane: etcd, kube-apiserver, controller manager, scheduler, and kwok as its nodes."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from deploy.controlplane.build import BuildError, find_binaries
from deploy.controlplane.client import KubernetesApi, UnexpectedResponse
from deploy.controlplane.prerequisites import VolumeProvisioner, create_prerequisites, install_stages
from deploy.identity import Identity, write_private
from deploy.ports import free_ports

SERVICE_RANGE = "127.96.0.0/16"
POD_RANGE = "127.64.0.1/16"
NODE_ADDRESS = "127.0.0.1"
"""Nothing listens on a pod's, service's or node's address: nothing runs there. All of them are loopback addresses, so
that a component that dials one by mistake never reaches a machine of another network."""

NODE_LEASE_SECONDS = 40
"""Without leases the controller manager takes the nodes for lost after some 50 s."""

READY_TIMEOUT_SECONDS = 60.0
STOP_TIMEOUT_SECONDS = 8.0


class ControlPlaneError(RuntimeError):
    """The control plane did not start; the message ends with the log of the component that failed."""


def _exit_with_parent() -> None:
    """Ask Linux to end this child when its parent dies, however it dies; elsewhere do without."""
    import ctypes

    try:
        ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGTERM)
    except (OSError, AttributeError):
        return


class ControlPlane:
    """`with ControlPlane(directory) as plane:` — a working cluster under `plane.kubeconfig_path` until the block ends.

    State, certificates, token and logs live in `directory`; started again on it, the cluster is as it was. Needs no
    privileges and no network. Raises `BuildError` when the binaries are missing, `ControlPlaneError` when a component
    does not start.
    """

    def __init__(self, directory: Path, *, nodes: int = 1, port: int = 0, kubeconfig: Path | None = None) -> None:
        self.directory = directory
        self.kubeconfig_path = kubeconfig or directory / "kubeconfig"
        self._nodes = nodes
        self._port = port
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._provisioner: VolumeProvisioner | None = None

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self._port}"

    def __enter__(self) -> ControlPlane:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # ------------------------------------------------------------ starting

    def start(self) -> None:
        """Start everything and wait until a pod could run."""
        binaries = find_binaries()
        if binaries is None:
            raise BuildError("the control plane has not been built: `make control-plane`")
        self._binaries = binaries
        self.directory.mkdir(parents=True, exist_ok=True)
        try:
            self._start()
        except BaseException:
            self.stop()
            raise

    def _start(self) -> None:
        etcd, peer, free = free_ports(3)
        self._port = self._port or free
        identity = Identity(self.directory, "127.0.0.1")
        keys = self._service_account_key()
        tokens = self.directory / "tokens.csv"
        write_private(tokens, f'{identity.token},berth,berth,"system:masters"\n'.encode())
        write_private(self.kubeconfig_path, identity.kubeconfig(self.url))
        self._start_process(
            "etcd",
            f"--data-dir={self.directory / 'etcd'}",
            f"--listen-client-urls=http://127.0.0.1:{etcd}",
            f"--advertise-client-urls=http://127.0.0.1:{etcd}",
            f"--listen-peer-urls=http://127.0.0.1:{peer}",
            f"--initial-advertise-peer-urls=http://127.0.0.1:{peer}",
            f"--initial-cluster=default=http://127.0.0.1:{peer}",
            # The data need not outlive the machine, and fsync is most of etcd's time.
            "--unsafe-no-fsync",
            "--log-level=warn",
        )
        self._start_process(
            "kube-apiserver",
            f"--etcd-servers=http://127.0.0.1:{etcd}",
            "--bind-address=127.0.0.1",
            f"--secure-port={self._port}",
            f"--tls-cert-file={self.directory / 'server.crt'}",
            f"--tls-private-key-file={self.directory / 'server.key'}",
            f"--cert-dir={self.directory}",
            f"--token-auth-file={tokens}",
            "--authorization-mode=RBAC",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={keys}",
            f"--service-account-signing-key-file={keys}",
            f"--service-cluster-ip-range={SERVICE_RANGE}",
            # No node has such an address, so the API server dials no kubelet when a client requests logs.
            "--kubelet-preferred-address-types=ExternalDNS",
            "--endpoint-reconciler-type=none",
            "--allow-privileged=true",
        )
        api = KubernetesApi(self.url, self.directory / "server.crt", identity.token)
        self._wait_until(lambda: api.call("GET", "/readyz")[0] == 200, "kube-apiserver")
        config = f"--kubeconfig={self.kubeconfig_path}"
        self._start_process(
            "kube-controller-manager",
            config,
            "--leader-elect=false",
            "--secure-port=0",
            f"--service-account-private-key-file={keys}",
            f"--root-ca-file={self.directory / 'server.crt'}",
            "--concurrent-namespace-syncs=10",
        )
        self._start_process("kube-scheduler", config, "--leader-elect=false", "--secure-port=0")
        install_stages(api)
        self._start_process(
            "kwok",
            config,
            "--manage-all-nodes=true",
            "--enable-crds=Stage",
            f"--cidr={POD_RANGE}",
            f"--node-ip={NODE_ADDRESS}",
            f"--node-lease-duration-seconds={NODE_LEASE_SECONDS}",
        )
        create_prerequisites(api, self._nodes)
        self._provisioner = VolumeProvisioner(api)
        self._provisioner.start()
        self._wait_until(lambda: self._nodes_ready(api), "kwok")
        account = "/api/v1/namespaces/default/serviceaccounts/default"
        self._wait_until(lambda: api.call("GET", account)[0] == 200, "kube-controller-manager")

    def _service_account_key(self) -> Path:
        path = self.directory / "accounts.key"
        if not path.exists():
            key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
            form = serialization.PrivateFormat.TraditionalOpenSSL
            write_private(path, key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()))
        return path

    def _nodes_ready(self, api: KubernetesApi) -> bool:
        _, node_list = api.call("GET", "/api/v1/nodes")
        ready = [
            node
            for node in node_list["items"]
            if any(c["type"] == "Ready" and c["status"] == "True" for c in node["status"].get("conditions", ()))
            and not node["spec"].get("taints")
        ]
        return len(ready) >= self._nodes

    def _start_process(self, name: str, *words: str) -> None:
        with (self.directory / f"{name}.log").open("ab") as log:
            self._children[name] = subprocess.Popen(
                [str(self._binaries / name), *words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.directory,
                preexec_fn=_exit_with_parent,
            )

    def _wait_until(self, is_ready: Callable[[], bool], component: str) -> None:
        end = time.monotonic() + READY_TIMEOUT_SECONDS
        while time.monotonic() < end:
            for name, child in self._children.items():
                if child.poll() is not None:
                    raise ControlPlaneError(f"{name} ended with {child.returncode}: {self._log_tail(name)}")
            try:
                if is_ready():
                    return
            except (OSError, UnexpectedResponse):
                # Not listening yet.
                pass
            time.sleep(0.05)
        raise ControlPlaneError(
            f"{component} was not ready within {READY_TIMEOUT_SECONDS:g} s: {self._log_tail(component)}"
        )

    def _log_tail(self, name: str) -> str:
        log = self.directory / f"{name}.log"
        return log.read_text(errors="replace")[-1500:] if log.exists() else "no log"

    # ------------------------------------------------------------ stopping

    @property
    def processes(self) -> dict[str, int]:
        """Process ids by name."""
        return {name: child.pid for name, child in self._children.items()}

    def dead_process(self) -> str | None:
        """The name of a process that has died, if one has."""
        return next((name for name, child in self._children.items() if child.poll() is not None), None)

    def stop(self) -> None:
        """End every process, the store last."""
        if self._provisioner is not None:
            self._provisioner.stop()
            self._provisioner = None
        children = list(reversed(self._children.items()))
        for name, child in children:
            if name != "etcd" and child.poll() is None:
                child.terminate()
        for _, child in children:
            if child.poll() is None and child is self._children.get("etcd"):
                child.terminate()
            try:
                child.wait(timeout=STOP_TIMEOUT_SECONDS)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
        self._children.clear()
