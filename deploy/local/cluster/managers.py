"""`metadata.managedFields`: who owns which field, and server-side apply with its conflicts."""

from __future__ import annotations

from typing import Any

from deploy.local.cluster import fieldsets
from deploy.local.cluster.decoding import untyped
from deploy.local.cluster.errors import ApiError, Cause
from deploy.local.cluster.fieldsets import Set
from deploy.local.cluster.resources import Obj, Resource
from deploy.local.cluster.times import now

Entry = dict[str, Any]

# Identity and bookkeeping that nobody owns.
_UNOWNED = (
    "name",
    "namespace",
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "selfLink",
    "managedFields",
    "generateName",
)


def owned_part(obj: Obj, subresource: str) -> Obj:
    """The part of the object that a write through this endpoint can own."""
    out = {k: v for k, v in obj.items() if k not in ("apiVersion", "kind", "metadata")}
    if subresource == "status":
        out = {"status": out["status"]} if "status" in out else {}
    elif subresource == "":
        out.pop("status", None)
    meta = {k: v for k, v in obj.get("metadata", {}).items() if k not in _UNOWNED}
    if meta and subresource != "status":
        out["metadata"] = meta
    return out


def _same(entry: Entry, manager: str, operation: str, api_version: str, subresource: str) -> bool:
    return bool(
        entry["manager"] == manager
        and entry["operation"] == operation
        and entry["apiVersion"] == api_version
        and entry.get("subresource", "") == subresource
    )


def _entry(manager: str, operation: str, api_version: str, subresource: str, owned: Set) -> Entry:
    out: Entry = {
        "manager": manager,
        "operation": operation,
        "apiVersion": api_version,
        "time": now(),
        "fieldsType": "FieldsV1",
        "fieldsV1": owned,
    }
    if subresource:
        out["subresource"] = subresource
    return out


def track_update(resource: Resource, live: Obj | None, new: Obj, manager: str, subresource: str) -> None:
    """After an ordinary write: what it changed now belongs to `manager`, and to nobody else. Changes `new`."""
    entries: list[Entry] = list((live or new)["metadata"].get("managedFields") or [])
    if live is None:
        entries = []
    sent = new["metadata"].get("managedFields")
    if live is not None and sent == []:
        entries = []
    part = owned_part(new, subresource)
    found = fieldsets.compare(resource.schema, owned_part(live, subresource) if live else {}, part)
    written, removed = found.written, found.removed
    if written is None and removed is None:
        _keep(new, entries)
        return
    touched = fieldsets.join(written, removed)
    out: list[Entry] = []
    mine: Set | None = None
    for entry in entries:
        if _same(entry, manager, "Update", resource.api_version, subresource):
            mine = entry["fieldsV1"]
            continue
        left = fieldsets.minus(entry["fieldsV1"], touched)
        if left is not None:
            out.append(entry if left == entry["fieldsV1"] else {**entry, "fieldsV1": left})
    owned = fieldsets.join(mine, written)
    if owned is not None and removed is not None:
        owned = fieldsets.minus(owned, removed)
    if owned:
        out.append(_entry(manager, "Update", resource.api_version, subresource, owned))
    _keep(new, out)


def _keep(obj: Obj, entries: list[Entry]) -> None:
    if entries:
        obj["metadata"]["managedFields"] = entries
    else:
        obj["metadata"].pop("managedFields", None)


def _shown(entry: Entry) -> str:
    text = f'"{entry["manager"]}"'
    if entry.get("subresource"):
        text += f' with subresource "{entry["subresource"]}"'
    if entry["operation"] == "Update":
        text += f" using {entry['apiVersion']}"
        if entry.get("time"):
            text += f" at {entry['time']}"
    return text


def _conflict(found: list[tuple[str, str]]) -> ApiError:
    causes: list[Cause] = [
        {"reason": "FieldManagerConflict", "message": f"conflict with {who}", "field": path} for who, path in found
    ]
    if len(found) == 1:
        message = f"Apply failed with 1 conflict: conflict with {found[0][0]}: {found[0][1]}"
    else:
        by: dict[str, list[str]] = {}
        for who, path in found:
            by.setdefault(who, []).append(f"- {path}")
        lines = [f"conflicts with {who}:\n" + "\n".join(by[who]) for who in sorted(by)]
        message = f"Apply failed with {len(found)} conflicts: " + "\n".join(lines)
    return ApiError(409, "Conflict", message, causes=causes)


def apply(
    resource: Resource, live: Obj | None, config: Obj, manager: str, *, force: bool, subresource: str = ""
) -> Obj:
    """Server-side apply: the merged object with its new `managedFields`. 409 where another manager owns a change.

    `config` is already checked against the schema. Follows structured-merge-diff: what the manager applied before and
    no longer does is removed unless somebody else owns it; equal values are owned together.
    """
    node = resource.schema
    part = owned_part(config, subresource)
    try:
        wanted = fieldsets.of(node, part) if part else None
    except fieldsets.DuplicateItem as exc:
        path = next(fieldsets.paths(exc.path))
        key = next(fieldsets.paths({exc.key: {}}))
        raise untyped(resource, config, [f"{path}: duplicate entries for key {key}"]) from exc
    if live is None:
        out = dict(config)
        out["metadata"] = {k: v for k, v in config["metadata"].items() if k != "managedFields"}
        if wanted:
            _keep(out, [_entry(manager, "Apply", resource.api_version, subresource, wanted)])
        return out
    entries: list[Entry] = list(live["metadata"].get("managedFields") or [])
    before = owned_part(live, subresource)
    after = fieldsets.merged(node, before, part)
    found = fieldsets.compare(node, before, after)
    written = found.written
    others: list[Entry] = []
    previous: Entry | None = None
    conflicts: list[tuple[str, str]] = []
    for entry in entries:
        if _same(entry, manager, "Apply", resource.api_version, subresource):
            previous = entry
            continue
        clash = fieldsets.both(entry["fieldsV1"], written)
        if clash is not None:
            if not force:
                conflicts += [(_shown(entry), path) for path in fieldsets.paths(clash)]
            left = fieldsets.minus(entry["fieldsV1"], clash)
            if left is None:
                continue
            entry = {**entry, "fieldsV1": left}
        others.append(entry)
    if conflicts:
        raise _conflict(sorted(conflicts, key=lambda c: c[1]))
    if previous is not None:
        drop = fieldsets.minus(previous["fieldsV1"], wanted)
        if drop is not None:
            keep = wanted
            for entry in others:
                keep = fieldsets.join(keep, entry["fieldsV1"])
            after = fieldsets.without(node, after, drop, keep) or {}
    out = {k: v for k, v in live.items() if k in ("apiVersion", "kind")}
    meta = {k: v for k, v in live["metadata"].items() if k in _UNOWNED}
    if subresource == "status":
        meta = dict(live["metadata"])
        out |= {k: v for k, v in live.items() if k not in ("metadata", "status")}
    else:
        meta |= after.pop("metadata", {})
        if "status" in live and subresource == "":
            out["status"] = live["status"]
    out["metadata"] = meta
    out |= after
    if wanted:
        if (
            previous is not None
            and previous["fieldsV1"] == wanted
            and others == [e for e in entries if e is not previous]
        ):
            _keep(out, entries)
        else:
            _keep(out, [*others, _entry(manager, "Apply", resource.api_version, subresource, wanted)])
    else:
        _keep(out, others)
    return out
