"""The real control plane: its pods, services and nodes have loopback addresses alone, and its nodes hold leases."""

from __future__ import annotations

from ipaddress import ip_address, ip_interface, ip_network
from typing import Any

from deploy.controlplane import control_plane
from tests.contracts.cluster.conftest import ClusterFixture
from tests.contracts.cluster.manifests import deployment, service

LOOPBACK = "127.0.0.0/8"
APPS = "apis/apps/v1"


def test_every_address_of_the_plane_is_a_loopback_address() -> None:
    for address in (control_plane.POD_RANGE, control_plane.SERVICE_RANGE, control_plane.NODE_ADDRESS):
        assert ip_interface(address).network.is_loopback, address
    assert not ip_interface(control_plane.POD_RANGE).network.overlaps(ip_network(control_plane.SERVICE_RANGE))


def test_addresses_that_the_plane_assigns_are_loopback_addresses(cluster: ClusterFixture) -> None:
    if cluster.target.name != "control-plane":
        # The simulation's addresses are text: nothing of it can dial.
        return
    cluster.apply("services", service("web", "web"))
    cluster.apply("deployments", deployment("web", 1), api=APPS)
    (pod,) = cluster.ready("web", 1)
    nodes: Any = cluster.core.list_node().items
    services: Any = cluster.core.list_service_for_all_namespaces().items
    addresses = {pod.status.pod_ip, pod.status.host_ip}
    addresses |= {item.spec.cluster_ip for item in services} - {"None"}
    addresses |= {item.address for node in nodes for item in node.status.addresses or ()}
    assert all(ip_address(item).is_loopback for item in addresses), addresses


def test_the_nodes_of_the_plane_hold_leases(cluster: ClusterFixture) -> None:
    if cluster.target.name != "control-plane":
        return
    nodes = {node.metadata.name for node in cluster.core.list_node().items}
    path = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"

    def leased() -> set[str]:
        return {lease["metadata"]["name"] for lease in cluster.raw("GET", path)[1]["items"]}

    cluster.eventually(lambda: leased() >= nodes, "a lease for every node")
