"""What an application is, read from ``templates/services``, and its Kubernetes objects for one instance.

No application is named here: adding one is adding a folder. Values reach a manifest only as quoted, escaped scalars
(see ``_scalar``), so that nothing that a customer types can end its field, whatever the template's author wrote.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jsonschema
import orjson
import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from workflows.ports.subscription import Resources
from workflows.rules.errors import Refusal, RuleBroken

Object = dict[str, Any]

MANAGED_BY = "app.kubernetes.io/managed-by"
INSTANCE = "berth/instance"
ACCOUNT = "berth/account"
MANAGER = "berth"

KINDS = frozenset(
    {
        "ConfigMap", "CronJob", "Deployment", "Ingress", "Job", "LimitRange", "Namespace", "NetworkPolicy",
        "PersistentVolumeClaim", "ResourceQuota", "Service", "ServiceAccount", "StatefulSet",
    }
)  # fmt: skip
"""What templates may make. Secrets are declared in ``service.yaml`` instead, so that no manifest holds one."""

KEPT = 256
"""How many instances' objects are remembered: the steps of one order follow each other within seconds."""

_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_UNPRINTABLE = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ud800-\udfff\ufffe\uffff]")
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

HELPER_CPU_MILLICORES = 250
HELPER_MEMORY_MIB = 256
HELPERS = 2
"""Room in the quota beside the plan's envelope for jobs that run next to the application (install, backup)."""


class BadTemplate(Exception):
    """A service's folder is wrong. Its author has to correct it; no retry helps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Platform:
    """What the cluster offers to every instance.

    Attributes:
        probe_cidrs: Networks the API server connects from; the smoke probe comes from there.
        cpu_request_percent, memory_request_percent: How much of a limit is reserved.
    """

    ingress_class: str = "nginx"
    ingress_namespace: str = "ingress-nginx"
    dns_namespace: str = "kube-system"
    cluster_issuer: str = "letsencrypt"
    storage_class: str | None = None
    probe_cidrs: tuple[str, ...] = ()
    cpu_request_percent: int = 10
    memory_request_percent: int = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceSpec:
    """One instance as the database describes it. Millicores, MiB and GiB."""

    instance_id: str
    organization_id: str
    service_slug: str
    version: str
    hostname: str
    namespace: str
    resources: Resources
    parameters: Mapping[str, Any] = field(default_factory=dict)

    @property
    def labels(self) -> dict[str, str]:
        return {MANAGED_BY: MANAGER, INSTANCE: self.instance_id, ACCOUNT: self.organization_id}


@dataclass(frozen=True, slots=True, kw_only=True)
class Generated:
    """How one value of a Secret is made, once."""

    length: int
    alphabet: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """What is asked through the Service before an instance counts as ready. 2xx and 3xx are good answers."""

    service: str
    port: str
    path: str
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """One ``service.yaml``. ``document`` is the whole of it, for the catalogue."""

    slug: str
    document: Mapping[str, Any]
    secrets: Mapping[str, Mapping[str, Generated]]
    probe: Probe
    ready_within_seconds: int
    backup_cron_job: str | None
    validator: jsonschema.Draft202012Validator

    @property
    def version(self) -> str:
        return str(self.document["version"])

    def parameters(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the customer's choices with defaults filled in.

        Raises:
            RuleBroken: ``VALIDATION_ERROR`` with the field's path and what is wrong with it.
        """
        properties: Mapping[str, Any] = self.document["parameters"].get("properties", {})
        filled = {name: schema["default"] for name, schema in properties.items() if "default" in schema} | dict(given)
        for error in self.validator.iter_errors(filled):
            where = ".".join(str(part) for part in error.absolute_path) or "parameters"
            raise RuleBroken(Refusal.VALIDATION_ERROR, f"{where}: {error.message}", {"field": where})
        return filled


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendered:
    """An instance's objects, Secrets left out, in no particular order; each labelled, named and in its namespace."""

    spec: InstanceSpec
    service: Service
    objects: tuple[Object, ...]

    def of(self, *kinds: str) -> tuple[Object, ...]:
        return tuple(found for found in self.objects if found["kind"] in kinds)

    @property
    def workloads(self) -> tuple[tuple[str, str], ...]:
        """Kind and name of what has to run or complete before the instance is ready."""
        return tuple(
            (found["kind"], found["metadata"]["name"]) for found in self.of("StatefulSet", "Deployment", "Job")
        )


class ServiceTemplates:
    """Every service under ``root``, compiled once."""

    def __init__(self, root: Path, platform: Platform | None = None) -> None:
        self._root = root
        self._platform = platform or Platform()
        self._environment = Environment(
            loader=FileSystemLoader(root),
            undefined=StrictUndefined,
            finalize=_scalar,
            autoescape=False,  # noqa: S701 - the output is YAML, and `finalize` escapes for it
            trim_blocks=False,
            keep_trailing_newline=True,
        )
        self.services: Mapping[str, Service] = {
            path.parent.name: _service(path) for path in sorted(root.glob("[!_]*/service.yaml"))
        }
        self._kept: dict[str, Rendered] = {}
        base = self._compiled("_base")
        self._templates = {slug: base + self._compiled(slug) for slug in self.services}

    def service(self, slug: str) -> Service:
        """Raises: ``RuleBroken`` ``NOT_FOUND``."""
        try:
            return self.services[slug]
        except KeyError:
            raise RuleBroken(Refusal.NOT_FOUND, f"There is no service {slug!r}.") from None

    def render(self, spec: InstanceSpec) -> Rendered:
        """Return the objects of ``spec``, to be read and not changed.

        Raises:
            RuleBroken: ``VALIDATION_ERROR`` for parameters, ``NOT_FOUND`` for a service or version.
            BadTemplate: the folder's manifests are wrong.
        """
        kept = self._kept.get(spec.instance_id)
        if kept is not None and kept.spec == spec:
            return kept
        rendered = self._render(spec)
        if len(self._kept) >= KEPT:
            self._kept.pop(next(iter(self._kept)), None)
        self._kept[spec.instance_id] = rendered
        return rendered

    def _render(self, spec: InstanceSpec) -> Rendered:
        service = self.service(spec.service_slug)
        context = self._context(service, spec)
        objects = tuple(
            _finished(document, spec)
            for template in self._templates[service.slug]
            for document in yaml.load_all(template.render(context), Loader=_LOADER)
            if document is not None
        )
        seen: set[tuple[str, str]] = set()
        for found in objects:
            identity = (found["kind"], found["metadata"]["name"])
            if identity in seen:
                raise BadTemplate(f"{service.slug}: {identity} is there twice")
            seen.add(identity)
        return Rendered(spec=spec, service=service, objects=objects)

    def _compiled(self, folder: str) -> list[Template]:
        # A name that begins with an underscore is only included by others.
        names = sorted(path.name for path in (self._root / folder).glob("[!_]*.yaml.j2"))
        return [self._environment.get_template(f"{folder}/{name}") for name in names]

    def _context(self, service: Service, spec: InstanceSpec) -> dict[str, Any]:
        document = service.document
        version = document["versions"].get(spec.version)
        if version is None:
            raise RuleBroken(Refusal.NOT_FOUND, f"{service.slug} has no version {spec.version!r}.")
        cpu, memory = spec.resources.cpu_millicores, spec.resources.memory_mib
        helper = self._envelope(HELPER_CPU_MILLICORES, HELPER_MEMORY_MIB)
        volumes = _volumes(document["volumes"], spec.resources.storage_gib)
        digest = int.from_bytes(hashlib.sha256(spec.instance_id.encode()).digest()[:4], "big")
        reserved_cpu = (cpu + HELPERS * HELPER_CPU_MILLICORES) * self._platform.cpu_request_percent // 100
        reserved_memory = (memory + HELPERS * HELPER_MEMORY_MIB) * self._platform.memory_request_percent // 100
        return {
            "instance": {
                "id": spec.instance_id,
                "hostname": spec.hostname,
                "namespace": spec.namespace,
                "replicas": spec.resources.replicas,
            },
            "parameters": service.parameters(spec.parameters),
            "platform": self._platform,
            "images": version["images"],
            "ports": document["ports"],
            "probe": document["probe"],
            "pod_security": document["pod_security"]["level"],
            "egress_internet": document["egress"]["internet"],
            "ingress_body_size": document.get("ingress_body_size", "64m"),
            "components": {
                name: self._envelope(cpu * share["cpu_percent"] // 100, memory * share["memory_percent"] // 100)
                for name, share in document["components"].items()
            },
            "volumes": {name: f"{size}Gi" for name, size in volumes.items()},
            "helper": helper,
            "quota": {
                "requests_cpu": f"{reserved_cpu + 50}m",
                "requests_memory": f"{reserved_memory + 64}Mi",
                "limits_cpu": f"{cpu + HELPERS * HELPER_CPU_MILLICORES}m",
                "limits_memory": f"{memory + HELPERS * HELPER_MEMORY_MIB}Mi",
                "storage": f"{sum(volumes.values())}Gi",
                "claims": str(len(volumes)),
            },
            # Spread over the night, the same minute for the same instance.
            "backup_schedule": f"{digest % 60} {digest // 60 % 6} * * *",
        }

    def _envelope(self, cpu_millicores: int, memory_mib: int) -> dict[str, Any]:
        return {
            "cpu_millicores": cpu_millicores,
            "memory_mib": memory_mib,
            "limits": {"cpu": f"{cpu_millicores}m", "memory": f"{memory_mib}Mi"},
            "requests": {
                "cpu": f"{max(1, cpu_millicores * self._platform.cpu_request_percent // 100)}m",
                "memory": f"{max(1, memory_mib * self._platform.memory_request_percent // 100)}Mi",
            },
        }


def _scalar(value: Any) -> str:
    """Print a value as JSON, which is YAML: a string always in quotes, escaped."""
    text = json.dumps(value, ensure_ascii=False)
    return _UNPRINTABLE.sub(lambda match: f"\\u{ord(match.group()):04x}", text)


def _volumes(shares: Mapping[str, Any], storage_gib: int) -> dict[str, int]:
    """Share ``storage_gib`` out. Rounded down, with each volume's minimum; the first volume takes what is left over."""
    sizes = {name: max(share["minimum_gib"], storage_gib * share["percent"] // 100) for name, share in shares.items()}
    left = storage_gib - sum(sizes.values())
    if left > 0:
        sizes[next(iter(sizes))] += left
    return sizes


def _service(path: Path) -> Service:
    document = yaml.load(path.read_text(encoding="utf-8"), Loader=_LOADER)  # noqa: S506 - a safe loader
    try:
        if document["slug"] != path.parent.name or str(document["version"]) not in document["versions"]:
            raise BadTemplate(f"{path}: slug and folder, or version and versions, do not agree")
        probe = document["probe"]
        return Service(
            slug=document["slug"],
            document=document,
            secrets={
                name: {key: Generated(**how) for key, how in keys.items()}
                for name, keys in document.get("secrets", {}).items()
            },
            probe=Probe(
                service=probe["service"], port=probe["port"], path=probe["path"], headers=dict(probe["headers"])
            ),
            ready_within_seconds=document["ready_within_seconds"],
            backup_cron_job=document.get("backup", {}).get("cron_job"),
            validator=jsonschema.Draft202012Validator(
                document["parameters"], format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER
            ),
        )
    except (KeyError, TypeError) as error:
        raise BadTemplate(f"{path}: {error!r}") from error


def _finished(document: Any, spec: InstanceSpec) -> Object:
    """Check one document and add what every object bears."""
    if not isinstance(document, dict) or document.get("kind") not in KINDS or not document.get("apiVersion"):
        raise BadTemplate(f"not an object that a service may make: {str(document)[:80]}")
    # A copy, since anchors make two fields one object: labels added to one would appear in the other.
    made: Object = orjson.loads(orjson.dumps(document))
    metadata = made.setdefault("metadata", {})
    name = metadata.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise BadTemplate(f"{made['kind']} with the name {name!r}")
    if made["kind"] != "Namespace":
        metadata["namespace"] = spec.namespace
    elif name != spec.namespace:
        raise BadTemplate(f"a namespace {name!r} that is not the instance's")
    for part in _labelled(made):
        part.setdefault("labels", {}).update(spec.labels)
    return made


def _labelled(made: Object) -> Iterator[Object]:
    """The metadata of an object and of what is made from it."""
    yield made["metadata"]
    spec = made.get("spec")
    while isinstance(spec, dict):
        template = spec.get("jobTemplate") or spec.get("template")
        if not isinstance(template, dict):
            return
        yield template.setdefault("metadata", {})
        spec = template.get("spec")
