"""The official Kubernetes schemas, compiled: which fields exist, of which type, and how lists and maps merge."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import orjson

SCALARS = ("string", "integer", "number", "boolean")
_SPECIAL = {
    "io.k8s.apimachinery.pkg.api.resource.Quantity": "quantity",
    "io.k8s.apimachinery.pkg.util.intstr.IntOrString": "intorstring",
    "io.k8s.apimachinery.pkg.apis.meta.v1.Time": "time",
    "io.k8s.apimachinery.pkg.apis.meta.v1.MicroTime": "time",
    "io.k8s.apimachinery.pkg.apis.meta.v1.FieldsV1": "any",
    "io.k8s.apimachinery.pkg.runtime.RawExtension": "any",
}
_GO_TYPES = {"string": "string", "integer": "int64", "number": "float64", "boolean": "bool", "time": "time.Time"}
QUANTITY = re.compile(r"^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$")


class Node:
    """One type. `kind`: struct, map, list, any, quantity, intorstring, time, or a scalar's JSON type."""

    __slots__ = ("atomic", "fields", "format", "item", "keys", "kind", "merge_key", "name", "required", "unique")

    def __init__(self, kind: str, name: str = "") -> None:
        self.kind = kind
        self.name = name
        self.format = ""
        self.fields: dict[str, Node] = {}
        self.required: tuple[str, ...] = ()
        self.item: Node = ANY
        # Merged as one value (lists without a list type, maps and structs marked atomic).
        self.atomic = False
        # Lists of objects identified by these fields.
        self.keys: tuple[str, ...] = ()
        # Lists of distinct scalars.
        self.unique = False
        # For strategic merge patches.
        self.merge_key = ""


ANY: Node = object.__new__(Node)
ANY.__init__("any")  # type: ignore[misc]  # its own default item: it refers to itself


@cache
def document() -> dict[str, Any]:
    """`schema.json`: `kinds` (group/version/kind → definition) and `definitions`."""
    loaded: dict[str, Any] = orjson.loads(Path(__file__).with_name("schema.json").read_bytes())
    return loaded


@cache
def _definition(name: str) -> Node:
    if name in _SPECIAL:
        return ANY if _SPECIAL[name] == "any" else Node(_SPECIAL[name])
    raw = document()["definitions"][name]
    if "properties" not in raw:
        return ANY
    node = Node("struct", name.rpartition(".")[2])
    node.required = tuple(raw.get("required", ()))
    node.atomic = raw.get("x-kubernetes-map-type") == "atomic"
    node.fields = {field: _compile(child) for field, child in raw["properties"].items()}
    return node


def _compile(raw: dict[str, Any]) -> Node:
    if "$ref" in raw:
        node = _definition(raw["$ref"])
        if raw.get("x-kubernetes-map-type") == "atomic" and not node.atomic:
            copy = Node(node.kind, node.name)
            copy.fields, copy.required, copy.atomic = node.fields, node.required, True
            return copy
        return node
    kind = raw.get("type")
    if kind == "array":
        node = Node("list")
        node.item = _compile(raw["items"])
        node.keys = tuple(raw.get("x-kubernetes-list-map-keys", ()))
        node.unique = raw.get("x-kubernetes-list-type") == "set"
        node.merge_key = raw.get("x-kubernetes-patch-merge-key", "")
        if raw.get("x-kubernetes-patch-strategy", "").startswith("merge") and not node.merge_key:
            node.merge_key = "."
        if node.merge_key == "." and not node.keys and raw.get("x-kubernetes-list-type") is None:
            node.unique = True
        node.atomic = not node.keys and not node.unique
        return node
    if kind == "object":
        if "additionalProperties" not in raw:
            return ANY
        node = Node("map")
        node.item = _compile(raw["additionalProperties"])
        node.atomic = raw.get("x-kubernetes-map-type") == "atomic"
        return node
    node = Node(kind or "any")
    node.format = raw.get("format", "")
    return node


@cache
def node_for(group: str, version: str, kind: str) -> Node:
    """Compiled schema of a kind; a custom resource gets typed metadata and free fields beside it."""
    name = document()["kinds"].get(f"{group}/{version}/{kind}")
    if name:
        return _definition(name)
    node = Node("struct", kind)
    node.fields = {
        "apiVersion": Node("string"),
        "kind": Node("string"),
        "metadata": _definition("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"),
        "spec": ANY,
        "status": ANY,
    }
    return node


def _json_type(value: Any) -> str:
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int | float):
        return "number"
    if isinstance(value, str):
        return "string"
    return "array" if isinstance(value, list) else "object"


class Findings:
    """What `fit` found. `wrong`: path, the JSON decoder's words, server-side apply's words. `unknown`: paths."""

    __slots__ = ("unknown", "wrong")

    def __init__(self) -> None:
        self.wrong: list[tuple[str, str, str]] = []
        self.unknown: list[str] = []


def fit(node: Node, value: Any, path: str, owner: str, found: Findings) -> Any:
    """The value with nulls and undeclared fields dropped; what does not fit goes to `found`."""
    kind = node.kind
    if kind == "string":
        if not isinstance(value, str):
            _wrong(node, value, path, owner, found)
        return value
    if kind == "struct":
        if not isinstance(value, dict):
            _wrong(node, value, path, owner, found)
            return value
        out = {}
        fields = node.fields
        for key, child in value.items():
            sub = fields.get(key)
            where = f"{path}.{key}" if path else key
            if sub is None:
                found.unknown.append(where)
            elif child is not None:
                out[key] = fit(sub, child, where, node.name, found)
        return out
    if kind == "list":
        if not isinstance(value, list):
            _wrong(node, value, path, owner, found)
            return value
        item = node.item
        return [fit(item, child, f"{path}[{index}]", owner, found) for index, child in enumerate(value)]
    if kind == "map":
        if not isinstance(value, dict):
            _wrong(node, value, path, owner, found)
            return value
        item = node.item
        return {
            key: fit(item, child, f"{path}.{key}", owner, found) for key, child in value.items() if child is not None
        }
    if kind == "integer":
        if isinstance(value, float) and value.is_integer():
            return int(value)
        if not isinstance(value, int) or isinstance(value, bool):
            _wrong(node, value, path, owner, found)
    elif kind == "boolean":
        if not isinstance(value, bool):
            _wrong(node, value, path, owner, found)
    elif kind == "number":
        if not isinstance(value, int | float) or isinstance(value, bool):
            _wrong(node, value, path, owner, found)
    elif kind == "intorstring":
        if isinstance(value, bool) or not isinstance(value, int | str):
            _wrong(node, value, path, owner, found)
    elif kind == "quantity":
        return _quantity(value, path, owner, found)
    elif kind == "time" and not isinstance(value, str):
        _wrong(node, value, path, owner, found)
    return value


def _quantity(value: Any, path: str, owner: str, found: Findings) -> Any:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        _report(value, path, owner, "resource.Quantity", "any scalar", found)
    elif not QUANTITY.match(value):
        text = "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"
        found.wrong.append((path, text, text))
    return value


_EXPECTED = {"integer": "numeric (int or float)", "number": "numeric (int or float)", "struct": "map"}


def _wrong(node: Node, value: Any, path: str, owner: str, found: Findings) -> None:
    target = _GO_TYPES.get(node.kind, node.kind)
    if node.format.startswith("int"):
        target = node.format
    elif node.kind == "struct":
        target = f"v1.{node.name}"
    elif node.kind == "map":
        target = "map[string]string"
    elif node.kind == "list":
        target = f"[]{node.item.name or node.item.kind}"
    _report(value, path, owner, target, _EXPECTED.get(node.kind, node.kind), found)


def _report(value: Any, path: str, owner: str, target: str, expected: str, found: Findings) -> None:
    kind = _json_type(value)
    decoded = f"json: cannot unmarshal {kind} into Go struct field {owner}.{path} of type {target}"
    got = kind if expected.startswith("numeric") else f"&value.valueUnstructured{{Value:{value!r}}}"
    found.wrong.append((path, decoded, f"expected {expected}, got {got}"))
