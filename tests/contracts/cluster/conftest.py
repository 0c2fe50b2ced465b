"""Every test that asks for `cluster` runs once per target: the simulated cluster, and the control plane where built."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import orjson
import pytest
from kubernetes import client
from kubernetes.client.exceptions import ApiException

from deploy.controlplane.build import find_binaries
from tests.contracts.cluster import targets
from tests.contracts.cluster.targets import Target, call
from tests.support import sandboxes
from tests.support.planes import ON_THE_PLANE
from tests.support.wait import wait_until_sync

Obj = dict[str, Any]

_numbers = itertools.count(1)

collect_ignore = [] if find_binaries() is not None else ["test_control_plane.py"]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "target_name" in metafunc.fixturenames:
        names = [pytest.param("simulated")]
        if find_binaries() is not None:
            names.append(ON_THE_PLANE)
        metafunc.parametrize("target_name", names, scope="package")


@pytest.fixture(scope="package")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    with targets.simulated(tmp_path_factory.mktemp("cluster")) as target:
        yield target


@pytest.fixture(scope="package")
def control_plane(control_plane_server: sandboxes.ClusterEndpoint) -> Target:
    # The deletion of a namespace alone takes some ten seconds there.
    return targets.create_target(control_plane_server, name="control-plane", timeout=40.0)


@pytest.fixture(scope="package")
def target(target_name: str, request: pytest.FixtureRequest) -> Target:
    endpoint: Target = request.getfixturevalue(target_name)
    return endpoint


class ClusterFixture:
    """A target with its clients and a namespace for the test."""

    def __init__(self, target: Target, namespace: str) -> None:
        self.target = target
        self.namespace = namespace
        self.client = target.api()
        # The client types every field as optional; a test fails if a field that it reads is absent.
        self.core: Any = client.CoreV1Api(self.client)
        self.apps = client.AppsV1Api(self.client)

    # ------------------------------------------------------------ raw

    def raw(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        kind: str = "application/json",
        headers: Obj | None = None,
        **query: Any,
    ) -> tuple[int, Any, Any]:
        """Send one request and return status, body and headers, also for an error."""
        settings = self.client.configuration
        url = f"{settings.host}{path}" + (f"?{urlencode(query)}" if query else "")
        sent = {
            "Content-Type": kind,
            "Accept": "application/json",
            "Authorization": settings.auth_settings()["BearerToken"]["value"],
        }
        data = orjson.dumps(body) if kind.endswith("yaml") else body
        response = self.client.rest_client.request(method, url, headers=sent | (headers or {}), body=data)
        text = response.read()
        try:
            return response.status, orjson.loads(text or b"null"), response.headers
        except orjson.JSONDecodeError:
            return response.status, text.decode(), response.headers

    def create(self, plural: str, obj: Obj, *, api: str = "api/v1", **query: Any) -> tuple[int, Any]:
        status, body, _ = self.raw("POST", self.path(plural, api=api), obj, **query)
        return status, body

    def get(self, plural: str, name: str, *, api: str = "api/v1") -> Obj:
        status, body, _ = self.raw("GET", self.path(plural, name, api=api))
        assert status == 200, body
        return dict(body)

    def status(self, plural: str, name: str, *, api: str = "api/v1") -> int:
        return self.raw("GET", self.path(plural, name, api=api))[0]

    def patch(
        self,
        plural: str,
        name: str,
        body: Any,
        *,
        api: str = "api/v1",
        form: str = "merge",
        sub: str = "",
        **query: Any,
    ) -> tuple[int, Any]:
        """`form`: merge, json or strategic-merge."""
        kind = f"application/{form}-patch+json"
        status, content, _ = self.raw("PATCH", self.path(plural, name, sub, api=api), body, kind=kind, **query)
        return status, content

    def delete(self, plural: str, name: str, body: Any = None, *, api: str = "api/v1", **query: Any) -> tuple[int, Any]:
        status, content, _ = self.raw("DELETE", self.path(plural, name, api=api), body, **query)
        return status, content

    def path(self, plural: str, name: str = "", sub: str = "", *, api: str = "api/v1") -> str:
        return "/".join(p for p in (f"/{api}/namespaces/{self.namespace}/{plural}", name, sub) if p)

    def apply(
        self, plural: str, obj: Obj, *, api: str = "api/v1", manager: str = "berth", sub: str = "", **query: Any
    ) -> tuple[int, Any]:
        """Server-side apply."""
        status, body, _ = self.raw(
            "PATCH",
            self.path(plural, obj["metadata"]["name"], sub, api=api),
            obj,
            kind="application/apply-patch+yaml",
            fieldManager=manager,
            **query,
        )
        return status, body

    # ------------------------------------------------------------ waiting

    def eventually(self, condition: Any, description: str) -> Any:
        return wait_until_sync(condition, timeout=self.target.timeout, description=description)

    def pods(self, app: str) -> list[Any]:
        listed = self.core.list_namespaced_pod(self.namespace, label_selector=f"app={app}").items
        return list(listed)

    def ready(self, app: str, count: int = 1) -> list[Any]:
        """Wait until exactly `count` pods of the app are ready and no other exists."""

        def all_ready() -> list[Any] | None:
            pods = self.pods(app)
            ready_pods = [
                p for p in pods if any(c.type == "Ready" and c.status == "True" for c in p.status.conditions or ())
            ]
            return pods if len(ready_pods) == count == len(pods) else None

        return list(self.eventually(all_ready, f"{count} ready pods of {app}"))


@pytest.fixture
def cluster(target: Target) -> Iterator[ClusterFixture]:
    yield from create_cluster_fixture(target)


@pytest.fixture
def sandbox(target: Target) -> Iterator[ClusterFixture]:
    """As `cluster`; faults are cleared afterwards."""
    try:
        yield from create_cluster_fixture(target)
    finally:
        call(f"{target.sandbox}/sandbox/faults", "DELETE")


@pytest.fixture
def simulated_cluster(simulated: Target) -> Iterator[ClusterFixture]:
    """The simulated cluster alone: kwok has no logs, and nothing may dial the addresses of its pods."""
    try:
        yield from create_cluster_fixture(simulated)
    finally:
        call(f"{simulated.sandbox}/sandbox/faults", "DELETE")


def create_cluster_fixture(target: Target) -> Iterator[ClusterFixture]:
    cluster = ClusterFixture(target, f"contract-{os.getpid()}-{next(_numbers)}")
    cluster.core.create_namespace({"metadata": {"name": cluster.namespace}})
    cluster.eventually(
        lambda: any(
            a.metadata.name == "default" for a in cluster.core.list_namespaced_service_account(cluster.namespace).items
        ),
        "the default service account",
    )
    try:
        yield cluster
    finally:
        try:
            cluster.core.delete_namespace(cluster.namespace)
        except ApiException as refused:
            # A test may have deleted it, or left a fault on.
            if refused.status not in (404, 409, 429, 503):
                raise
        cluster.client.close()


@pytest.fixture
def fault(sandbox: ClusterFixture) -> Any:
    """Switch on a fault: `fault("image_pull", count=1)`; in the test's namespace by default."""

    def switch(name: str, **more: Any) -> Obj:
        body = {"fault": name, "namespace": sandbox.namespace, **more}
        status, content = call(f"{sandbox.target.sandbox}/sandbox/faults", "POST", body)
        assert status == 201, content
        fault: Obj = content
        return fault

    return switch


@pytest.fixture
def clear(sandbox: ClusterFixture) -> Any:
    """Clear all faults."""
    return lambda: call(f"{sandbox.target.sandbox}/sandbox/faults", "DELETE")


@pytest.fixture(scope="session")
def kubectl_there() -> Path:
    path = shutil.which("kubectl")
    assert path, "kubectl is not installed"
    return Path(path)
