"""Every test that asks for `cluster` runs once per target; `sandbox` tests need faults and so the simulation."""

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

from deploy.controlplane.build import built
from deploy.controlplane.plane import ControlPlane
from tests.contracts.cluster import targets
from tests.contracts.cluster.targets import Target, call
from tests.support.wait import eventually_sync

Obj = dict[str, Any]

_numbers = itertools.count(1)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "target_name" in metafunc.fixturenames:
        names = [pytest.param("simulated")]
        if built() is not None:
            # One worker, so that there is one plane: it takes half a gigabyte and some seconds to come up.
            marks = (pytest.mark.controlplane, pytest.mark.xdist_group("control-plane"))
            names.append(pytest.param("control_plane", marks=marks))
        metafunc.parametrize("target_name", names, scope="package")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if built() is None:
        terminalreporter.write_line(
            "no real control plane here (`make control-plane`): the cluster's contract was held to the simulation only"
        )


@pytest.fixture(scope="package")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    with targets.simulated(tmp_path_factory.mktemp("cluster")) as target:
        yield target


@pytest.fixture(scope="package")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    with ControlPlane(tmp_path_factory.mktemp("plane")) as plane:
        # Ending a namespace alone takes it some ten seconds.
        yield Target(name="control-plane", kubeconfig=plane.kubeconfig_path, sandbox=None, patience=40.0)


@pytest.fixture(scope="package")
def target(target_name: str, request: pytest.FixtureRequest) -> Target:
    found: Target = request.getfixturevalue(target_name)
    return found


class Cluster:
    """A target with its clients, and a namespace of the test's own."""

    def __init__(self, target: Target, namespace: str) -> None:
        self.target = target
        self.namespace = namespace
        self.client = target.api()
        # The client types every field as possibly absent; what the tests ask for is there or they fail.
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
        """One request as it is: status, body, headers. Refusals are answers like any other."""
        settings = self.client.configuration
        url = f"{settings.host}{path}" + (f"?{urlencode(query)}" if query else "")
        sent = {
            "Content-Type": kind,
            "Accept": "application/json",
            "Authorization": settings.auth_settings()["BearerToken"]["value"],
        }
        data = orjson.dumps(body) if kind.endswith("yaml") else body
        answer = self.client.rest_client.request(method, url, headers=sent | (headers or {}), body=data)
        text = answer.read()
        try:
            return answer.status, orjson.loads(text or b"null"), answer.headers
        except orjson.JSONDecodeError:
            return answer.status, text.decode(), answer.headers

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
        status, answer, _ = self.raw("PATCH", self.path(plural, name, sub, api=api), body, kind=kind, **query)
        return status, answer

    def delete(self, plural: str, name: str, body: Any = None, *, api: str = "api/v1", **query: Any) -> tuple[int, Any]:
        status, answer, _ = self.raw("DELETE", self.path(plural, name, api=api), body, **query)
        return status, answer

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

    def eventually(self, look: Any, what: str) -> Any:
        return eventually_sync(look, timeout=self.target.patience, what=what)

    def pods(self, app: str) -> list[Any]:
        found = self.core.list_namespaced_pod(self.namespace, label_selector=f"app={app}").items
        return list(found)

    def ready(self, app: str, count: int = 1) -> list[Any]:
        """Wait until exactly `count` pods of the app are ready and no other is left."""

        def look() -> list[Any] | None:
            found = self.pods(app)
            good = [
                p for p in found if any(c.type == "Ready" and c.status == "True" for c in p.status.conditions or ())
            ]
            return found if len(good) == count == len(found) else None

        return list(self.eventually(look, f"{count} ready pods of {app}"))


@pytest.fixture
def cluster(target: Target) -> Iterator[Cluster]:
    yield from _cluster(target)


@pytest.fixture
def sandbox(simulated: Target) -> Iterator[Cluster]:
    """The simulated cluster; faults are cleared afterwards."""
    try:
        yield from _cluster(simulated)
    finally:
        call(f"{simulated.sandbox}/sandbox/faults", "DELETE")


def _cluster(target: Target) -> Iterator[Cluster]:
    made = Cluster(target, f"contract-{os.getpid()}-{next(_numbers)}")
    made.core.create_namespace({"metadata": {"name": made.namespace}})
    made.eventually(
        lambda: any(
            a.metadata.name == "default" for a in made.core.list_namespaced_service_account(made.namespace).items
        ),
        "the default service account",
    )
    try:
        yield made
    finally:
        try:
            made.core.delete_namespace(made.namespace)
        except ApiException as refused:
            # A test may have deleted it, or left a fault on.
            if refused.status not in (404, 409, 429, 503):
                raise
        made.client.close()


@pytest.fixture
def fault(sandbox: Cluster) -> Any:
    """Switch on a fault: `fault("image_pull", count=1)`; in the test's namespace unless said otherwise."""

    def switch(name: str, **more: Any) -> Obj:
        body = {"fault": name, "namespace": sandbox.namespace, **more}
        status, answer = call(f"{sandbox.target.sandbox}/sandbox/faults", "POST", body)
        assert status == 201, answer
        found: Obj = answer
        return found

    return switch


@pytest.fixture
def clear(sandbox: Cluster) -> Any:
    """Clear all faults."""
    return lambda: call(f"{sandbox.target.sandbox}/sandbox/faults", "DELETE")


@pytest.fixture(scope="session")
def kubectl_there() -> Path:
    found = shutil.which("kubectl")
    assert found, "kubectl is not installed"
    return Path(found)
