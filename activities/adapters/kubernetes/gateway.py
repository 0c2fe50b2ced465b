"""The way to the Kubernetes API: a handful of verbs, asynchronous in front, the official client's connections behind.

The official client brings configuration, credentials, TLS and pooling; its models are left out, because turning twenty
objects per order into them and back costs more than the calls. Blocking calls run on a pool of threads as wide as the
connection pool, each with a timeout.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, urlencode

import orjson
import urllib3
from kubernetes import config
from kubernetes.client import ApiClient, Configuration

from activities.adapters.kubernetes import errors
from activities.adapters.kubernetes.kinds import path
from activities.templates import MANAGER

Object = dict[str, Any]
T = TypeVar("T")

APPLY = "application/apply-patch+yaml"
MERGE = "application/merge-patch+json"
STRATEGIC = "application/strategic-merge-patch+json"

ATTEMPTS = 5
FIRST_DELAY = 0.1
LONGEST_DELAY = 10.0
CREDENTIALS_SECONDS = 15.0


def kubeconfig_client(kubeconfig: Path | None, *, context: str | None = None, connections: int = 24) -> ApiClient:
    """Return a client for ``kubeconfig``; None means the service account of the pod that this process runs in."""
    settings = Configuration()
    if kubeconfig is None:
        load: Any = config.load_incluster_config
        load(client_configuration=settings)
    else:
        load = config.load_kube_config
        load(str(kubeconfig), context=context, client_configuration=settings)
    settings.connection_pool_maxsize = connections
    settings.retries = False
    return ApiClient(settings)


class KubernetesGateway:
    """Verbs on objects. Every call has a timeout and is repeated on 429, 5xx and lost answers, a few times, with the
    delay that the cluster asked for plus jitter; all of them bear repetition.

    Raises from every verb: ``errors.ClusterError`` and its kinds.
    """

    def __init__(self, client: ApiClient, *, threads: int = 16, timeout_seconds: float = 10.0) -> None:
        self._client = client
        self._pool = ThreadPoolExecutor(max_workers=threads, thread_name_prefix="cluster")
        self._timeout = timeout_seconds
        self._host: str = client.configuration.host
        self._credentials: tuple[float, dict[str, str]] = (0.0, {})
        manager: urllib3.PoolManager = client.rest_client.pool_manager
        # Straight to the host's connections, unless a proxy has to be asked first.
        self._open_url: Any = manager.urlopen
        self._prefix = self._host
        if type(manager) is urllib3.PoolManager:
            self._open_url = manager.connection_from_url(self._host).urlopen
            self._prefix = urllib3.util.parse_url(self._host).path or ""

    @classmethod
    def from_kubeconfig(
        cls, kubeconfig: Path | None, *, context: str | None = None, threads: int = 16, timeout_seconds: float = 10.0
    ) -> KubernetesGateway:
        client = kubeconfig_client(kubeconfig, context=context, connections=threads + 8)
        return cls(client, threads=threads, timeout_seconds=timeout_seconds)

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._client.rest_client.close()

    async def get(self, kind: str, namespace: str | None, name: str) -> Object | None:
        try:
            return await self._json("GET", path(kind, namespace, name))
        except errors.NotFound:
            return None

    async def list(
        self, kind: str, namespace: str | None = None, *, labels: str = "", fields: str = "", limit: int | None = None
    ) -> list[Object]:
        """Return the objects of a kind, of all namespaces when ``namespace`` is None. ``labels`` is a selector."""
        query: dict[str, str] = {}
        if labels:
            query["labelSelector"] = labels
        if fields:
            query["fieldSelector"] = fields
        if limit:
            query["limit"] = str(limit)
        answer = await self._json("GET", path(kind, namespace), query=query)
        items: list[Object] = answer.get("items") or []
        return items

    async def apply(self, made: Object, *, force: bool = False) -> Object:
        """Apply server-side as ``berth``. Raises ``Conflict`` naming the fields that others own unless ``force``."""
        metadata = made["metadata"]
        where = path(made["kind"], metadata.get("namespace"), metadata["name"])
        query = {"fieldManager": MANAGER, "force": "true" if force else "false"}
        return await self._json("PATCH", where, query=query, body=made, content_type=APPLY)

    async def create(self, made: Object) -> Object:
        """Create; raises ``Exists`` when the name is taken, also by an earlier try whose answer was lost."""
        where = path(made["kind"], made["metadata"].get("namespace"))
        return await self._json("POST", where, query={"fieldManager": MANAGER}, body=made)

    async def patch(
        self, kind: str, namespace: str | None, name: str, body: Object, *, content_type: str = MERGE
    ) -> Object:
        where = path(kind, namespace, name)
        return await self._json("PATCH", where, query={"fieldManager": MANAGER}, body=body, content_type=content_type)

    async def delete(self, kind: str, namespace: str | None, name: str, *, uid: str | None = None) -> None:
        """Start a deletion, of that very object when ``uid`` is given. What is gone or going is left alone."""
        body: Object = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background"}
        if uid is not None:
            body["preconditions"] = {"uid": uid}
        try:
            await self._json("DELETE", path(kind, namespace, name), body=body)
        except (errors.NotFound, errors.Conflict):
            return

    async def logs(self, namespace: str, pod: str, container: str, *, previous: bool, lines: int = 20) -> str:
        """Return a container's last lines; empty when it has none (any more)."""
        query = {"container": container, "tailLines": str(lines), "previous": "true" if previous else "false"}
        try:
            data = await self._call("GET", path("Pod", namespace, pod, "log"), query=query)
        except errors.ClusterError:
            return ""
        return data.decode(errors="replace")

    async def probe(self, namespace: str, service: str, port: str, where: str, headers: Mapping[str, str]) -> int:
        """Return the HTTP status that a Service answers with through the API server's proxy."""
        target = f"{path('Service', namespace, f'{service}:{port}', 'proxy')}/{quote(where.lstrip('/'))}"
        return await self._threaded(lambda: self.request("GET", target, headers=dict(headers))[0])

    async def _json(
        self,
        method: str,
        where: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Object | None = None,
        content_type: str = "application/json",
    ) -> Object:
        data = await self._call(method, where, query=query, body=body, content_type=content_type)
        answer: Object = orjson.loads(data)
        return answer

    async def _call(
        self,
        method: str,
        where: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Object | None = None,
        content_type: str = "application/json",
    ) -> bytes:
        def once() -> bytes:
            payload = None if body is None else orjson.dumps(body)
            status, headers, data = self.request(
                method, where, query=query, body=payload, headers={"Content-Type": content_type} if payload else {}
            )
            if status >= 400:
                raise errors.from_response(status, headers, data)
            return data

        for attempt in range(ATTEMPTS):
            try:
                return await self._threaded(once)
            except errors.Unavailable as error:
                if attempt == ATTEMPTS - 1:
                    raise
                backoff = min(FIRST_DELAY * 2**attempt, LONGEST_DELAY)
                asked = min(error.retry_after or 0.0, LONGEST_DELAY)
                await asyncio.sleep(max(asked, backoff) + random.uniform(0, backoff))  # noqa: S311 - jitter
        raise AssertionError("unreachable")

    async def _threaded(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, call)

    def request(
        self,
        method: str,
        where: str,
        *,
        query: Mapping[str, str] | None = None,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> tuple[int, Mapping[str, str], bytes]:
        """One blocking request; a lost or late answer raises ``Unavailable``."""
        response = self._open(method, where, query, body, headers, urllib3.Timeout(total=self._timeout), stream=False)
        return response.status, response.headers, response.data

    def stream(
        self, where: str, query: Mapping[str, str], *, silence_seconds: float
    ) -> urllib3.response.BaseHTTPResponse:
        """One blocking request whose answer is read as it comes. ``silence_seconds`` without a byte end it."""
        timeout = urllib3.Timeout(connect=self._timeout, read=silence_seconds)
        return self._open("GET", where, query, None, None, timeout, stream=True)

    def _open(
        self,
        method: str,
        where: str,
        query: Mapping[str, str] | None,
        body: bytes | None,
        headers: Mapping[str, str] | None,
        timeout: urllib3.Timeout,
        *,
        stream: bool,
    ) -> urllib3.response.BaseHTTPResponse:
        sent = {"Accept": "application/json", "User-Agent": "berth", **(headers or {})}
        url = f"{self._prefix}{where}"
        if query:
            url += "?" + urlencode(query)
        sent |= self._authorization()
        try:
            answer: urllib3.response.BaseHTTPResponse = self._open_url(
                method,
                url,
                body=body,
                headers=sent,
                timeout=timeout,
                preload_content=not stream,
                redirect=False,
                retries=False,
            )
        except urllib3.exceptions.HTTPError as error:
            raise errors.Unavailable(f"{method} {where}: {type(error).__name__}") from error
        if answer.status == 401:
            self._credentials = (0.0, {})
        return answer

    def _authorization(self) -> dict[str, str]:
        """The client looks for a fresher token at each call, and reads its whole configuration again to do so."""
        until, found = self._credentials
        if time.monotonic() >= until:
            found = {}
            self._client.update_params_for_auth(found, [], ["BearerToken"], "", "GET", None)
            self._credentials = (time.monotonic() + CREDENTIALS_SECONDS, found)
        return found
