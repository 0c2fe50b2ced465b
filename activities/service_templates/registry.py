"""Reads the services from ``templates/services``, and renders the Kubernetes objects of one instance.

No service is named here: a new one needs only a new folder. Values reach a manifest only as quoted, escaped scalars
(see ``quote_scalar``), so that customer text cannot end its field, whatever the template's author wrote.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from activities.service_templates.definitions import ServiceTemplate, load_service
from activities.service_templates.manifests import InstanceSpec, InvalidTemplate, Manifest, parse_manifests
from activities.service_templates.values import ClusterProfile, build_template_context, quote_scalar
from workflows.rules.errors import ErrorCode, RuleViolation

PROBE = "_base/_probe.yaml.j2"

CACHE_SIZE = 256
"""Number of rendered instances in the cache: the steps of one order follow each other within seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderedInstance:
    """The objects of an instance without its Secrets, in no particular order, with labels, names and namespaces.

    Attributes:
        probe: The Job that probes readiness. It is not one of ``objects``: each probe creates a new Job.
    """

    spec: InstanceSpec
    service: ServiceTemplate
    objects: tuple[Manifest, ...]
    probe: Manifest

    def of_kind(self, *kinds: str) -> tuple[Manifest, ...]:
        return tuple(manifest for manifest in self.objects if manifest["kind"] in kinds)

    @property
    def workloads(self) -> tuple[tuple[str, str], ...]:
        """Kind and name of the objects that must run or complete before the instance is ready."""
        return tuple(
            (manifest["kind"], manifest["metadata"]["name"])
            for manifest in self.of_kind("StatefulSet", "Deployment", "Job")
        )


class ServiceTemplateRegistry:
    """Every service under ``root``, compiled once."""

    def __init__(self, root: Path, platform: ClusterProfile | None = None) -> None:
        self._root = root
        self._platform = platform or ClusterProfile()
        self._environment = Environment(
            loader=FileSystemLoader(root),
            undefined=StrictUndefined,
            finalize=quote_scalar,
            autoescape=False,  # noqa: S701 - the output is YAML, and `finalize` escapes for it
            trim_blocks=False,
            keep_trailing_newline=True,
        )
        self.services: Mapping[str, ServiceTemplate] = {
            path.parent.name: load_service(path) for path in sorted(root.glob("[!_]*/service.yaml"))
        }
        self._cache: dict[str, RenderedInstance] = {}
        base = self._compile_folder("_base")
        self._probe = self._environment.get_template(PROBE)
        self._templates = {slug: base + self._compile_folder(slug) for slug in self.services}

    def service(self, slug: str) -> ServiceTemplate:
        """Return the service. Raises ``RuleViolation`` ``NOT_FOUND``."""
        try:
            return self.services[slug]
        except KeyError:
            raise RuleViolation(ErrorCode.NOT_FOUND, f"There is no service {slug!r}.") from None

    def render(self, spec: InstanceSpec) -> RenderedInstance:
        """Return the objects of ``spec``. The result is cached: callers must not change it.

        Raises:
            RuleViolation: ``VALIDATION_ERROR`` for parameters, ``NOT_FOUND`` for a service or version.
            InvalidTemplate: The folder's manifests are invalid.
        """
        cached = self._cache.get(spec.instance_id)
        if cached is not None and cached.spec == spec:
            return cached
        rendered = self._render(spec)
        if len(self._cache) >= CACHE_SIZE:
            self._cache.pop(next(iter(self._cache)), None)
        self._cache[spec.instance_id] = rendered
        return rendered

    def _render(self, spec: InstanceSpec) -> RenderedInstance:
        service = self.service(spec.service_slug)
        context = build_template_context(service, spec, self._platform)
        objects = tuple(
            manifest
            for template in self._templates[service.slug]
            for manifest in parse_manifests(template.render(context), spec)
        )
        identities: set[tuple[str, str]] = set()
        for manifest in objects:
            identity = (manifest["kind"], manifest["metadata"]["name"])
            if identity in identities:
                raise InvalidTemplate(f"{service.slug}: {identity} is defined twice")
            identities.add(identity)
        (probe,) = parse_manifests(self._probe.render(context), spec)
        return RenderedInstance(spec=spec, service=service, objects=objects, probe=probe)

    def _compile_folder(self, folder: str) -> list[Template]:
        # Names that begin with an underscore are included by other templates.
        names = sorted(path.name for path in (self._root / folder).glob("[!_]*.yaml.j2"))
        return [self._environment.get_template(f"{folder}/{name}") for name in names]
