"""Asynchronous Kubernetes API client on top of the official client's connections.

The official client provides configuration, credentials, TLS and pooling. Its models are not used: converting twenty
objects per order costs more than the calls. Blocking calls run in a thread pool, each with a timeout.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlencode

import orjson
import urllib3
import yaml
from kubernetes import config
from kubernetes.client import ApiClient, Configuration

from activities.adapters.kubernetes import errors
from activities.adapters.kubernetes.resources import resource_path
from activities.service_templates.manifests import FIELD_MANAGER, Manifest

T = TypeVar("T")

APPLY_PATCH = "application/apply-patch+yaml"
MERGE_PATCH = "application/merge-patch+json"
STRATEGIC_MERGE_PATCH = "application/strategic-merge-patch+json"

MAX_ATTEMPTS = 5
RETRY_INITIAL_INTERVAL = 0.1
RETRY_MAXIMUM_INTERVAL = 10.0
TOKEN_CACHE_SECONDS = 15.0


def build_api_client(kubeconfig: Path | None, *, context: str | None = None, connections: int = 24) -> ApiClient:
    """Return a client for ``kubeconfig``; None means the service account of the pod that this process runs in.

    Raises:
        errors.InvalidKubeconfig: the file cannot be read or names no cluster, or this process runs in no pod.
    """
    settings = Configuration()
    try:
        if kubeconfig is None:
            load: Any = config.load_incluster_config
            load(client_configuration=settings)
        else:
            load = config.load_kube_config
            load(str(kubeconfig), context=context, client_configuration=settings)
    except (config.ConfigException, OSError, ValueError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise errors.InvalidKubeconfig(kubeconfig, error) from error
    settings.connection_pool_maxsize = connections
    settings.retries = False
    return ApiClient(settings)


class KubernetesClient:
    """Reads and writes Kubernetes objects.

    Every call is idempotent and has a timeout. It is retried on 429, 5xx and lost responses, up to ``MAX_ATTEMPTS``
    attempts, after the requested delay plus jitter. Every method raises ``errors.ClusterError`` or a subclass.
    """

    def __init__(self, client: ApiClient, *, threads: int = 16, timeout_seconds: float = 10.0) -> None:
        self._client = client
        self._pool = ThreadPoolExecutor(max_workers=threads, thread_name_prefix="cluster")
        self._timeout = timeout_seconds
        self._host: str = client.configuration.host
        self._credentials: tuple[float, dict[str, str]] = (0.0, {})
        manager: urllib3.PoolManager = client.rest_client.pool_manager
        # Use the host's connection pool directly, unless a proxy is configured.
        self._open_url: Any = manager.urlopen
        self._base_path = self._host
        if type(manager) is urllib3.PoolManager:
            self._open_url = manager.connection_from_url(self._host).urlopen
            self._base_path = urllib3.util.parse_url(self._host).path or ""

    @classmethod
    def from_kubeconfig(
        cls, kubeconfig: Path | None, *, context: str | None = None, threads: int = 16, timeout_seconds: float = 10.0
    ) -> KubernetesClient:
        client = build_api_client(kubeconfig, context=context, connections=threads + 8)
        return cls(client, threads=threads, timeout_seconds=timeout_seconds)

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._client.rest_client.close()

    async def get(self, kind: str, namespace: str | None, name: str) -> Manifest | None:
        try:
            return await self._json("GET", resource_path(kind, namespace, name))
        except errors.NotFound:
            return None

    async def list(
        self, kind: str, namespace: str | None = None, *, labels: str = "", fields: str = "", limit: int | None = None
    ) -> list[Manifest]:
        """Return the objects of a kind, of all namespaces when ``namespace`` is None. ``labels`` is a selector."""
        query: dict[str, str] = {}
        if labels:
            query["labelSelector"] = labels
        if fields:
            query["fieldSelector"] = fields
        if limit:
            query["limit"] = str(limit)
        response = await self._json("GET", resource_path(kind, namespace), query=query)
        items: list[Manifest] = response.get("items") or []
        return items

    async def apply(self, manifest: Manifest, *, force: bool = False) -> Manifest:
        """Server-side apply as field manager ``berth``.

        Raises:
            Conflict: Other managers own some of the fields; not with ``force``.
        """
        metadata = manifest["metadata"]
        path = resource_path(manifest["kind"], metadata.get("namespace"), metadata["name"])
        query = {"fieldManager": FIELD_MANAGER, "force": "true" if force else "false"}
        return await self._json("PATCH", path, query=query, body=manifest, content_type=APPLY_PATCH)

    async def create(self, manifest: Manifest) -> Manifest:
        """Create an object.

        Raises:
            AlreadyExists: The name is taken, possibly by an earlier attempt whose response was lost.
        """
        path = resource_path(manifest["kind"], manifest["metadata"].get("namespace"))
        return await self._json("POST", path, query={"fieldManager": FIELD_MANAGER}, body=manifest)

    async def patch(
        self, kind: str, namespace: str | None, name: str, body: Manifest, *, content_type: str = MERGE_PATCH
    ) -> Manifest:
        path = resource_path(kind, namespace, name)
        return await self._json(
            "PATCH", path, query={"fieldManager": FIELD_MANAGER}, body=body, content_type=content_type
        )

    async def delete(self, kind: str, namespace: str | None, name: str, *, uid: str | None = None) -> None:
        """Start a background deletion. A missing object, or one with another ``uid``, is ignored."""
        body: Manifest = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background"}
        if uid is not None:
            body["preconditions"] = {"uid": uid}
        try:
            await self._json("DELETE", resource_path(kind, namespace, name), body=body)
        except (errors.NotFound, errors.Conflict):
            return

    async def logs(self, namespace: str, pod: str, container: str, *, previous: bool, lines: int = 20) -> str:
        """Return the last log lines of a container; empty if there are none or they cannot be read."""
        query = {"container": container, "tailLines": str(lines), "previous": "true" if previous else "false"}
        try:
            data = await self._request_with_retries("GET", resource_path("Pod", namespace, pod, "log"), query=query)
        except errors.ClusterError:
            return ""
        return data.decode(errors="replace")

    async def _json(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Manifest | None = None,
        content_type: str = "application/json",
    ) -> Manifest:
        data = await self._request_with_retries(method, path, query=query, body=body, content_type=content_type)
        response: Manifest = orjson.loads(data)
        return response

    async def _request_with_retries(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Manifest | None = None,
        content_type: str = "application/json",
    ) -> bytes:
        def send_once() -> bytes:
            payload = None if body is None else orjson.dumps(body)
            status, headers, data = self.request(
                method, path, query=query, body=payload, headers={"Content-Type": content_type} if payload else {}
            )
            if status >= 400:
                raise errors.from_response(status, headers, data)
            return data

        for attempt in range(MAX_ATTEMPTS):
            try:
                return await self._run_in_thread(send_once)
            except errors.ClusterUnavailable as error:
                if attempt == MAX_ATTEMPTS - 1:
                    raise
                backoff = min(RETRY_INITIAL_INTERVAL * 2**attempt, RETRY_MAXIMUM_INTERVAL)
                requested_delay = min(error.retry_after or 0.0, RETRY_MAXIMUM_INTERVAL)
                await asyncio.sleep(max(requested_delay, backoff) + random.uniform(0, backoff))  # noqa: S311 - jitter
        raise AssertionError("unreachable")

    async def _run_in_thread(self, call: Callable[[], T]) -> T:
        """Run ``call`` in a thread. A cancelled caller waits for its end too.

        Hazard: a thread cannot be interrupted. A deletion that undoes an apply must not start before its last request.
        """
        ended = asyncio.get_running_loop().run_in_executor(self._pool, call)
        try:
            return await asyncio.shield(ended)
        except asyncio.CancelledError:
            await asyncio.gather(ended, return_exceptions=True)
            raise

    def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> tuple[int, Mapping[str, str], bytes]:
        """Send one blocking request. Raises ``ClusterUnavailable`` if the response is lost or late."""
        response = self._send(method, path, query, body, headers, urllib3.Timeout(total=self._timeout), stream=False)
        return response.status, response.headers, response.data

    def stream(
        self, path: str, query: Mapping[str, str], *, idle_timeout_seconds: float
    ) -> urllib3.response.BaseHTTPResponse:
        """Send one blocking request and stream the response until ``idle_timeout_seconds`` pass without data."""
        timeout = urllib3.Timeout(connect=self._timeout, read=idle_timeout_seconds)
        return self._send("GET", path, query, None, None, timeout, stream=True)

    def _send(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None,
        body: bytes | None,
        headers: Mapping[str, str] | None,
        timeout: urllib3.Timeout,
        *,
        stream: bool,
    ) -> urllib3.response.BaseHTTPResponse:
        request_headers = {"Accept": "application/json", "User-Agent": "berth", **(headers or {})}
        url = f"{self._base_path}{path}"
        if query:
            url += "?" + urlencode(query)
        request_headers |= self._authorization()
        try:
            response: urllib3.response.BaseHTTPResponse = self._open_url(
                method,
                url,
                body=body,
                headers=request_headers,
                timeout=timeout,
                preload_content=not stream,
                redirect=False,
                retries=False,
            )
        except urllib3.exceptions.HTTPError as error:
            raise errors.ClusterUnavailable(f"{method} {path}: {type(error).__name__}") from error
        if response.status == 401:
            self._credentials = (0.0, {})
        return response

    def _authorization(self) -> dict[str, str]:
        """Return cached authorization headers. The official client reads its whole configuration for each token."""
        expires_at, auth_headers = self._credentials
        if time.monotonic() >= expires_at:
            auth_headers = {}
            self._client.update_params_for_auth(auth_headers, [], ["BearerToken"], "", "GET", None)
            self._credentials = (time.monotonic() + TOKEN_CACHE_SECONDS, auth_headers)
        return auth_headers
