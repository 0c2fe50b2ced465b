"""Discovery, plain and aggregated, and the OpenAPI v3 documents that `kubectl` reads."""

from __future__ import annotations

from functools import cache
from typing import Any

import orjson

from deploy.local.cluster.resources import KINDS, Resource, groups
from deploy.local.cluster.schema import document

VERSION = {
    "major": "1",
    "minor": "36",
    "emulationMajor": "1",
    "emulationMinor": "36",
    "minCompatibilityMajor": "1",
    "minCompatibilityMinor": "35",
    "gitVersion": "v1.36.3",
    "gitCommit": "0" * 40,
    "gitTreeState": "clean",
    "buildDate": "2026-01-01T00:00:00Z",
    "goVersion": "go1.26",
    "compiler": "gc",
    "platform": "linux/amd64",
}
_SUB_VERBS = {
    "status": ["get", "patch", "update"],
    "scale": ["get", "patch", "update"],
    "log": ["get"],
    "eviction": ["create"],
    "binding": ["create"],
    "token": ["create"],
    "finalize": ["update"],
    "proxy": ["create", "delete", "get", "patch", "update"],
}
_SUB_KINDS = {
    "scale": ("autoscaling", "v1", "Scale"),
    "eviction": ("policy", "v1", "Eviction"),
    "binding": ("", "v1", "Binding"),
    "token": ("authentication.k8s.io", "v1", "TokenRequest"),
}
# Answered by the server itself; nothing of them is kept.
VIRTUAL = (
    ("authentication.k8s.io", "v1", "SelfSubjectReview", "selfsubjectreviews"),
    ("authorization.k8s.io", "v1", "SelfSubjectAccessReview", "selfsubjectaccessreviews"),
)


def _all_groups() -> dict[str, list[str]]:
    found = groups()
    for group, version, _, _ in VIRTUAL:
        found[group] = [version]
    return found


@cache
def api_versions() -> bytes:
    """`/api`."""
    return orjson.dumps(
        {
            "kind": "APIVersions",
            "versions": ["v1"],
            "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": "127.0.0.1"}],
        }
    )


def _group(name: str, versions: list[str]) -> dict[str, Any]:
    listed = [{"groupVersion": f"{name}/{v}", "version": v} for v in versions]
    return {"name": name, "versions": listed, "preferredVersion": listed[0]}


@cache
def group_list() -> bytes:
    """`/apis`."""
    return orjson.dumps(
        {"kind": "APIGroupList", "apiVersion": "v1", "groups": [_group(n, v) for n, v in _all_groups().items()]}
    )


@cache
def one_group(name: str) -> bytes | None:
    """`/apis/<group>`."""
    versions = _all_groups().get(name)
    if versions is None:
        return None
    return orjson.dumps({"kind": "APIGroup", "apiVersion": "v1", **_group(name, versions)})


def _rows(resource: Resource) -> list[dict[str, Any]]:
    row: dict[str, Any] = {
        "name": resource.plural,
        "singularName": resource.singular,
        "namespaced": resource.namespaced,
        "kind": resource.kind,
        "verbs": list(resource.verbs),
    }
    if resource.short:
        row["shortNames"] = list(resource.short)
    if resource.categories:
        row["categories"] = list(resource.categories)
    rows = [row]
    for sub in resource.subresources:
        extra: dict[str, Any] = {
            "name": f"{resource.plural}/{sub}",
            "singularName": "",
            "namespaced": resource.namespaced,
            "kind": resource.kind,
            "verbs": _SUB_VERBS[sub],
        }
        if sub in _SUB_KINDS:
            extra["group"], extra["version"], extra["kind"] = _SUB_KINDS[sub]
        rows.append(extra)
    return rows


@cache
def resource_list(group: str, version: str) -> bytes | None:
    """`/api/v1` and `/apis/<group>/<version>`."""
    rows = [row for r in KINDS if (r.group, r.version) == (group, version) for row in _rows(r)]
    for g, v, kind, plural in VIRTUAL:
        if (g, v) == (group, version):
            rows.append(
                {"name": plural, "singularName": kind.lower(), "namespaced": False, "kind": kind, "verbs": ["create"]}
            )
    if not rows:
        return None
    named = f"{group}/{version}" if group else version
    return orjson.dumps({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": named, "resources": rows})


def _aggregated_row(resource: Resource) -> dict[str, Any]:
    row: dict[str, Any] = {
        "resource": resource.plural,
        "responseKind": {"group": resource.group, "version": resource.version, "kind": resource.kind},
        "scope": "Namespaced" if resource.namespaced else "Cluster",
        "singularResource": resource.singular,
        "verbs": list(resource.verbs),
    }
    if resource.short:
        row["shortNames"] = list(resource.short)
    if resource.categories:
        row["categories"] = list(resource.categories)
    subs = []
    for sub in resource.subresources:
        group, version, kind = _SUB_KINDS.get(sub, (resource.group, resource.version, resource.kind))
        subs.append(
            {
                "subresource": sub,
                "responseKind": {"group": group, "version": version, "kind": kind},
                "verbs": _SUB_VERBS[sub],
            }
        )
    if subs:
        row["subresources"] = subs
    return row


@cache
def aggregated(core: bool, api: str) -> bytes:
    """`APIGroupDiscoveryList` for `/api` (core) or `/apis`; `api` is v2 or v2beta1."""
    items = []
    for group, versions in ({"": ["v1"]} if core else _all_groups()).items():
        listed = []
        for version in versions:
            rows = [_aggregated_row(r) for r in KINDS if (r.group, r.version) == (group, version)]
            for g, v, kind, plural in VIRTUAL:
                if (g, v) == (group, version):
                    rows.append(
                        {
                            "resource": plural,
                            "responseKind": {"group": g, "version": v, "kind": kind},
                            "scope": "Cluster",
                            "singularResource": kind.lower(),
                            "verbs": ["create"],
                        }
                    )
            listed.append({"version": version, "resources": rows, "freshness": "Current"})
        items.append(
            {
                "metadata": {"name": group, "creationTimestamp": None} if group else {"creationTimestamp": None},
                "versions": listed,
            }
        )
    return orjson.dumps(
        {"kind": "APIGroupDiscoveryList", "apiVersion": f"apidiscovery.k8s.io/{api}", "metadata": {}, "items": items}
    )


# ---------------------------------------------------------------- OpenAPI


@cache
def openapi_index() -> bytes:
    """`/openapi/v3`: the documents by path."""
    paths = {"api/v1"} | {f"apis/{r.group}/{r.version}" for r in KINDS if r.group}
    return orjson.dumps(
        {"paths": {p: {"serverRelativeURL": f"/openapi/v3/{p}?hash={VERSION['gitVersion']}"} for p in sorted(paths)}}
    )


def _reachable(names: set[str]) -> dict[str, Any]:
    definitions, kept = document()["definitions"], {}
    pending = set(names)
    while pending:
        name = pending.pop()
        kept[name] = definitions[name]
        pending |= _mentioned(definitions[name]) - kept.keys()
    return kept


def _mentioned(node: Any) -> set[str]:
    if not isinstance(node, dict):
        return set()
    found = {node["$ref"]} if "$ref" in node else set()
    for value in node.values():
        found |= _mentioned(value)
    return found


def _v3(node: Any) -> Any:
    if not isinstance(node, dict):
        return node
    return {key: f"#/components/schemas/{value}" if key == "$ref" else _v3(value) for key, value in node.items()}


def _parameters(*names: str) -> list[dict[str, Any]]:
    return [{"name": n, "in": "query", "schema": {"type": "string", "uniqueItems": True}} for n in names]


@cache
def openapi(group: str, version: str) -> bytes | None:
    """`/openapi/v3/apis/<group>/<version>`: schemas and the parameters that clients look for."""
    rows = [r for r in KINDS if (r.group, r.version) == (group, version)]
    if not rows:
        return None
    kinds = document()["kinds"]
    names = {kinds[k] for r in rows if (k := f"{r.group}/{r.version}/{r.kind}") in kinds}
    schemas = {name: _v3(raw) for name, raw in _reachable(names).items()}
    paths: dict[str, Any] = {}
    root = f"/apis/{group}/{version}" if group else f"/api/{version}"
    writes = _parameters("dryRun", "fieldManager", "fieldValidation", "force")
    for r in rows:
        gvk = {"group": r.group, "version": r.version, "kind": r.kind}
        name = kinds.get(f"{r.group}/{r.version}/{r.kind}")
        if name:
            schemas[name]["x-kubernetes-group-version-kind"] = [gvk]
        answer = (
            {
                "200": {
                    "description": "OK",
                    "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}},
                }
            }
            if name
            else {}
        )
        collection = f"{root}/namespaces/{{namespace}}/{r.plural}" if r.namespaced else f"{root}/{r.plural}"
        media = ["application/json-patch+json", "application/merge-patch+json", "application/apply-patch+yaml"]
        if not r.custom:
            media.append("application/strategic-merge-patch+json")

        def operation(action: str, gvk: dict[str, str] = gvk, answer: dict[str, Any] = answer) -> dict[str, Any]:
            return {
                "parameters": writes,
                "responses": answer,
                "x-kubernetes-action": action,
                "x-kubernetes-group-version-kind": gvk,
            }

        paths[collection] = {"post": operation("post"), "get": operation("list")}
        patch = operation("patch")
        patch["requestBody"] = {"content": {kind: {"schema": {"type": "object"}} for kind in media}}
        paths[f"{collection}/{{name}}"] = {"patch": patch, "put": operation("put"), "get": operation("get")}
    return orjson.dumps(
        {
            "openapi": "3.0.0",
            "info": {"title": "Kubernetes", "version": VERSION["gitVersion"]},
            "paths": paths,
            "components": {"schemas": schemas},
        }
    )
