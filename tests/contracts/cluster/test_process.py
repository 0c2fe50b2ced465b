"""The simulated cluster as a process: acknowledged writes and the kubeconfig survive, and signals stop it."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml
from kubernetes import client, config

from deploy.local.cluster import SimulatedCluster
from tests.contracts.cluster.manifests import deployment
from tests.contracts.cluster.targets import ClusterProcess, call
from tests.support.wait import wait_until_sync


@pytest.fixture
def process(tmp_path: Path) -> Iterator[ClusterProcess]:
    started = ClusterProcess(tmp_path)
    started.start()
    yield started
    started.kill()


def _core(kubeconfig: Path) -> Any:
    settings = client.Configuration()
    config.load_kube_config(config_file=str(kubeconfig), client_configuration=settings)
    return client.CoreV1Api(client.ApiClient(settings))


def test_objects_and_versions_survive_kill_9(process: ClusterProcess) -> None:
    core = _core(process.kubeconfig)
    core.create_namespace({"metadata": {"name": "kept"}})
    created: Any = None
    for number in range(20):
        created = core.create_namespaced_config_map(
            "kept", {"metadata": {"name": f"m{number}"}, "data": {"n": str(number)}}
        )
    core.delete_namespaced_config_map("m0", "kept")
    token = process.kubeconfig.read_text()
    process.kill()
    process.start()
    assert process.kubeconfig.read_text() == token
    core = _core(process.kubeconfig)
    config_maps = core.list_namespaced_config_map("kept")
    assert {m.metadata.name for m in config_maps.items} - {"kube-root-ca.crt"} == {f"m{n}" for n in range(1, 20)}
    assert int(config_maps.metadata.resource_version) > int(created.metadata.resource_version)
    last = next(m for m in config_maps.items if m.metadata.name == "m19")
    assert (last.metadata.uid, last.metadata.resource_version) == (
        created.metadata.uid,
        created.metadata.resource_version,
    )


def test_controllers_resume_after_kill_9(process: ClusterProcess) -> None:
    core = _core(process.kubeconfig)
    core.create_namespace({"metadata": {"name": "kept"}})
    apps: Any = client.AppsV1Api(core.api_client)
    apps.create_namespaced_deployment("kept", deployment("web", 3))
    # At once: pods are between nothing and ready.
    process.kill()
    process.start()
    core = _core(process.kubeconfig)

    def ready() -> bool:
        pods = core.list_namespaced_pod("kept").items
        good = [p for p in pods if any(c.type == "Ready" and c.status == "True" for c in p.status.conditions or [])]
        return len(good) == len(pods) == 3

    wait_until_sync(ready, description="three ready pods")


def test_a_torn_last_line_is_dropped(process: ClusterProcess) -> None:
    core = _core(process.kubeconfig)
    core.create_namespace({"metadata": {"name": "kept"}})
    process.kill()
    journal = process.directory / "state" / "objects.jsonl"
    with journal.open("ab") as file:
        file.write(b'{"k":"/configmaps","ns":"kept","n":"torn","rv":99999,"o":{"api')
    process.start()
    core = _core(process.kubeconfig)
    assert "kept" in {n.metadata.name for n in core.list_namespace().items}
    core.create_namespaced_config_map("kept", {"metadata": {"name": "after"}})
    process.kill()
    process.start()
    assert _core(process.kubeconfig).read_namespaced_config_map("after", "kept")
    assert all(orjson.loads(line) for line in journal.read_bytes().splitlines())


def test_sigterm_stops_the_cluster_cleanly(tmp_path: Path) -> None:
    process = ClusterProcess(tmp_path)
    process.start()
    assert process.stop() == 0


def test_the_kubeconfig_is_private_and_complete(process: ClusterProcess) -> None:
    assert stat.S_IMODE(os.stat(process.kubeconfig).st_mode) == 0o600
    kubeconfig: Any = yaml.safe_load(process.kubeconfig.read_text())
    assert kubeconfig["clusters"][0]["cluster"]["server"] == process.url
    assert kubeconfig["users"][0]["user"]["token"]


def test_requests_need_the_token(process: ClusterProcess) -> None:
    status, error = call(f"{process.url}/api/v1/namespaces")
    assert (status, error["reason"]) == (401, "Unauthorized")
    assert call(f"{process.url}/sandbox/faults") == (200, {"faults": []})


async def test_the_cluster_runs_inside_another_program(tmp_path: Path) -> None:
    async with SimulatedCluster(speed=5.0) as cluster:
        core = await asyncio.to_thread(_core, cluster.kubeconfig_path)
        names = {n.metadata.name for n in (await asyncio.to_thread(core.list_namespace)).items}
        assert {"default", "kube-system"} <= names
        kubeconfig = cluster.kubeconfig_path
        core.api_client.rest_client.pool_manager.clear()
    assert not kubeconfig.exists()
