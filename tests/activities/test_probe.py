"""The readiness probe: what its pod may reach, what its command asks, and what becomes of its answers."""

from __future__ import annotations

import http.server
import os
import re
import shutil
import subprocess
import threading
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from temporalio.exceptions import ApplicationError

from tests.activities.test_templates import SERVICES, render
from tests.support.databases import DatabaseFixture
from tests.support.instance_fixture import InstanceFixture, create_instance_fixture
from tests.support.sandboxes import ClusterEndpoint
from workflows.ports.instances import AwaitReady

Labels = Mapping[str, str]
ROOT = Path(__file__).resolve().parents[2]


def command(slug: str) -> list[str]:
    command: list[str] = render(slug).probe["spec"]["template"]["spec"]["containers"][0]["command"]
    return command


PROBED = [slug for slug in SERVICES if shutil.which(command(slug)[0])]
"""Services whose probe's program is on this machine."""


# ------------------------------------------------- what an enforcing network lets through


def selects(selector: Mapping[str, Any], labels: Labels) -> bool:
    assert set(selector) <= {"matchLabels"}, "extend this evaluator"
    return bool(selector.get("matchLabels", {}).items() <= labels.items())


def allows(
    policies: Iterable[Any], own: Labels, peer: Labels, namespace: Labels | None, direction: str, port: Any = None
) -> bool:
    """Evaluate NetworkPolicies as a network plugin does.

    Args:
        own: Labels of the pod that the policies apply to.
        peer: Labels of the other pod.
        namespace: Labels of the other pod's namespace; None for the pods' own.
        direction: ``Ingress`` or ``Egress``.
        port: Number or name of the TCP port; None does not look at ports.
    """
    specs = [policy["spec"] for policy in policies]
    applied = [spec for spec in specs if selects(spec["podSelector"], own) and direction in spec["policyTypes"]]
    if not applied:
        return True
    side = {"Ingress": "from", "Egress": "to"}[direction]
    for rule in (rule for spec in applied for rule in spec.get(direction.lower(), [])):
        if port is not None and not any(
            (each["port"], each["protocol"]) == (port, "TCP")
            for each in rule.get("ports", [{"port": port, "protocol": "TCP"}])
        ):
            continue
        for other in rule[side]:
            if "ipBlock" in other:
                continue
            near = "namespaceSelector" not in other and namespace is None
            far = "namespaceSelector" in other and namespace is not None
            if (near or (far and selects(other["namespaceSelector"], namespace or {}))) and selects(
                other.get("podSelector", {}), peer
            ):
                return True
    return False


@pytest.mark.parametrize("slug", SERVICES)
def test_behind_an_enforcing_network_the_probe_reaches_the_application_and_names(slug: str) -> None:
    rendered = render(slug)
    policies = rendered.of_kind("NetworkPolicy")
    probe = rendered.probe["spec"]["template"]["metadata"]["labels"]
    (service,) = (manifest for manifest in rendered.of_kind("Service") if manifest["metadata"]["name"] == "app")
    (app,) = (
        manifest["spec"]["template"]["metadata"]["labels"]
        for manifest in rendered.of_kind("Deployment")
        if service["spec"]["selector"].items() <= manifest["spec"]["template"]["metadata"]["labels"].items()
    )
    dns = {"kubernetes.io/metadata.name": "kube-system"}
    assert allows(policies, probe, app, None, "Egress")
    assert allows(policies, app, probe, None, "Ingress")
    assert allows(policies, probe, {"k8s-app": "kube-dns"}, dns, "Egress")
    # The API server and pods of other namespaces are not let in: a probe through either would fail.
    assert not allows(policies, app, probe, {"kubernetes.io/metadata.name": "default"}, "Ingress")
    # No visitor is sent to the probe's pod.
    assert not service["spec"]["selector"].items() <= probe.items()


@pytest.mark.scenario("P25")
@pytest.mark.parametrize("slug", SERVICES)
def test_behind_an_enforcing_network_the_ingress_controller_reaches_the_solver_of_a_challenge(slug: str) -> None:
    policies = render(slug).of_kind("NetworkPolicy")
    solver = {"acme.cert-manager.io/http01-solver": "true", "acme.cert-manager.io/http-domain": "1"}
    controller = {"app.kubernetes.io/name": "ingress-nginx"}
    ingress, other = ({"kubernetes.io/metadata.name": name} for name in ("ingress-nginx", "berth-ins-other"))
    assert allows(policies, solver, controller, ingress, "Ingress", 8089)
    assert not allows(policies, solver, controller, ingress, "Ingress", 22)
    assert not allows(policies, solver, controller, other, "Ingress", 8089)
    # The exception is the solver's alone.
    assert not allows(policies, {"app.kubernetes.io/name": "database"}, controller, ingress, "Ingress", 8089)


@pytest.mark.parametrize("slug", SERVICES)
def test_the_probe_ends_by_itself(slug: str) -> None:
    spec = render(slug).probe["spec"]
    assert (spec["backoffLimit"], spec["template"]["spec"]["restartPolicy"]) == (0, "Never")
    assert spec["activeDeadlineSeconds"] <= 120
    assert spec["ttlSecondsAfterFinished"] <= 600


# ------------------------------------------------- its command, run for real


class Application(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, statuses: list[int]) -> None:
        super().__init__(("127.0.0.1", 0), ProbeHandler)
        self.statuses = statuses
        self.requests: list[tuple[str, str, str]] = []


class ProbeHandler(http.server.BaseHTTPRequestHandler):
    server: Application

    def do_GET(self) -> None:
        self.server.requests.append((self.path, self.headers["Host"], self.headers["X-Forwarded-Proto"]))
        self.send_response(self.server.statuses.pop(0) if len(self.server.statuses) > 1 else self.server.statuses[0])
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


@dataclass
class Asked:
    code: int
    output: str
    requests: list[tuple[str, str, str]] = field(default_factory=list)


def ask(slug: str, statuses: list[int]) -> Asked:
    """Run a probe's command as its container would, against an application that answers with ``statuses``."""
    (container,) = render(slug).probe["spec"]["template"]["spec"]["containers"]
    application = Application(statuses)
    threading.Thread(target=application.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        env = {variable["name"]: variable["value"] for variable in container["env"]}
        env["PROBE_URL"] = re.sub(r"//[^/]+", f"//127.0.0.1:{application.server_port}", env["PROBE_URL"])
        # Kubernetes replaces $(NAME) in commands.
        command = [re.sub(r"\$\((\w+)\)", lambda name: env[name[1]], word) for word in container["command"]]
        done = subprocess.run(
            command, env={"PATH": os.environ["PATH"], **env}, capture_output=True, text=True, timeout=60, check=False
        )
        return Asked(done.returncode, done.stderr, application.requests)
    finally:
        application.shutdown()
        application.server_close()


@pytest.mark.parametrize("slug", PROBED)
def test_the_probe_asks_as_the_ingress_controller_does_until_the_answer_is_good(slug: str) -> None:
    probed = ask(slug, [503, 404, 302])
    assert probed.code == 0, probed.output
    path = render(slug).service.definition["probe"]["path"]
    assert probed.requests == [(path, "shop.example.com", "https")] * 3


@pytest.mark.parametrize("slug", PROBED)
def test_the_probe_of_an_application_that_does_not_answer_fails_with_the_reason(slug: str) -> None:
    probed = ask(slug, [503])
    assert probed.code != 0
    assert "503" in probed.output
    assert len(probed.requests) > 3


# ------------------------------------------------- what becomes of its answers


@pytest_asyncio.fixture
async def instances(database: DatabaseFixture, cluster: ClusterEndpoint) -> AsyncIterator[InstanceFixture]:
    async with create_instance_fixture(
        database, cluster, failure_threshold=timedelta(seconds=3), deletion_timeout=timedelta(seconds=5)
    ) as fixture:
        yield fixture


async def test_an_application_that_does_not_answer_is_not_ready_and_leaves_no_probe(instances: InstanceFixture) -> None:
    instance_id = await instances.insert_instance()
    await instances.provision(instance_id)
    assert await instances.gateway.list("Job", instances.namespace(instance_id)) == []
    # Only pods made from now on crash: the application's run.
    await instances.inject_fault("crash_loop", instance_id)
    with pytest.raises(ApplicationError) as raised:
        await instances.run_activity(
            instances.cluster_activities.await_ready, AwaitReady(instance_id=instance_id, is_starting=True)
        )
    assert (raised.value.type, raised.value.non_retryable) == ("ProbeFailed", True)
    assert "The application does not answer" in raised.value.message
    assert (await instances.row(instance_id))["failure_reason"] == "ProbeFailed"
    assert await instances.gateway.list("Job", instances.namespace(instance_id)) == []
    await instances.clear_faults()
    await instances.run_activity_with_retries(
        instances.cluster_activities.await_ready, AwaitReady(instance_id=instance_id, is_starting=True)
    )


# ------------------------------------------------- nothing dials an address of a pod or a service


def test_no_module_uses_the_api_servers_proxy_or_dials_a_pod_or_service() -> None:
    dialled = re.compile(r"[\"'/]proxy[\"'/]|\b(podIP|pod_ip|clusterIP|cluster_ip|hostIP|host_ip)\b")
    offenders = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for folder in ("activities", "workflows", "worker", "api", "tests/bench")
        for path in (ROOT / folder).rglob("*.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        if dialled.search(line) and not line.strip().startswith("#")
    ]
    assert offenders == []
