"""Reading objects that come in: kind, version and fields against the schema."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from deploy.local.cluster import errors
from deploy.local.cluster.resources import BY_KIND, Obj, Resource
from deploy.local.cluster.schema import Findings, Step, fit


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
    if applied and (version, kind) != (resource.api_version, resource.kind):
        group, _, plain = str(version or "").rpartition("/")
        raise errors.bad_request(f"invalid object type: {group}/{plain}, Kind={kind or ''}")
    if (kind and kind != resource.kind) or (version and version != resource.api_version):
        raise _mismatch(resource, version, kind)
    found = Findings()
    out: Obj = fit(resource.schema, obj, Step(None, ""), resource.kind, found)
    if applied and (found.wrong_applied or found.unknown_applied):
        raise untyped(resource, obj, found.wrong_applied + found.unknown_applied)
    if applied and found.wrong:
        raise errors.ApiError(
            500,
            "",
            f"failed to convert new object ({_shown(resource, obj)}) to proper version: unable to convert unstructured "
            f"object to {resource.group}/{resource.version}, Kind={resource.kind}: {found.wrong[0]}",
        )
    if found.wrong:
        raise errors.bad_request(
            f'{resource.kind} in version "{resource.version}" cannot be handled as a {resource.kind}: {found.wrong[0]}'
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


def _shown(resource: Resource, obj: Obj) -> str:
    meta = obj.get("metadata") or {}
    return (
        f"{meta.get('namespace', '')}/{meta.get('name', '')}; {resource.group}/{resource.version}, Kind={resource.kind}"
    )


def untyped(resource: Resource, obj: Obj, problems: list[str]) -> errors.ApiError:
    """An applied object that the schema does not fit: the real API gives it 500 and no reason."""
    said = problems[0] if len(problems) == 1 else "errors:\n  " + "\n  ".join(problems)
    return errors.ApiError(500, "", f"failed to create typed patch object ({_shown(resource, obj)}): {said}")


def _mismatch(resource: Resource, version: Any, kind: Any) -> errors.ApiError:
    kind, version = kind or resource.kind, version or resource.api_version
    short = str(version).rpartition("/")[2]
    if (version, kind) in BY_KIND:
        why = f"converting ({version}.{kind}) to ({resource.group}.{resource.kind}): unknown conversion"
    else:
        why = f'no kind "{kind}" is registered for version "{version}" in scheme "pkg/runtime/scheme.go:111"'
    return errors.bad_request(f'{kind} in version "{short}" cannot be handled as a {resource.kind}: {why}')


def in_namespace(resource: Resource, namespace: str, meta: Obj) -> None:
    """Set the namespace of the request; 400 where the object says another."""
    if not resource.namespaced:
        meta.pop("namespace", None)
        return
    if meta.setdefault("namespace", namespace) != namespace:
        raise errors.bad_request(
            "the namespace of the provided object does not match the namespace sent on the request"
        )
