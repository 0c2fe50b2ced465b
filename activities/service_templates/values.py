"""Variables of the templates: resources, quota, volumes and schedules of one instance."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from activities.service_templates.definitions import ServiceTemplate
from activities.service_templates.manifests import InstanceSpec
from workflows.rules.errors import ErrorCode, RuleViolation

JOB_CPU_MILLICORES = 250
JOB_MEMORY_MIB = 256
PROBE_CPU_MILLICORES = 100
PROBE_MEMORY_MIB = 128
MAX_CONCURRENT_JOBS = 2
"""Space in the quota beside the plan's resources for jobs that run next to the application (install, backup), and for
one readiness probe."""

SOLVER_CPU_MILLICORES, SOLVER_CPU_REQUEST_MILLICORES = 100, 10
SOLVER_MEMORY_MIB = 64
"""Space for the pod with which cert-manager answers an HTTP-01 challenge, by default as large as this."""

RETENTION = "backup_retention_days"
DEFAULT_RETENTION_DAYS = 7

_UNPRINTABLE = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ud800-\udfff\ufffe\uffff]")


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterProfile:
    """Settings of the cluster that apply to every instance.

    Attributes:
        cpu_request_percent, memory_request_percent: Share of a limit that is requested.
    """

    ingress_class: str = "nginx"
    ingress_namespace: str = "ingress-nginx"
    dns_namespace: str = "kube-system"
    cluster_issuer: str = "letsencrypt"
    storage_class: str | None = None
    cpu_request_percent: int = 10
    memory_request_percent: int = 50


def build_template_context(service: ServiceTemplate, spec: InstanceSpec, platform: ClusterProfile) -> dict[str, Any]:
    """Return the variables of a service's templates.

    Raises:
        RuleViolation: ``VALIDATION_ERROR`` for parameters or entitlements, ``NOT_FOUND`` for a version.
    """
    document = service.definition
    version = document["versions"].get(spec.version)
    if version is None:
        raise RuleViolation(ErrorCode.NOT_FOUND, f"{service.slug} has no version {spec.version!r}.")
    cpu, memory = spec.resources.cpu_millicores, spec.resources.memory_mib
    job_resources = _container_resources(JOB_CPU_MILLICORES, JOB_MEMORY_MIB, platform)
    volumes = _volume_sizes(document["volumes"], spec.resources.storage_gib)
    digest = int.from_bytes(hashlib.sha256(spec.instance_id.encode()).digest()[:4], "big")
    limited_cpu = cpu + MAX_CONCURRENT_JOBS * JOB_CPU_MILLICORES + PROBE_CPU_MILLICORES
    limited_memory = memory + MAX_CONCURRENT_JOBS * JOB_MEMORY_MIB + PROBE_MEMORY_MIB
    reserved_cpu = limited_cpu * platform.cpu_request_percent // 100
    reserved_memory = limited_memory * platform.memory_request_percent // 100
    return {
        "instance": {
            "id": spec.instance_id,
            "hostname": spec.hostname,
            "namespace": spec.namespace,
            "replicas": spec.resources.replicas,
        },
        "parameters": service.resolve_parameters(spec.parameters),
        "platform": platform,
        "images": version["images"],
        "ports": document["ports"],
        "probe": document["probe"],
        "pod_security": document["pod_security"]["level"],
        "egress_internet": document["egress"]["internet"],
        "ingress_body_size": document.get("ingress_body_size", "64m"),
        "components": {
            name: _container_resources(
                cpu * share["cpu_percent"] // 100, memory * share["memory_percent"] // 100, platform
            )
            for name, share in document["components"].items()
        },
        "volumes": {name: f"{size}Gi" for name, size in volumes.items()},
        "job_resources": job_resources,
        "probe_resources": _container_resources(PROBE_CPU_MILLICORES, PROBE_MEMORY_MIB, platform),
        "quota": {
            "requests_cpu": f"{reserved_cpu + 50 + SOLVER_CPU_REQUEST_MILLICORES}m",
            "requests_memory": f"{reserved_memory + 64 + SOLVER_MEMORY_MIB}Mi",
            "limits_cpu": f"{limited_cpu + SOLVER_CPU_MILLICORES}m",
            "limits_memory": f"{limited_memory + SOLVER_MEMORY_MIB}Mi",
            "storage": f"{sum(volumes.values())}Gi",
            "persistent_volume_claims": str(len(volumes)),
        },
        "backup_retention_days": str(_retention_days(spec.entitlements)),
        # Spread over the night; an instance keeps its minute.
        "backup_schedule": f"{digest % 60} {digest // 60 % 6} * * *",
    }


def quote_scalar(value: Any) -> str:
    """Return the value as JSON, which is valid YAML: strings are always quoted and escaped."""
    text = json.dumps(value, ensure_ascii=False)
    return _UNPRINTABLE.sub(lambda match: f"\\u{ord(match.group()):04x}", text)


def _container_resources(cpu_millicores: int, memory_mib: int, platform: ClusterProfile) -> dict[str, Any]:
    return {
        "cpu_millicores": cpu_millicores,
        "memory_mib": memory_mib,
        "limits": {"cpu": f"{cpu_millicores}m", "memory": f"{memory_mib}Mi"},
        "requests": {
            "cpu": f"{max(1, cpu_millicores * platform.cpu_request_percent // 100)}m",
            "memory": f"{max(1, memory_mib * platform.memory_request_percent // 100)}Mi",
        },
    }


def _retention_days(entitlements: Mapping[str, Any]) -> int:
    """Return for how many days backups are kept; the default if the plan's entitlements do not state it."""
    days = entitlements.get(RETENTION, DEFAULT_RETENTION_DAYS)
    if isinstance(days, bool) or not isinstance(days, int) or days < 1:
        raise RuleViolation(
            ErrorCode.VALIDATION_ERROR, f"{RETENTION}: {days!r} is not a number of days.", {"field": RETENTION}
        )
    return days


def _volume_sizes(shares: Mapping[str, Any], storage_gib: int) -> dict[str, int]:
    """Divide ``storage_gib`` among the volumes: rounded down, at least each minimum; the first gets the remainder."""
    sizes = {name: max(share["minimum_gib"], storage_gib * share["percent"] // 100) for name, share in shares.items()}
    remaining = storage_gib - sum(sizes.values())
    if remaining > 0:
        sizes[next(iter(sizes))] += remaining
    return sizes
