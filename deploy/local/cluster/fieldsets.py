"""Sets of fields in the `FieldsV1` form, and what the schema says of two objects: the algebra of server-side apply.

A set is a tree of dicts: `{"f:spec": {"f:replicas": {}}}`. An empty dict is a member; a filled one is a member only if
it has a `"."`. Keys: `f:` field, `k:` item of a keyed list, `v:` value of a set. Follows structured-merge-diff.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson

from deploy.local.cluster.schema import ANY, Node

Set = dict[str, Any]

# Keys of list items that the API fills in when they are left out.
KEY_DEFAULTS = {"protocol": "TCP"}


def is_member(tree: Set) -> bool:
    return not tree or "." in tree


def item_key(node: Node, item: Any) -> str:
    """`k:{"name":"web"}` for an item of a keyed list."""
    keys = {}
    for key in sorted(node.keys):
        value = item.get(key, KEY_DEFAULTS.get(key)) if isinstance(item, dict) else None
        if value is not None:
            keys[key] = value
    return "k:" + orjson.dumps(keys).decode()


def value_key(item: Any) -> str:
    return "v:" + orjson.dumps(item).decode()


def children(node: Node, value: Any) -> Iterator[tuple[str, Node, Any]] | None:
    """The parts of a value that merge one by one with their keys; None for a value that is merged whole."""
    if isinstance(value, dict):
        if node.atomic or node.kind in ("list", *_LEAVES):
            return None
        fields = node.fields
        if node.kind == "struct":
            return ((f"f:{k}", fields.get(k, ANY), v) for k, v in value.items())
        return ((f"f:{k}", node.item if node.kind == "map" else ANY, v) for k, v in value.items())
    if isinstance(value, list):
        if node.keys:
            return ((item_key(node, item), node.item, item) for item in value)
        if node.unique:
            return ((value_key(item), ANY, item) for item in value)
    return None


_LEAVES = ("string", "integer", "number", "boolean", "quantity", "intorstring", "time")


class DuplicateItem(ValueError):
    """Two items of a keyed list or set that are one and the same. `path` is the list's, `key` theirs."""

    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key
        self.path: Set = {}


def of(node: Node, value: Any) -> Set:
    """Every field that the value sets. Raises `DuplicateItem`."""
    parts = children(node, value)
    if parts is None:
        return {}
    out: Set = {}
    for key, child, item in parts:
        if key in out:
            raise DuplicateItem(key)
        try:
            inner = of(child, item)
        except DuplicateItem as exc:
            exc.path = {key: exc.path}
            raise
        if key[0] == "k":
            inner = {".": {}, **inner}
        out[key] = inner
    return out


def union(left: Set, right: Set) -> Set:
    """Members of either. Both must be subtrees that exist (a missing one is not `{}`)."""
    if not left:
        return right if not right or "." in right else {".": {}, **right}
    if not right:
        return left if "." in left else {".": {}, **left}
    out = dict(left)
    for key, tree in right.items():
        out[key] = union(out[key], tree) if key in out else tree
    return out


def join(left: Set | None, right: Set | None) -> Set | None:
    """`union` where either may be missing."""
    if left is None or right is None:
        return left if right is None else right
    return union(left, right)


def minus(left: Set, right: Set | None) -> Set | None:
    """Members of `left` that are not members of `right`; None when nothing is left."""
    if right is None:
        return left
    if not left:
        return None if is_member(right) else left
    out: Set = {}
    for key, tree in left.items():
        if key == ".":
            if not is_member(right):
                out["."] = {}
            continue
        kept = minus(tree, right.get(key))
        if kept is not None:
            out[key] = kept
    return out or None


def both(left: Set, right: Set | None) -> Set | None:
    """Members of both; None when there are none."""
    if right is None:
        return None
    out: Set = {}
    for key, tree in left.items():
        if key != "." and key in right:
            common = both(tree, right[key])
            if common is not None:
                out[key] = common
    if is_member(left) and is_member(right):
        if out:
            out["."] = {}
        return out
    return out or None


def paths(tree: Set, prefix: str = "") -> Iterator[str]:
    """Members as error messages show them: `.spec.ports[port=80,protocol="TCP"].name`."""
    if is_member(tree) and prefix:
        yield prefix
    for key, inner in tree.items():
        if key == ".":
            continue
        kind, text = key[0], key[2:]
        if kind == "f":
            step = f".{text}"
        elif kind == "v":
            step = f"[={text}]"
        else:
            pairs = orjson.loads(text)
            step = "[" + ",".join(f"{k}={orjson.dumps(v).decode()}" for k, v in pairs.items()) + "]"
        yield from paths(inner, prefix + step)


class Difference:
    """Fields by what became of them between two values; each a set or None."""

    __slots__ = ("added", "modified", "removed")

    def __init__(self) -> None:
        self.added: Set | None = None
        self.modified: Set | None = None
        self.removed: Set | None = None

    @property
    def written(self) -> Set | None:
        return join(self.added, self.modified)


def _whole(node: Node, value: Any) -> Set:
    """A subtree with its containers: maps, lists and list items count as fields where they come or go."""
    parts = children(node, value)
    if parts is None:
        return {}
    out: Set = {key: _with_item(key, _whole(child, item)) for key, child, item in parts}
    if out and node.kind in ("list", "map", "any"):
        out["."] = {}
    return out


def compare(node: Node, old: Any, new: Any) -> Difference:
    """What was added, modified and removed."""
    found = Difference()
    if old == new:
        return found
    before, after = children(node, old), children(node, new)
    if before is None or after is None:
        found.modified = {}
        return found
    olds = {key: (child, item) for key, child, item in before}
    added: Set = {}
    modified: Set = {}
    removed: Set = {}
    for key, child, item in after:
        had = olds.pop(key, None)
        if had is None:
            added[key] = _with_item(key, _whole(child, item))
        elif had[1] != item:
            inner = compare(child, had[1], item)
            if inner.added is not None:
                added[key] = inner.added
            if inner.modified is not None:
                modified[key] = inner.modified
            if inner.removed is not None:
                removed[key] = inner.removed
    for key, (child, item) in olds.items():
        removed[key] = _with_item(key, _whole(child, item))
    found.added, found.modified, found.removed = added or None, modified or None, removed or None
    return found


def _with_item(key: str, tree: Set) -> Set:
    return {".": {}, **tree} if key[0] == "k" and tree else tree


def merged(node: Node, live: Any, config: Any) -> Any:
    """`config` laid over `live`: config wins where both speak, live stays where config is silent."""
    if isinstance(config, dict) and isinstance(live, dict) and not node.atomic and node.kind not in _LEAVES:
        out = dict(live)
        for key, value in config.items():
            child = node.fields.get(key, ANY) if node.kind == "struct" else node.item if node.kind == "map" else ANY
            out[key] = merged(child, live[key], value) if key in live else value
        return out
    if isinstance(config, list) and isinstance(live, list):
        if node.keys:
            return _merged_list(node, live, config)
        if node.unique:
            return live + [item for item in config if item not in live]
    return config


def _merged_list(node: Node, live: list[Any], config: list[Any]) -> list[Any]:
    wanted = {item_key(node, item): item for item in config}
    had = {item_key(node, item): item for item in live}
    if had.keys() <= wanted.keys():
        return [merged(node.item, had[k], item) if k in had else item for k, item in wanted.items()]
    out = [merged(node.item, item, wanted[k]) if k in wanted else item for k, item in had.items()]
    return out + [item for k, item in wanted.items() if k not in had]


_GONE = object()


def without(node: Node, value: Any, drop: Set, keep: Set | None) -> Any:
    """The value without the members of `drop`, except what `keep` holds. Containers that this empties go as well."""
    out = _without(node, value, drop, keep)
    return None if out is _GONE else out


def _without(node: Node, value: Any, drop: Set, keep: Set | None) -> Any:
    parts = children(node, value)
    if parts is None or (is_member(drop) and keep is None):
        return value if keep is not None or not is_member(drop) else _GONE
    left: list[tuple[str, Any]] = []
    lost = False
    for key, child, item in parts:
        if key in drop:
            new = _without(child, item, drop[key], keep.get(key) if keep is not None else None)
            if new is _GONE:
                lost = True
                continue
            lost = lost or new is not item
            left.append((key, new))
        else:
            left.append((key, item))
    if not lost:
        return value
    if not left and keep is None:
        return _GONE
    if isinstance(value, dict):
        return {key[2:]: item for key, item in left}
    return [item for _, item in left]
