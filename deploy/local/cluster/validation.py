"""The checks of incoming objects: kind, namespace, name, maps of strings, host names. Schemas are the real API's."""

from __future__ import annotations

import re
from typing import Any

import orjson

from deploy.local.cluster import errors
from deploy.local.cluster.resources import INGRESSES, Obj, Resource

SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
SUBDOMAIN_TEXT = (
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and "
    "end with an alphanumeric character"
)


def decode(resource: Resource, namespace: str, name: str, body: Any, *, applied: bool = False) -> Obj:
    """Return a copy of `body` without nulls, with the kind, namespace and name of the request.

    Args:
        namespace: Of the request; empty for kinds outside namespaces.
        name: Of the request; empty for a creation.

    Raises:
        ApiError: 400 for another kind, namespace or name; 500 (as the real API) for an ill-typed field of an apply.
    """
    if not isinstance(body, dict):
        raise errors.bad_request(f"the object provided is unrecognized (must be of type {resource.kind})")
    identity = (body.get("apiVersion") or resource.api_version, body.get("kind") or resource.kind)
    if applied and (body.get("apiVersion"), body.get("kind")) != (resource.api_version, resource.kind):
        group, _, version = str(body.get("apiVersion") or "").rpartition("/")
        raise errors.bad_request(f"invalid object type: {group}/{version}, Kind={body.get('kind') or ''}")
    if identity != (resource.api_version, resource.kind):
        raise errors.bad_request(
            f'{identity[1]} in version "{identity[0].rpartition("/")[2]}" cannot be handled as a {resource.kind}'
        )
    obj: Obj = _without_nulls(body)
    obj["apiVersion"], obj["kind"] = resource.api_version, resource.kind
    meta: Obj = obj.setdefault("metadata", {})
    if not resource.namespaced:
        meta.pop("namespace", None)
    elif meta.setdefault("namespace", namespace) != namespace:
        raise errors.bad_request(
            "the namespace of the provided object does not match the namespace sent on the request"
        )
    if name and meta.setdefault("name", name) != name:
        raise errors.bad_request(f"the name of the object ({meta['name']}) does not match the name on the URL ({name})")
    for path, strings in (
        (".metadata.labels", meta.get("labels")),
        (".metadata.annotations", meta.get("annotations")),
        (".data", obj.get("data")),
    ):
        _check_strings(resource, str(meta.get("name", "")), path, strings, applied=applied)
    return obj


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(child) for key, child in value.items() if child is not None}
    return [_without_nulls(child) for child in value] if isinstance(value, list) else value


def _check_strings(resource: Resource, name: str, path: str, strings: Any, *, applied: bool) -> None:
    if strings is None:
        return
    if not isinstance(strings, dict):
        raise errors.bad_request(f"{path}: expected map")
    for key, value in strings.items():
        if isinstance(value, str):
            continue
        rendered = orjson.dumps(value).decode()
        if applied:
            raise errors.ill_typed(resource, name, f"{path}.{key}: expected string, got {rendered}")
        raise errors.bad_request(
            f'{resource.kind} in version "{resource.version}" cannot be handled as a {resource.kind}: '
            f"json: cannot unmarshal {rendered} into Go struct field {resource.kind}{path} of type string"
        )


def check(resource: Resource, obj: Obj) -> None:
    """Check names. Raises ApiError 422."""
    name = obj["metadata"].get("name", "")
    if not name:
        raise errors.invalid(resource, "", "metadata.name", "Required value: name or generateName is required")
    if not isinstance(name, str) or len(name) > 253 or not SUBDOMAIN.fullmatch(name):
        raise errors.invalid(resource, name, "metadata.name", f'Invalid value: "{name}": {SUBDOMAIN_TEXT}')
    if resource is INGRESSES:
        for index, rule in enumerate(obj.get("spec", {}).get("rules") or ()):
            host = rule.get("host", "")
            if host and not SUBDOMAIN.fullmatch(host.removeprefix("*.")):
                why = f'Invalid value: "{host}": {SUBDOMAIN_TEXT}'
                raise errors.invalid(resource, name, f"spec.rules[{index}].host", why)
