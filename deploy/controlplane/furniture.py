"""What a bare control plane lacks and instances need: nodes, volumes, the kinds of cert-manager."""

from __future__ import annotations

import threading
from typing import Any

from deploy.controlplane.client import Api, ApiRefused

Obj = dict[str, Any]
CAPACITY = {"cpu": "128", "memory": "512Gi", "ephemeral-storage": "2Ti", "pods": "2000"}
PROVISIONER = "berth.local/provisioner"
CLAIMS, VOLUMES = "/api/v1/persistentvolumeclaims", "/api/v1/persistentvolumes"
SELECTED = "volume.kubernetes.io/selected-node"


def furnish(api: Api, nodes: int) -> None:
    """Nodes for kwok to play, a default storage class, and cert-manager's kinds (nobody issues anything)."""
    for number in range(1, nodes + 1):
        name = f"node-{number}"
        labels = {
            "kubernetes.io/hostname": name,
            "kubernetes.io/os": "linux",
            "kubernetes.io/arch": "amd64",
            "topology.kubernetes.io/zone": f"local-{number}",
        }
        node: Obj = {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": name, "labels": labels, "annotations": {"kwok.x-k8s.io/node": "fake"}},
            "status": {"allocatable": CAPACITY, "capacity": CAPACITY},
        }
        api.ensure("/api/v1/nodes", name, node)
    storage: Obj = {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {"name": "standard", "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}},
        "provisioner": PROVISIONER,
        "volumeBindingMode": "WaitForFirstConsumer",
        "allowVolumeExpansion": True,
    }
    api.ensure("/apis/storage.k8s.io/v1/storageclasses", "standard", storage)
    for plural, kind, scope, short in (
        ("certificates", "Certificate", "Namespaced", ["cert", "certs"]),
        ("issuers", "Issuer", "Namespaced", []),
        ("clusterissuers", "ClusterIssuer", "Cluster", []),
    ):
        free = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
        schema = {"type": "object", "properties": {"spec": free, "status": free}}
        definition: Obj = {
            "apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition",
            "metadata": {"name": f"{plural}.cert-manager.io"},
            "spec": {
                "group": "cert-manager.io",
                "scope": scope,
                "names": {"plural": plural, "singular": kind.lower(), "kind": kind, "shortNames": short},
                "versions": [
                    {
                        "name": "v1",
                        "served": True,
                        "storage": True,
                        "subresources": {"status": {}},
                        "schema": {"openAPIV3Schema": schema},
                    }
                ],
            },
        }
        api.ensure("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", plural, definition)


class Provisioner(threading.Thread):
    """Gives every claim that a pod waits for a volume, and takes the volume away with the claim."""

    def __init__(self, api: Api) -> None:
        super().__init__(name="provisioner", daemon=True)
        self._api = api
        self._ended = threading.Event()

    def stop(self) -> None:
        """Make no more volumes. The thread itself ends with its watch."""
        self._ended.set()

    def run(self) -> None:
        while not self._ended.is_set():
            try:
                for event in self._api.watch(CLAIMS, 5):
                    if self._ended.is_set():
                        return
                    if event["type"] in ("ADDED", "MODIFIED"):
                        self._provide(event["object"])
                    elif event["type"] == "DELETED":
                        self._take_away(event["object"])
            except (OSError, ApiRefused, ValueError):
                # The server is going or has gone; whoever owns it says when this ends.
                self._ended.wait(0.2)

    def _provide(self, claim: Obj) -> None:
        meta, spec = claim["metadata"], claim["spec"]
        chosen = (meta.get("annotations") or {}).get(SELECTED)
        if spec.get("volumeName") or not chosen or meta.get("deletionTimestamp"):
            return
        name = f"pvc-{meta['uid']}"
        reference = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": meta["namespace"]}
        volume: Obj = {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": name, "annotations": {"pv.kubernetes.io/provisioned-by": PROVISIONER}},
            "spec": {
                "capacity": spec["resources"]["requests"],
                "accessModes": spec["accessModes"],
                "persistentVolumeReclaimPolicy": "Retain",
                "storageClassName": spec.get("storageClassName", ""),
                "claimRef": {**reference, "name": meta["name"], "uid": meta["uid"]},
                "hostPath": {"path": f"/var/simulated/{name}"},
            },
        }
        self._api.ensure(VOLUMES, name, volume)

    def _take_away(self, claim: Obj) -> None:
        name = claim["spec"].get("volumeName")
        if name:
            self._api.call("DELETE", f"{VOLUMES}/{name}")
