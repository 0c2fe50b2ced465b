"""Server-side apply and strategic merge patch, on sets of field paths.

A path is a tuple of steps in the spelling of `FieldsV1`: `f:` a field, `k:` an item of a list with keys, `v:` a value
of a set, `.` the item itself. Lists without keys are one value. The real API takes the keys from its schemas; here a
table of field names has those of the kinds that Berth uses.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import orjson

from deploy.local.cluster.errors import ApiError, bad_request
from deploy.local.cluster.resources import Obj
from deploy.local.cluster.times import now

Path = tuple[str, ...]
ManagedFieldsEntry = dict[str, Any]

_KEYS: dict[str, tuple[str, ...]] = {
    "containers": ("name",),
    "initContainers": ("name",),
    "env": ("name",),
    "volumes": ("name",),
    "imagePullSecrets": ("name",),
    "volumeMounts": ("mountPath",),
    "hostAliases": ("ip",),
    "ownerReferences": ("uid",),
    "conditions": ("type",),
}
_SETS = frozenset({"finalizers"})
_OWNED_METADATA = ("labels", "annotations", "finalizers", "ownerReferences")


def _keys(field: str, items: list[Any]) -> tuple[str, ...]:
    """Return the key fields of a list's items; empty where the list is one value."""
    if field == "ports" and items and all(isinstance(item, dict) for item in items):
        return ("containerPort", "protocol") if "containerPort" in items[0] else ("port", "protocol")
    keys = _KEYS.get(field, ())
    return keys if all(isinstance(item, dict) and keys and keys[0] in item for item in items) else ()


def _item_step(keys: tuple[str, ...], item: Obj) -> str:
    # The API fills in the protocol, and it is part of the key also where the manifest leaves it out.
    values = {key: item.get(key, "TCP" if key == "protocol" else None) for key in sorted(keys)}
    return "k:" + orjson.dumps(values).decode()


def _value_step(value: Any) -> str:
    return "v:" + orjson.dumps(value).decode()


def flatten(value: Any, at: Path = (), out: dict[Path, Any] | None = None) -> dict[Path, Any]:
    """Return every field that `value` sets, with its value. An empty map or list is a value."""
    fields: dict[Path, Any] = {} if out is None else out
    field = at[-1][2:] if at else ""
    if isinstance(value, dict) and value:
        for key, child in value.items():
            flatten(child, (*at, f"f:{key}"), fields)
    elif isinstance(value, list) and value and field in _SETS:
        fields |= {(*at, _value_step(item)): item for item in value}
    elif isinstance(value, list) and value and (keys := _keys(field, value)):
        for item in value:
            step = _item_step(keys, item)
            fields[(*at, step, ".")] = None
            flatten(item, (*at, step), fields)
    elif at:
        fields[at] = value
    return fields


def owned_part(obj: Obj) -> Obj:
    """Return the part of an object that managers can own: no identity, no status."""
    part = {key: value for key, value in obj.items() if key not in ("apiVersion", "kind", "metadata", "status")}
    metadata = {key: obj["metadata"][key] for key in _OWNED_METADATA if key in obj.get("metadata", {})}
    return {**part, **({"metadata": metadata} if metadata else {})}


# ---------------------------------------------------------------- managedFields


def _tree(paths: Iterable[Path]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path in sorted(paths):
        node = tree
        for step in path:
            node = node.setdefault(step, {})
    return tree


def _paths(tree: dict[str, Any], at: Path = ()) -> Iterator[Path]:
    if not tree and at:
        yield at
    for step, inner in tree.items():
        yield from _paths(inner, (*at, step))


def _owned(entry: ManagedFieldsEntry) -> set[Path]:
    return set(_paths(entry["fieldsV1"]))


def _entry(manager: str, operation: str, api_version: str, subresource: str, paths: set[Path]) -> ManagedFieldsEntry:
    entry: ManagedFieldsEntry = {"manager": manager, "operation": operation, "apiVersion": api_version, "time": now()}
    entry |= {"fieldsType": "FieldsV1", "fieldsV1": _tree(paths)}
    return {**entry, "subresource": subresource} if subresource else entry


def _is(entry: ManagedFieldsEntry, manager: str, operation: str, subresource: str) -> bool:
    identity = (entry["manager"], entry["operation"], entry.get("subresource", ""))
    return identity == (manager, operation, subresource)


def _set_entries(obj: Obj, entries: list[ManagedFieldsEntry]) -> None:
    obj["metadata"].pop("managedFields", None)
    if entries:
        obj["metadata"]["managedFields"] = entries


def _without_paths(entries: list[ManagedFieldsEntry], taken: set[Path]) -> list[ManagedFieldsEntry]:
    """Return the entries without the paths in `taken`; entries that own nothing more are dropped."""
    remaining = []
    for entry in entries:
        owned = _owned(entry)
        if not owned & taken:
            remaining.append(entry)
        elif owned - taken:
            remaining.append({**entry, "fieldsV1": _tree(owned - taken)})
    return remaining


def track_update(old: Obj | None, new: Obj, manager: str, subresource: str = "") -> None:
    """Give what an ordinary write changed to `manager`, in the `managedFields` of `new`."""
    entries: list[ManagedFieldsEntry] = list((old or {"metadata": {}})["metadata"].get("managedFields") or [])
    before = flatten(owned_part(old)) if old else {}
    after = flatten(owned_part(new))
    written = {path for path, value in after.items() if path not in before or before[path] != value}
    removed = before.keys() - after.keys()
    if written or removed:
        mine = next((entry for entry in entries if _is(entry, manager, "Update", subresource)), None)
        owned = ((_owned(mine) if mine else set()) | written) - removed
        entries = _without_paths([entry for entry in entries if entry is not mine], written | removed)
        if owned:
            entries.append(_entry(manager, "Update", new["apiVersion"], subresource, owned))
    _set_entries(new, entries)


# ---------------------------------------------------------------- apply


def apply(live: Obj | None, config: Obj, manager: str, *, force: bool) -> Obj:
    """Server-side apply: return the merged object with its new `managedFields`.

    What the manager applied before and no longer does is removed unless another manager owns it; equal values are
    owned together.

    Raises:
        ApiError: 409 with a cause per field that another manager owns and this write would change, unless `force`.
    """
    applied = flatten(owned_part(config))
    if live is None:
        out = {**config, "metadata": dict(config["metadata"])}
        _set_entries(out, [_entry(manager, "Apply", config["apiVersion"], "", set(applied))] if applied else [])
        return out
    entries: list[ManagedFieldsEntry] = list(live["metadata"].get("managedFields") or [])
    previous = next((entry for entry in entries if _is(entry, manager, "Apply", "")), None)
    others = [entry for entry in entries if entry is not previous]
    current = flatten(owned_part(live))
    changed = {path for path, value in applied.items() if path in current and current[path] != value}
    conflicts = [(entry, path) for entry in others for path in sorted(_owned(entry) & changed)]
    if conflicts and not force:
        raise _conflict(conflicts)
    kept_by_others = _without_paths(others, changed)
    merged = _merged(owned_part(live), owned_part(config))
    if previous is not None:
        keep = set(applied).union(*(_owned(entry) for entry in kept_by_others))
        for path in sorted(_owned(previous) - keep, key=lambda p: (p[-1] != ".", p)):
            if path[-1] == "." and any(path_kept[: len(path) - 1] == path[:-1] for path_kept in keep):
                continue
            merged = _without(merged, path) or {}
    metadata = {key: value for key, value in live["metadata"].items() if key not in _OWNED_METADATA}
    out = {key: live[key] for key in ("apiVersion", "kind", "status") if key in live}
    out |= {**merged, "metadata": metadata | merged.get("metadata", {})}
    if previous is not None and _owned(previous) == set(applied) and kept_by_others == others:
        return out
    _set_entries(out, [*kept_by_others, _entry(manager, "Apply", config["apiVersion"], "", set(applied))])
    return out


def _conflict(conflicts: list[tuple[ManagedFieldsEntry, Path]]) -> ApiError:
    causes = []
    for entry, path in conflicts:
        who = f'"{entry["manager"]}"'
        if entry.get("subresource"):
            who += f' with subresource "{entry["subresource"]}"'
        if entry["operation"] == "Update":
            who += f" using {entry['apiVersion']}"
        causes.append(
            {"reason": "FieldManagerConflict", "message": f"conflict with {who}", "field": _format_path(path)}
        )
    if len(causes) == 1:
        message = f"Apply failed with 1 conflict: {causes[0]['message']}: {causes[0]['field']}"
    else:
        listed = "\n".join(f"{cause['message']}: {cause['field']}" for cause in causes)
        message = f"Apply failed with {len(causes)} conflicts: {listed}"
    return ApiError(409, "Conflict", message, causes=causes)


def _format_path(path: Path) -> str:
    """`.spec.template.spec.containers[name="web"].image`."""
    text = ""
    for step in path:
        if step.startswith("f:"):
            text += f".{step[2:]}"
        elif step.startswith("v:"):
            text += f"[={step[2:]}]"
        elif step.startswith("k:"):
            pairs = orjson.loads(step[2:]).items()
            text += "[" + ",".join(f"{key}={orjson.dumps(value).decode()}" for key, value in pairs) + "]"
    return text


def _merged(live: Any, config: Any, field: str = "") -> Any:
    """Lay `config` over `live`: config wins where both set a field, live stays where config is silent."""
    if isinstance(live, dict) and isinstance(config, dict):
        out = dict(live)
        for key, value in config.items():
            out[key] = _merged(live[key], value, key) if key in live else value
        return out
    if isinstance(live, list) and isinstance(config, list):
        if field in _SETS:
            return live + [item for item in config if item not in live]
        keys = _keys(field, live + config)
        if keys:
            live_items = {_item_step(keys, item): item for item in live}
            config_items = {_item_step(keys, item): item for item in config}
            order = config_items if live_items.keys() <= config_items.keys() else live_items | config_items
            return [
                _merged(live_items[step], config_items[step])
                if step in live_items and step in config_items
                else config_items.get(step, live_items.get(step))
                for step in order
            ]
    return config


def _without(value: Any, path: Path, field: str = "") -> Any:
    """Return the value without the field at `path`, and without the maps that this empties; None for nothing left."""
    step, tail = path[0], path[1:]
    if isinstance(value, dict) and step[2:] in value:
        key = step[2:]
        child = _without(value[key], tail, key) if tail else None
        out = {k: (child if k == key else v) for k, v in value.items() if k != key or child is not None}
        return out or None
    if isinstance(value, list) and step.startswith("v:"):
        return [item for item in value if _value_step(item) != step] or None
    if isinstance(value, list) and (keys := _keys(field, value)):
        items = []
        for item in value:
            if _item_step(keys, item) != step:
                items.append(item)
            elif tail != (".",):
                items.append(_without(item, tail) or {})
        return items or None
    return value


# ---------------------------------------------------------------- patches


def merge_patch(target: Any, patch: Any) -> Any:
    """Return `target` with a JSON merge patch (RFC 7386) applied."""
    if not isinstance(patch, dict):
        return patch
    out = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            out.pop(key, None)
        else:
            out[key] = merge_patch(out.get(key), value)
    return out


def strategic_merge_patch(target: Any, patch: Any) -> Any:
    """Return `target` with Kubernetes' strategic merge patch applied: lists with keys are merged item by item."""
    if not isinstance(patch, dict):
        return patch
    if patch.get("$patch") == "replace":
        return {key: value for key, value in patch.items() if key != "$patch"}
    out = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if key.startswith("$"):
            # $setElementOrder and $retainKeys only order or repeat what the rest of the patch says.
            continue
        if value is None:
            out.pop(key, None)
        elif isinstance(value, list):
            out[key] = _strategic_list(key, out.get(key) or [], value)
        else:
            out[key] = strategic_merge_patch(out.get(key), value)
    return out


def _strategic_list(field: str, target: list[Any], patch: list[Any]) -> list[Any]:
    if field in _SETS:
        return target + [item for item in patch if item not in target]
    keys = _keys(field, target + patch)
    if not keys:
        return patch
    out = list(target)
    for item in patch:
        if keys[0] not in item:
            raise bad_request(f"map: {item} does not contain declared merge key: {keys[0]}")
        at = next((index for index, old in enumerate(out) if old[keys[0]] == item[keys[0]]), None)
        if item.get("$patch") == "delete":
            out = [old for index, old in enumerate(out) if index != at]
        elif at is None:
            out.append(strategic_merge_patch({}, item))
        else:
            out[at] = strategic_merge_patch(out[at], item)
    return out
