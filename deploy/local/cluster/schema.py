"""The official Kubernetes schemas, compiled: which fields exist, of which type, and how lists and maps merge."""

from __future__ import annotations

import re
from collections.abc import Iterator
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


class Step:
    """Where in an object: a chain of steps, put into words only when something is wrong there."""

    __slots__ = ("above", "index", "item", "keys", "name")

    def __init__(
        self, above: Step | None, name: str, index: int = -1, keys: tuple[str, ...] = (), item: Any = None
    ) -> None:
        self.above = above
        self.name = name
        self.index = index
        self.keys = keys
        self.item = item

    def _up(self) -> Iterator[Step]:
        step: Step | None = self
        while step is not None:
            yield step
            step = step.above

    def _chain(self) -> list[Step]:
        return [step for step in reversed(list(self._up())) if step.name or step.index >= 0]

    def fields(self) -> str:
        """`spec.containers.image`, as Go's JSON decoder has it."""
        return ".".join(step.name for step in self._chain() if step.name)

    def indexed(self) -> str:
        """`spec.containers[0].image`, as strict decoding has it."""
        return "".join(f"[{s.index}]" if s.index >= 0 else f".{s.name}" for s in self._chain()).removeprefix(".")

    def keyed(self) -> str:
        """`.spec.containers[name="web"].image`, as server-side apply has it."""
        out = ""
        for step in self._chain():
            if step.index < 0:
                out += f".{step.name}"
            elif step.keys and isinstance(step.item, dict):
                pairs = ((key, step.item.get(key)) for key in sorted(step.keys))
                out += "[" + ",".join(f"{k}={orjson.dumps(v).decode()}" for k, v in pairs if v is not None) + "]"
            else:
                out += f"[{step.index}]"
        return out


class Findings:
    """What `fit` found, in the words of the JSON decoder and of server-side apply."""

    __slots__ = ("unknown", "unknown_applied", "wrong", "wrong_applied")

    def __init__(self) -> None:
        self.wrong: list[str] = []
        self.wrong_applied: list[str] = []
        self.unknown: list[str] = []
        self.unknown_applied: list[str] = []


def fit(node: Node, value: Any, at: Step, owner: str, found: Findings) -> Any:
    """The value with nulls and undeclared fields dropped; what does not fit goes to `found`."""
    kind = node.kind
    if kind == "string":
        if not isinstance(value, str):
            _wrong(node, value, at, owner, found)
        elif node.format == "byte":
            _base64(value, found)
        return value
    if kind == "struct":
        if not isinstance(value, dict):
            _wrong(node, value, at, owner, found)
            return value
        out = {}
        fields = node.fields
        for key, child in value.items():
            sub = fields.get(key)
            if sub is None:
                where = Step(at, key)
                found.unknown.append(where.indexed())
                found.unknown_applied.append(f"{where.keyed()}: field not declared in schema")
            elif child is not None:
                out[key] = fit(sub, child, Step(at, key), node.name, found)
        return out
    if kind == "list":
        if not isinstance(value, list):
            _wrong(node, value, at, owner, found)
            return value
        item, keys = node.item, node.keys
        return [fit(item, child, Step(at, "", i, keys, child), owner, found) for i, child in enumerate(value)]
    if kind == "map":
        if not isinstance(value, dict):
            _wrong(node, value, at, owner, found)
            return value
        item = node.item
        return {key: fit(item, child, Step(at, key), owner, found) for key, child in value.items() if child is not None}
    if kind == "any":
        return value
    if kind == "integer" and isinstance(value, float) and value.is_integer():
        return int(value)
    if kind == "quantity":
        return _quantity(value, at, owner, found)
    if isinstance(value, bool) != (kind == "boolean") or not isinstance(value, _PYTHON[kind]):
        _wrong(node, value, at, owner, found)
    return value


_PYTHON: dict[str, Any] = {
    "integer": int,
    "number": int | float,
    "boolean": bool,
    "intorstring": int | str,
    "time": str,
}


def _base64(value: str, found: Findings) -> None:
    bad = next((i for i, char in enumerate(value) if char not in _BASE64), None)
    if bad is None and (len(value.rstrip("=")) % 4 == 1 or len(value) % 4):
        bad = len(value)
    if bad is not None:
        found.wrong.append(f"illegal base64 data at input byte {bad}")


_BASE64 = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/=\r\n")


def _quantity(value: Any, at: Step, owner: str, found: Findings) -> Any:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        _report(value, at, owner, "resource.Quantity", "any scalar", found)
    elif not QUANTITY.match(value):
        found.wrong.append(
            "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"
        )
    return value


_EXPECTED = {"integer": "numeric (int or float)", "number": "numeric (int or float)", "struct": "map"}


def _wrong(node: Node, value: Any, at: Step, owner: str, found: Findings) -> None:
    target = _GO_TYPES.get(node.kind, node.kind)
    if node.format.startswith("int"):
        target = node.format
    elif node.kind == "struct":
        target = f"v1.{node.name}"
    elif node.kind == "map":
        target = "map[string]string"
    elif node.kind == "list":
        target = f"[]v1.{node.item.name}" if node.item.name else f"[]{node.item.kind}"
    _report(value, at, owner, target, _EXPECTED.get(node.kind, node.kind), found)


def _report(value: Any, at: Step, owner: str, target: str, expected: str, found: Findings) -> None:
    kind = _json_type(value)
    found.wrong.append(f"json: cannot unmarshal {kind} into Go struct field {owner}.{at.fields()} of type {target}")
    if expected.startswith("numeric"):
        got = kind
    elif expected == "string":
        got = f"&value.valueUnstructured{{Value:{_go(value)}}}"
    else:
        got = f"&{{{_go(value)}}}"
    found.wrong_applied.append(f"{at.keyed()}: expected {expected}, got {got}")


def _go(value: Any) -> str:
    """A value as Go's %v prints it."""
    if isinstance(value, dict):
        return "map[" + " ".join(f"{k}:{_go(v)}" for k, v in sorted(value.items())) + "]"
    if isinstance(value, list):
        return "[" + " ".join(_go(v) for v in value) + "]"
    return str(value).lower() if isinstance(value, bool) else str(value)
