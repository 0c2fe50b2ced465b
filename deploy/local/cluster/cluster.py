"""The simulated cluster as one object: start it on an event loop, use it over HTTP, stop it."""

from __future__ import annotations

import asyncio
import logging
import shutil
import socket
import tempfile
from pathlib import Path
from types import TracebackType

from aiohttp import web

from deploy.local.cluster.controllers.base import Controller, World
from deploy.local.cluster.controllers.cleanup import Garbage, Namespaces, Unstick
from deploy.local.cluster.controllers.jobs import CronJobs, Jobs
from deploy.local.cluster.controllers.network import Certificates, Endpoints, Ingresses, Issuers
from deploy.local.cluster.controllers.nodes import Nodes, default_node, node_status
from deploy.local.cluster.controllers.pods import Pods
from deploy.local.cluster.controllers.replicasets import ReplicaSets
from deploy.local.cluster.controllers.statefulsets import DaemonSets, StatefulSets
from deploy.local.cluster.controllers.storage import Budgets, Claims, Quotas
from deploy.local.cluster.controllers.workloads import Deployments
from deploy.local.cluster.faults import Faults
from deploy.local.cluster.identity import Identity, write_private
from deploy.local.cluster.registry import CONTROLLER, Registry
from deploy.local.cluster.resources import BY_KEY, Obj
from deploy.local.cluster.server import Api
from deploy.local.cluster.store import Store

log = logging.getLogger(__name__)

TLS_HELLO = 0x16
STANDARD = "standard"
_CONTROLLERS: tuple[type[Controller], ...] = (
    Pods,
    ReplicaSets,
    Deployments,
    StatefulSets,
    DaemonSets,
    Jobs,
    CronJobs,
    Endpoints,
    Ingresses,
    Issuers,
    Certificates,
    Claims,
    Quotas,
    Budgets,
    Nodes,
    Garbage,
    Namespaces,
    Unstick,
)


class SimulatedCluster:
    """`async with SimulatedCluster() as cluster:` serves until the block ends.

    One port speaks HTTP and HTTPS: `url` is the plain address, `kubeconfig_path` holds the encrypted one with its
    certificate and token. With `state_dir=None` everything is forgotten at the end. `speed` shortens the pretended
    waits (2 is twice as fast), never the time limits that manifests state.
    """

    def __init__(
        self,
        *,
        state_dir: Path | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
        kubeconfig: Path | None = None,
        speed: float = 1.0,
        nodes: int = 3,
    ) -> None:
        self._temporary = Path(tempfile.mkdtemp(prefix="berth-cluster-")) if state_dir is None else None
        self._directory = state_dir or self._temporary or Path()
        self._keep = state_dir is not None
        self.host = host
        self.port = port
        self.kubeconfig_path = kubeconfig or self._directory / "kubeconfig"
        self._speed = speed
        self._nodes = nodes
        self._sweeper: asyncio.TimerHandle | None = None
        self._connections: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        """`http://host:port`, for /sandbox and for clients that bring the token themselves."""
        return f"http://{self.host}:{self.port}"

    async def __aenter__(self) -> SimulatedCluster:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Load the state, listen, run the controllers and write the kubeconfig."""
        self._directory.mkdir(parents=True, exist_ok=True)
        self._socket = self._bound()
        self.port = self._socket.getsockname()[1]
        self.store = Store(self._directory if self._keep else None)
        self.faults = Faults()
        self.registry = Registry(self.store, self.faults)
        self.identity = Identity(self._directory, self.host)
        self.api = Api(store=self.store, registry=self.registry, faults=self.faults, token=self.identity.token)
        self.world = World(self.store, self.registry, self.faults, self._speed)
        self._furnish()
        made = [controller(self.world) for controller in _CONTROLLERS]
        self._pods = next(c for c in made if isinstance(c, Pods))
        self._node_controller = next(c for c in made if isinstance(c, Nodes))
        self.world.start(made)
        self.faults.changed = self._faults_changed
        self._server = web.Server(self.api.handle, access_log=None, keepalive_timeout=75.0)
        self._tls = self.identity.tls()
        self._acceptor = asyncio.create_task(self._accept(), name="simulated-cluster")
        write_private(self.kubeconfig_path, self.identity.kubeconfig(f"https://{self._shown_host()}:{self.port}"))

    def _shown_host(self) -> str:
        return "127.0.0.1" if self.host in ("0.0.0.0", "::") else self.host  # noqa: S104  # compared, not bound

    async def stop(self) -> None:
        """Stop listening, cut the connections, close the journal."""
        self._acceptor.cancel()
        for task in tuple(self._connections):
            task.cancel()
        await asyncio.gather(self._acceptor, *self._connections, return_exceptions=True)
        self._socket.close()
        for watch in tuple(self.api.watches):
            watch.close()
        await self._server.shutdown(timeout=1.0)
        if self._sweeper is not None:
            self._sweeper.cancel()
        self.world.stop()
        self.store.close()
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)

    # ------------------------------------------------------------ listening

    def _bound(self) -> socket.socket:
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((self.host, self.port))
        listener.listen(256)
        listener.setblocking(False)
        return listener

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(self._socket)
            except OSError:
                # Out of descriptors, or the peer gave up between connect and accept.
                await asyncio.sleep(0.05)
                continue
            connection.setblocking(False)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            task = asyncio.create_task(self._connect(connection))
            self._connections.add(task)
            task.add_done_callback(self._connections.discard)

    async def _connect(self, connection: socket.socket) -> None:
        """Hand the connection to the HTTP server, through TLS where the client opens with a TLS hello."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(60.0):
                first = await self._peek(connection)
            if not first:
                connection.close()
                return
            encrypted = first[0] == TLS_HELLO
            await loop.connect_accepted_socket(
                self._server,
                connection,
                ssl=self._tls if encrypted else None,
                ssl_handshake_timeout=10.0 if encrypted else None,
            )
        except (OSError, TimeoutError):
            connection.close()
        except asyncio.CancelledError:
            connection.close()
            raise

    @staticmethod
    async def _peek(connection: socket.socket) -> bytes:
        """The first byte, left in the socket."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                return connection.recv(1, socket.MSG_PEEK)
            except BlockingIOError:
                pass
            readable = loop.create_future()
            loop.add_reader(connection, lambda f=readable: f.done() or f.set_result(None))  # type: ignore[misc]
            try:
                await readable
            finally:
                loop.remove_reader(connection)

    # ------------------------------------------------------------ furniture and faults

    def _furnish(self) -> None:
        """What a fresh cluster has: namespaces, nodes, a storage class, an issuer."""

        def ensure(key: str, obj: Obj) -> None:
            resource = BY_KEY[key]
            if self.store.get(resource, "", obj["metadata"]["name"]) is None:
                self.registry.create(resource, "", obj, CONTROLLER)

        for name in ("default", "kube-system", "kube-public", "kube-node-lease"):
            ensure("/namespaces", {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
        for number in range(1, self._nodes + 1):
            known = self.store.get(BY_KEY["/nodes"], "", f"node-{number}")
            ensure("/nodes", default_node(number))
            made = self.store.get(BY_KEY["/nodes"], "", f"node-{number}")
            if known is None and made is not None:
                status = node_status(number)
                self.registry.modify(BY_KEY["/nodes"], made, lambda obj, s=status: obj.update(status=s))  # type: ignore[misc]
        ensure(
            "storage.k8s.io/storageclasses",
            {
                "apiVersion": "storage.k8s.io/v1",
                "kind": "StorageClass",
                "metadata": {"name": STANDARD, "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}},
                "provisioner": "berth.local/simulated",
                "volumeBindingMode": "WaitForFirstConsumer",
                "allowVolumeExpansion": True,
            },
        )
        ensure(
            "cert-manager.io/clusterissuers",
            {
                "apiVersion": "cert-manager.io/v1",
                "kind": "ClusterIssuer",
                "metadata": {"name": "letsencrypt"},
                "spec": {
                    "acme": {"server": "https://acme.invalid/directory", "privateKeySecretRef": {"name": "letsencrypt"}}
                },
            },
        )
        ensure(
            "networking.k8s.io/ingressclasses",
            {
                "apiVersion": "networking.k8s.io/v1",
                "kind": "IngressClass",
                "metadata": {"name": "nginx", "annotations": {"ingressclass.kubernetes.io/is-default-class": "true"}},
                "spec": {"controller": "k8s.io/ingress-nginx"},
            },
        )

    def _faults_changed(self) -> None:
        """A fault began or ended: nodes, pods and stuck objects look again; and once more when the next runs out."""
        self.faults.sweep()
        self._node_controller.choose_victims()
        self._pods.wake()
        self.world.enqueue("unstick", "", "")
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        left = self.faults.next_end()
        if left is not None:
            self._sweeper = asyncio.get_running_loop().call_later(left + 0.01, self._faults_changed)
