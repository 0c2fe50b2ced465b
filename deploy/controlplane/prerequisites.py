"""What a bare control plane lacks and instances need: nodes, volumes, the kinds of cert-manager."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import yaml

from deploy.controlplane.client import KubernetesApi, UnexpectedResponse

Manifest = dict[str, Any]
NODE_CAPACITY = {"cpu": "128", "memory": "512Gi", "ephemeral-storage": "2Ti", "pods": "2000"}
PROVISIONER_NAME = "berth.local/provisioner"
CLAIMS_PATH, VOLUMES_PATH = "/api/v1/persistentvolumeclaims", "/api/v1/persistentvolumes"
SERVED_WITHIN_SECONDS = 30.0
SELECTED_NODE_ANNOTATION = "volume.kubernetes.io/selected-node"


def create_prerequisites(api: KubernetesApi, nodes: int) -> None:
    """Create nodes for kwok to simulate, a default storage class, and cert-manager's kinds (without an issuer)."""
    for number in range(1, nodes + 1):
        name = f"node-{number}"
        labels = {
            "kubernetes.io/hostname": name,
            "kubernetes.io/os": "linux",
            "kubernetes.io/arch": "amd64",
            "topology.kubernetes.io/zone": f"local-{number}",
        }
        node: Manifest = {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": name, "labels": labels, "annotations": {"kwok.x-k8s.io/node": "fake"}},
            "status": {"allocatable": NODE_CAPACITY, "capacity": NODE_CAPACITY},
        }
        api.create_if_missing("/api/v1/nodes", name, node)
    storage: Manifest = {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {"name": "standard", "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}},
        "provisioner": PROVISIONER_NAME,
        "volumeBindingMode": "WaitForFirstConsumer",
        "allowVolumeExpansion": True,
    }
    api.create_if_missing("/apis/storage.k8s.io/v1/storageclasses", "standard", storage)
    for plural, kind, scope, short in (
        ("certificates", "Certificate", "Namespaced", ["cert", "certs"]),
        ("issuers", "Issuer", "Namespaced", []),
        ("clusterissuers", "ClusterIssuer", "Cluster", []),
    ):
        free = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
        schema = {"type": "object", "properties": {"spec": free, "status": free}}
        definition: Manifest = {
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
        api.create_if_missing("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", plural, definition)


def install_stages(api: KubernetesApi) -> None:
    """Create the kind Stage and the stages by which kwok plays nodes and pods (`stages.yaml`)."""
    free = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    version: Manifest = {
        "name": "v1alpha1",
        "served": True,
        "storage": True,
        "subresources": {"status": {}},
        "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": free, "status": free}}},
    }
    names = {"plural": "stages", "singular": "stage", "kind": "Stage", "listKind": "StageList"}
    definition: Manifest = {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "stages.kwok.x-k8s.io"},
        "spec": {"group": "kwok.x-k8s.io", "scope": "Cluster", "names": names, "versions": [version]},
    }
    api.create_if_missing("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", "stages.kwok.x-k8s.io", definition)
    path = "/apis/kwok.x-k8s.io/v1alpha1/stages"
    deadline = time.monotonic() + SERVED_WITHIN_SECONDS
    while api.call("GET", path)[0] == 404 and time.monotonic() < deadline:
        time.sleep(0.05)
    for stage in yaml.safe_load_all(Path(__file__).with_name("stages.yaml").read_text()):
        name = stage["metadata"]["name"]
        # Replaced, so that a state directory of an older version gets the stages of this one.
        api.call("DELETE", f"{path}/{name}")
        api.create_if_missing(path, name, stage)


class VolumeProvisioner(threading.Thread):
    """Gives every claim that a pod waits for a volume, and takes the volume away with the claim."""

    def __init__(self, api: KubernetesApi) -> None:
        super().__init__(name="provisioner", daemon=True)
        self._api = api
        self._ended = threading.Event()

    def stop(self) -> None:
        """Make no more volumes. The thread itself ends with its watch."""
        self._ended.set()

    def run(self) -> None:
        while not self._ended.is_set():
            try:
                for event in self._api.watch(CLAIMS_PATH, 5):
                    if self._ended.is_set():
                        return
                    if event["type"] in ("ADDED", "MODIFIED"):
                        self._provision_volume(event["object"])
                    elif event["type"] == "DELETED":
                        self._delete_volume(event["object"])
            except (OSError, UnexpectedResponse, ValueError):
                # The API server is restarting or has stopped: retry until `stop` is called.
                self._ended.wait(0.2)

    def _provision_volume(self, claim: Manifest) -> None:
        meta, spec = claim["metadata"], claim["spec"]
        chosen = (meta.get("annotations") or {}).get(SELECTED_NODE_ANNOTATION)
        if spec.get("volumeName") or not chosen or meta.get("deletionTimestamp"):
            return
        name = f"pvc-{meta['uid']}"
        reference = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": meta["namespace"]}
        volume: Manifest = {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": name, "annotations": {"pv.kubernetes.io/provisioned-by": PROVISIONER_NAME}},
            "spec": {
                "capacity": spec["resources"]["requests"],
                "accessModes": spec["accessModes"],
                "persistentVolumeReclaimPolicy": "Retain",
                "storageClassName": spec.get("storageClassName", ""),
                "claimRef": {**reference, "name": meta["name"], "uid": meta["uid"]},
                "hostPath": {"path": f"/var/simulated/{name}"},
            },
        }
        self._api.create_if_missing(VOLUMES_PATH, name, volume)

    def _delete_volume(self, claim: Manifest) -> None:
        name = claim["spec"].get("volumeName")
        if name:
            self._api.call("DELETE", f"{VOLUMES_PATH}/{name}")
