"""JSON patch (RFC 6902), JSON merge patch (RFC 7386) and Kubernetes' strategic merge patch."""

from __future__ import annotations

import copy
from typing import Any

from deploy.local.cluster.errors import bad_request, unpatchable
from deploy.local.cluster.schema import ANY, Node


def merge(target: Any, patch: Any) -> Any:
    """RFC 7386."""
    if not isinstance(patch, dict):
        return patch
    out = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            out.pop(key, None)
        else:
            out[key] = merge(out.get(key), value)
    return out


# ---------------------------------------------------------------- JSON patch


def _walk(document: Any, pointer: str) -> tuple[Any, Any]:
    """The container and the last step of a pointer."""
    steps = [step.replace("~1", "/").replace("~0", "~") for step in pointer.split("/")[1:]]
    if not steps:
        raise unpatchable()
    node = document
    for step in steps[:-1]:
        try:
            node = node[int(step)] if isinstance(node, list) else node[step]
        except (KeyError, IndexError, ValueError, TypeError):
            raise unpatchable() from None
    last: Any = steps[-1]
    if isinstance(node, list) and last != "-":
        if not last.isdigit():
            raise unpatchable()
        last = int(last)
    if not isinstance(node, dict | list):
        raise unpatchable()
    return node, last


def _read(document: Any, pointer: str) -> Any:
    if pointer == "":
        return document
    node, last = _walk(document, pointer)
    try:
        return node[last]
    except (KeyError, IndexError, TypeError):
        raise unpatchable() from None


def _add(document: Any, pointer: str, value: Any) -> None:
    node, last = _walk(document, pointer)
    if isinstance(node, list):
        if last == "-":
            node.append(value)
        elif last <= len(node):
            node.insert(last, value)
        else:
            raise unpatchable()
    else:
        node[last] = value


def _remove(document: Any, pointer: str) -> Any:
    value = _read(document, pointer)
    node, last = _walk(document, pointer)
    del node[last]
    return value


def json_patch(document: Any, operations: Any) -> Any:
    """RFC 6902 on a copy. 400 for what is no patch, 422 for one that does not apply."""
    if not isinstance(operations, list):
        raise bad_request("json: cannot unmarshal object into Go value of type jsonpatch.Patch")
    document = copy.deepcopy(document)
    for operation in operations:
        if not isinstance(operation, dict) or "op" not in operation or "path" not in operation:
            raise bad_request("error decoding patch: an operation needs op and path")
        kind, path = operation["op"], operation["path"]
        if kind == "add":
            _add(document, path, operation.get("value"))
        elif kind == "remove":
            _remove(document, path)
        elif kind == "replace":
            _read(document, path)
            node, last = _walk(document, path)
            node[last] = operation.get("value")
        elif kind == "test":
            if _read(document, path) != operation.get("value"):
                raise unpatchable()
        elif kind == "move":
            _add(document, path, _remove(document, operation["from"]))
        elif kind == "copy":
            _add(document, path, copy.deepcopy(_read(document, operation["from"])))
        else:
            raise bad_request(f"Unexpected kind: {kind}")
    return document


# ---------------------------------------------------------------- strategic merge


def strategic(node: Node, target: Any, patch: Any) -> Any:
    """Merge by the schema: lists with a merge key item by item, `$patch`, `$deleteFromPrimitiveList`, `$retainKeys`."""
    if not isinstance(patch, dict):
        return patch
    if patch.get("$patch") == "replace":
        return {key: value for key, value in patch.items() if key != "$patch"}
    if patch.get("$patch") == "delete":
        return {}
    out = dict(target) if isinstance(target, dict) else {}
    if "$retainKeys" in patch:
        out = {key: value for key, value in out.items() if key in patch["$retainKeys"]}
    for key, value in patch.items():
        if key.startswith("$deleteFromPrimitiveList/"):
            field = key.partition("/")[2]
            out[field] = [item for item in out.get(field, ()) if item not in value]
            continue
        if key.startswith("$"):
            continue
        child = node.fields.get(key, ANY) if node.kind == "struct" else node.item if node.kind == "map" else ANY
        if value is None:
            out.pop(key, None)
        elif child.kind == "list" and child.merge_key and isinstance(value, list):
            out[key] = _strategic_list(child, out.get(key) or [], value)
        elif isinstance(value, dict):
            out[key] = strategic(child, out.get(key), value)
        else:
            out[key] = value
    return out


def _strategic_list(node: Node, target: list[Any], patch: list[Any]) -> list[Any]:
    if node.merge_key == ".":
        return target + [item for item in patch if item not in target]
    if any(isinstance(item, dict) and item.get("$patch") == "replace" for item in patch):
        return [item for item in patch if item.get("$patch") != "replace"]
    out = list(target)
    for item in patch:
        if not isinstance(item, dict) or node.merge_key not in item:
            raise bad_request(f"map: {item} does not contain declared merge key: {node.merge_key}")
        at = next((i for i, old in enumerate(out) if old.get(node.merge_key) == item[node.merge_key]), None)
        if item.get("$patch") == "delete":
            if at is not None:
                del out[at]
        elif at is None:
            out.append(strategic(node.item, {}, item))
        else:
            out[at] = strategic(node.item, out[at], item)
    return out
