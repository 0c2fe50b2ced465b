"""Discovery documents, and the little of OpenAPI that `kubectl apply` asks for."""

from __future__ import annotations

from functools import cache
from typing import Any

import orjson

from deploy.local.cluster.resources import RESOURCES, VERBS

VERSION = {
    "major": "1",
    "minor": "36",
    "gitVersion": "v1.36.3",
    "gitCommit": "0" * 40,
    "gitTreeState": "clean",
    "buildDate": "2026-01-01T00:00:00Z",
    "goVersion": "go1.26",
    "compiler": "gc",
    "platform": "linux/amd64",
}
_SUBRESOURCE_VERBS = {"scale": ["get", "patch", "update"], "log": ["get"]}
_SCALE = {"group": "autoscaling", "version": "v1", "kind": "Scale"}


def _groups() -> dict[str, str]:
    return {resource.group: resource.version for resource in RESOURCES if resource.group}


def _group(name: str, version: str) -> dict[str, Any]:
    listed = {"groupVersion": f"{name}/{version}", "version": version}
    return {"name": name, "versions": [listed], "preferredVersion": listed}


def _resources(group: str, version: str) -> dict[str, Any] | None:
    rows: list[dict[str, Any]] = []
    for resource in RESOURCES:
        if (resource.group, resource.version) != (group, version):
            continue
        row = {"singularName": resource.kind.lower(), "namespaced": resource.namespaced, "kind": resource.kind}
        rows.append({"name": resource.plural, **row, "verbs": list(VERBS), "shortNames": list(resource.short)})
        for sub in resource.subresources:
            scale = _SCALE if sub == "scale" else {}
            rows.append({"name": f"{resource.plural}/{sub}", **row, "verbs": _SUBRESOURCE_VERBS[sub], **scale})
    named = f"{group}/{version}" if group else version
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": named, "resources": rows} if rows else None


def _openapi(group: str, version: str) -> dict[str, Any]:
    """Paths without schemas: kubectl looks up which parameters a patch takes and then lets the server validate."""
    root = f"/apis/{group}/{version}" if group else f"/api/{version}"
    names = ("dryRun", "fieldManager", "fieldValidation", "force")
    parameters = [{"name": name, "in": "query", "schema": {"type": "string"}} for name in names]
    paths: dict[str, Any] = {}
    for resource in RESOURCES:
        if (resource.group, resource.version) == (group, version):
            kind = {"group": group, "version": version, "kind": resource.kind}
            patch = {"parameters": parameters, "responses": {}, "x-kubernetes-action": "patch"}
            patch["x-kubernetes-group-version-kind"] = kind
            space = "/namespaces/{namespace}" if resource.namespaced else ""
            paths[f"{root}{space}/{resource.plural}/{{name}}"] = {"patch": patch}
    info = {"title": "Kubernetes", "version": VERSION["gitVersion"]}
    return {"openapi": "3.0.0", "info": info, "paths": paths, "components": {"schemas": {}}}


@cache
def document(path: str) -> bytes | None:
    """Return the document at `path` (`/api`, `/apis/apps/v1`, `/openapi/v3`), None where there is none."""
    parts = path.strip("/").split("/")
    content: dict[str, Any] | None = None
    match parts:
        case ["version"]:
            content = dict(VERSION)
        case ["api"]:
            content = {"kind": "APIVersions", "versions": ["v1"]}
        case ["apis"]:
            listed = [_group(*group) for group in _groups().items()]
            content = {"kind": "APIGroupList", "apiVersion": "v1", "groups": listed}
        case ["api", version]:
            content = _resources("", version)
        case ["apis", group] if group in _groups():
            content = {"kind": "APIGroup", "apiVersion": "v1", **_group(group, _groups()[group])}
        case ["apis", group, version]:
            content = _resources(group, version)
        case ["openapi", "v3"]:
            documents = ["api/v1", *(f"apis/{group}/{version}" for group, version in _groups().items())]
            content = {"paths": {name: {"serverRelativeURL": f"/openapi/v3/{name}"} for name in documents}}
        case ["openapi", "v3", "api", version]:
            content = _openapi("", version)
        case ["openapi", "v3", "apis", group, version]:
            content = _openapi(group, version)
    return None if content is None else orjson.dumps(content)
