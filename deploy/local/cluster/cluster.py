"""The simulated cluster as one object: start it on an event loop, use it over HTTP, stop it."""

from __future__ import annotations

import asyncio
import secrets
import shutil
import tempfile
from pathlib import Path
from types import TracebackType

from aiohttp import web

from deploy.identity import kubeconfig, write_private
from deploy.local.cluster.api import Api
from deploy.local.cluster.controllers.base import Controller, ControlLoop
from deploy.local.cluster.controllers.certificates import Certificates, Ingresses
from deploy.local.cluster.controllers.cleanup import Garbage, Namespaces
from deploy.local.cluster.controllers.jobs import CronJobs, Jobs
from deploy.local.cluster.controllers.nodes import Nodes, healthy_status, node
from deploy.local.cluster.controllers.pods import Pods
from deploy.local.cluster.controllers.statefulsets import StatefulSets
from deploy.local.cluster.controllers.storage import Claims, Quotas
from deploy.local.cluster.controllers.workloads import Deployments, ReplicaSets
from deploy.local.cluster.faults import FaultInjector
from deploy.local.cluster.registry import CONTROLLER, Registry
from deploy.local.cluster.resources import BY_KIND, NODES, Obj
from deploy.local.cluster.store import ObjectStore

CONTROLLERS: tuple[type[Controller], ...] = (
    ReplicaSets, Deployments, StatefulSets, Jobs, CronJobs,
    Ingresses, Certificates, Claims, Quotas, Garbage, Namespaces,
)  # fmt: skip


class SimulatedCluster:
    """`async with SimulatedCluster() as cluster:` serves until the block ends.

    Speaks plain HTTP; `deploy.local.cluster_proxy` stands before it where clients want TLS.

    Args:
        state_dir: Keeps the objects and the token; None forgets them at the end.
        kubeconfig_path: Where to write the kubeconfig; default in `state_dir`.
        speed: Divides the simulated delays, never the limits that manifests state.
    """

    def __init__(
        self,
        *,
        state_dir: Path | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
        kubeconfig_path: Path | None = None,
        speed: float = 1.0,
        nodes: int = 3,
    ) -> None:
        self._temporary = Path(tempfile.mkdtemp(prefix="berth-cluster-")) if state_dir is None else None
        self._directory = state_dir or self._temporary or Path()
        self.host = host
        self.port = port
        self.kubeconfig_path = kubeconfig_path or self._directory / "kubeconfig"
        self._speed = speed
        self._nodes = nodes
        self._sweeper: asyncio.TimerHandle | None = None

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    async def __aenter__(self) -> SimulatedCluster:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Load the state, run the controllers, listen, and write the kubeconfig."""
        self._directory.mkdir(parents=True, exist_ok=True)
        self.store = ObjectStore(self._directory if self._temporary is None else None)
        self.faults = FaultInjector()
        self.registry = Registry(self.store)
        self.loop = ControlLoop(self.store, self.registry, self.faults, self._speed)
        self._create_initial_objects()
        self._pods, self._node_controller = Pods(self.loop), Nodes(self.loop)
        self.loop.start([self._pods, self._node_controller, *(controller(self.loop) for controller in CONTROLLERS)])
        self.faults.changed = self._faults_changed
        token = self._token()
        self._api = Api(store=self.store, registry=self.registry, faults=self.faults, token=token)
        self._runner = web.ServerRunner(web.Server(self._api.handle, access_log=None), shutdown_timeout=1.0)
        await self._runner.setup()
        site = web.TCPSite(self._runner, self.host, self.port, reuse_address=True)
        await site.start()
        self.port = self._runner.addresses[0][1]
        write_private(self.kubeconfig_path, kubeconfig(self.url, token=token))

    async def stop(self) -> None:
        """End the watches, stop listening, and close the object log."""
        for watch in tuple(self._api.watches):
            watch.close()
        await self._runner.cleanup()
        if self._sweeper is not None:
            self._sweeper.cancel()
        self.loop.stop()
        self.store.close()
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)

    def _token(self) -> str:
        """Return the token of the kubeconfig; the same after a restart."""
        path = self._directory / "token"
        if not path.exists():
            write_private(path, secrets.token_urlsafe(32).encode())
        return path.read_text().strip()

    def _create_initial_objects(self) -> None:
        """Create what every fresh cluster has: namespaces, nodes, a storage class, an ingress class, an issuer."""
        objects: list[Obj] = [
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}} for name in ("default", "kube-system")
        ]
        objects.append(
            {
                "apiVersion": "storage.k8s.io/v1",
                "kind": "StorageClass",
                "metadata": {
                    "name": "standard",
                    "annotations": {"storageclass.kubernetes.io/is-default-class": "true"},
                },
                "provisioner": "berth.local/simulated",
                "volumeBindingMode": "WaitForFirstConsumer",
                "allowVolumeExpansion": True,
            }
        )
        objects.append(
            {
                "apiVersion": "networking.k8s.io/v1",
                "kind": "IngressClass",
                "metadata": {"name": "nginx"},
                "spec": {"controller": "k8s.io/ingress-nginx"},
            }
        )
        objects.append(
            {
                "apiVersion": "cert-manager.io/v1",
                "kind": "ClusterIssuer",
                "metadata": {"name": "letsencrypt"},
                "spec": {"acme": {"server": "https://acme.invalid/directory"}},
            }
        )
        for obj in objects + [node(number) for number in range(1, self._nodes + 1)]:
            resource = BY_KIND[(obj["apiVersion"], obj["kind"])]
            if self.store.get(resource, "", obj["metadata"]["name"]) is None:
                self.registry.create(resource, "", obj, CONTROLLER)
        for stored in self.store.every(NODES):
            if "status" not in stored.obj:
                self.registry.modify(NODES, stored, lambda obj: healthy_status(obj.setdefault("status", {})))

    def _faults_changed(self) -> None:
        """Reconcile nodes and pods when a fault begins or ends, and again when the next one ends by itself."""
        self._node_controller.faults_changed()
        self._pods.faults_changed()
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        seconds = self.faults.next_end()
        if seconds is not None:
            self._sweeper = asyncio.get_running_loop().call_later(seconds + 0.01, self._faults_changed)
