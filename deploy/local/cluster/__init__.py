"""A simulated Kubernetes cluster: the part of the API that Berth uses, without containers."""

from __future__ import annotations

from deploy.local.cluster.cluster import SimulatedCluster

__all__ = ["SimulatedCluster"]
