"""Reading objects that come in: kind, version and fields against the schema."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from deploy.local.cluster import errors
from deploy.local.cluster.resources import BY_KIND, Obj, Resource
from deploy.local.cluster.schema import Findings, fit


@dataclass(slots=True, kw_only=True)
class Call:
    """How a write was asked for. `warnings` collects what goes into Warning headers."""

    manager: str = "unknown"
    dry_run: bool = False
    force: bool = False
    validation: str = "Warn"
    warnings: list[str] = field(default_factory=list)


def decoded(resource: Resource, obj: Any, call: Call, *, applied: bool = False) -> Obj:
    """The object as its schema reads it, without nulls and undeclared fields. 400 where it cannot be read."""
    if not isinstance(obj, dict):
        raise errors.bad_request("the object provided is unrecognized (must be of type " + resource.kind + ")")
    version, kind = obj.get("apiVersion"), obj.get("kind")
    if applied and (not version or not kind):
        raise errors.bad_request("error decoding patch: apiVersion and kind must be set")
    if (kind and kind != resource.kind) or (version and version != resource.api_version):
        raise _mismatch(resource, version, kind)
    found = Findings()
    out: Obj = fit(resource.schema, obj, "", resource.kind, found)
    if applied and (found.wrong or found.unknown):
        texts = [f".{path}: {message}" for path, _, message in found.wrong]
        texts += [f".{path}: field not declared in schema" for path in found.unknown]
        raise untyped(resource, obj, texts)
    if found.wrong:
        message = found.wrong[0][1]
        raise errors.bad_request(
            f'{resource.kind} in version "{resource.version}" cannot be handled as a {resource.kind}: {message}'
        )
    if found.unknown:
        texts = [f'unknown field "{path}"' for path in found.unknown]
        if call.validation == "Strict":
            raise errors.bad_request(
                f'{resource.kind} in version "{resource.version}" cannot be handled as a {resource.kind}: '
                f"strict decoding error: {', '.join(texts)}"
            )
        if call.validation == "Warn":
            call.warnings += texts
    out["apiVersion"], out["kind"] = resource.api_version, resource.kind
    out.setdefault("metadata", {})
    return out


def untyped(resource: Resource, obj: Obj, problems: list[str]) -> errors.ApiError:
    """An applied object that the schema does not fit: the real API gives it 500 and no reason."""
    meta = obj.get("metadata") or {}
    where = (
        f"{meta.get('namespace', '')}/{meta.get('name', '')}; {resource.group}/{resource.version}, Kind={resource.kind}"
    )
    said = problems[0] if len(problems) == 1 else "errors:\n  " + "\n  ".join(problems)
    return errors.ApiError(500, "", f"failed to create typed patch object ({where}): {said}")


def _mismatch(resource: Resource, version: Any, kind: Any) -> errors.ApiError:
    if (version, kind) in BY_KIND or kind == resource.kind:
        if kind == resource.kind:
            return errors.bad_request(
                f"the API version in the data ({version}) does not match the expected API version "
                f"({resource.api_version})"
            )
        return errors.bad_request(
            f'{kind} in version "{str(version).rpartition("/")[2]}" cannot be handled as a {resource.kind}: '
            f"converting ({version}.{kind}) to ({resource.group}.{resource.kind}): unknown conversion"
        )
    return errors.bad_request(
        f'no kind "{kind}" is registered for version "{version}" in scheme "pkg/api/legacyscheme/scheme.go:30"'
    )


def in_namespace(resource: Resource, namespace: str, meta: Obj) -> None:
    """Set the namespace of the request; 400 where the object says another."""
    if not resource.namespaced:
        meta.pop("namespace", None)
        return
    if meta.setdefault("namespace", namespace) != namespace:
        raise errors.bad_request(
            "the namespace of the provided object does not match the namespace sent on the request"
        )
