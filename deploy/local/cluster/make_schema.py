"""Cuts `schema.json` out of Kubernetes' published `api/openapi-spec/swagger.json`.

    python -m deploy.local.cluster.make_schema path/to/swagger.json

Keeps only the definitions that the served kinds reach, without prose: types, required fields, list and map kinds.
The source is part of the Go module `k8s.io/kubernetes` (Apache License 2.0).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from deploy.local.cluster.resources import KINDS

KEEP = {
    "$ref",
    "type",
    "format",
    "required",
    "properties",
    "items",
    "additionalProperties",
    "x-kubernetes-list-map-keys",
    "x-kubernetes-list-type",
    "x-kubernetes-map-type",
    "x-kubernetes-patch-merge-key",
    "x-kubernetes-patch-strategy",
}
PREFIX = "#/definitions/"


def trimmed(node: dict[str, Any]) -> dict[str, Any]:
    """The node without prose, with references by bare definition name."""
    out: dict[str, Any] = {}
    for key, value in node.items():
        if key not in KEEP:
            continue
        if key == "$ref":
            out[key] = value.removeprefix(PREFIX)
        elif key == "properties":
            out[key] = {name: trimmed(child) for name, child in value.items()}
        elif key in ("items", "additionalProperties") and isinstance(value, dict):
            out[key] = trimmed(value)
        else:
            out[key] = value
    return out


def references(node: Any) -> set[str]:
    """Names of every definition that the node mentions."""
    if isinstance(node, dict):
        found = {node["$ref"]} if "$ref" in node else set()
        for value in node.values():
            found |= references(value)
        return found
    return set()


def main(source: Path) -> None:
    """Write `schema.json` beside this file."""
    swagger = json.loads(source.read_text())
    everything = {name: trimmed(node) for name, node in swagger["definitions"].items()}
    kinds: dict[str, str] = {}
    for name, node in swagger["definitions"].items():
        for gvk in node.get("x-kubernetes-group-version-kind", []):
            kinds[f"{gvk['group']}/{gvk['version']}/{gvk['kind']}"] = name
    wanted = {f"{kind.group}/{kind.version}/{kind.kind}" for kind in KINDS} | {"autoscaling/v1/Scale"}
    roots = {gvk: kinds[gvk] for gvk in sorted(wanted) if gvk in kinds}
    pending, kept = set(roots.values()), {}
    while pending:
        name = pending.pop()
        kept[name] = everything[name]
        pending |= references(everything[name]) - kept.keys()
    data = {"source": swagger["info"]["version"], "kinds": roots, "definitions": dict(sorted(kept.items()))}
    target = Path(__file__).with_name("schema.json")
    target.write_text(json.dumps(data, separators=(",", ":"), sort_keys=True) + "\n")
    print(f"{target.name}: {len(kept)} definitions, {target.stat().st_size} bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
