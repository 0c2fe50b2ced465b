"""Label and field selectors."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from deploy.local.cluster.errors import bad_request
from deploy.local.cluster.resources import Obj, Resource

Match = Callable[[Obj], bool]

_SET = re.compile(r"\s*([^\s!=,]+)\s+(in|notin)\s+\(([^)]*)\)\s*")
_EQUAL = re.compile(r"\s*([^\s!=]+)\s*(==|=|!=)\s*([^\s]*)\s*")
_BAD = re.compile(r"[!=]\s*(\()")
_KEY = re.compile(r"\s*(!?)\s*([^\s!=,()]+)\s*")


def _parts(text: str) -> list[str]:
    parts, depth, start = [], 0, 0
    for index, char in enumerate(text):
        if char == "(":
            depth += 1
        elif char == ")":
            depth -= 1
        elif char == "," and depth == 0:
            parts.append(text[start:index])
            start = index + 1
    parts.append(text[start:])
    return [part for part in parts if part.strip()]


def labels(text: str) -> Match | None:
    """Parse a `labelSelector` parameter; None matches everything. Raises 400."""
    tests: list[Callable[[dict[str, str]], bool]] = []
    if bad := _BAD.search(text):
        raise bad_request(f"unable to parse requirement: found '{bad[1]}', expected: identifier")
    for part in _parts(text):
        if match := _SET.fullmatch(part):
            key, word, values = match[1], match[2], {v.strip() for v in match[3].split(",")}
            if word == "in":
                tests.append(lambda have, k=key, v=values: have.get(k) in v)  # type: ignore[misc]
            else:
                tests.append(lambda have, k=key, v=values: have.get(k) not in v)  # type: ignore[misc]
        elif match := _EQUAL.fullmatch(part):
            key, word, value = match[1], match[2], match[3]
            if word == "!=":
                tests.append(lambda have, k=key, v=value: have.get(k) != v)  # type: ignore[misc]
            else:
                tests.append(lambda have, k=key, v=value: have.get(k) == v)  # type: ignore[misc]
        elif match := _KEY.fullmatch(part):
            absent, key = bool(match[1]), match[2]
            tests.append(lambda have, k=key, a=absent: (k in have) != a)  # type: ignore[misc]
        else:
            raise bad_request(
                f'unable to parse requirement: found {part.strip()!r}, expected: !, identifier, or "end of string"'
            )
    if not tests:
        return None
    return lambda obj: all(test(obj["metadata"].get("labels") or {}) for test in tests)


_FIELDS: dict[str, tuple[str, ...]] = {
    "/pods": ("spec.nodeName", "status.phase", "status.podIP"),
    "/events": (
        "involvedObject.kind",
        "involvedObject.namespace",
        "involvedObject.name",
        "involvedObject.uid",
        "reason",
        "type",
    ),
    "/secrets": ("type",),
    "/namespaces": ("status.phase",),
}


def value_at(obj: Any, path: str) -> str:
    """Return the field as a selector compares it; an absent one is the empty string."""
    for part in path.split("."):
        obj = obj.get(part) if isinstance(obj, dict) else None
    if obj is None:
        return ""
    if isinstance(obj, bool):
        return "true" if obj else "false"
    return str(obj)


def fields(resource: Resource, text: str) -> Match | None:
    """Parse a `fieldSelector` parameter; None matches everything. Raises 400 for an unsupported field."""
    allowed = ("metadata.name", "metadata.namespace", *_FIELDS.get(resource.key, ()))
    tests: list[Match] = []
    for part in _parts(text):
        match = _EQUAL.fullmatch(part)
        if not match:
            raise bad_request(f"invalid selector: '{part}'; can't understand '{part}'")
        path, word, value = match[1], match[2], match[3]
        if path not in allowed:
            raise bad_request(f"field label not supported: {path}")
        same = word != "!="
        tests.append(lambda obj, p=path, v=value, s=same: (value_at(obj, p) == v) is s)  # type: ignore[misc]
    if not tests:
        return None
    return lambda obj: all(test(obj) for test in tests)


def matches(selector: dict[str, Any] | None, have: dict[str, str]) -> bool:
    """Whether labels match a `LabelSelector` object. None matches nothing, an empty one everything."""
    if selector is None:
        return False
    for key, value in (selector.get("matchLabels") or {}).items():
        if have.get(key) != value:
            return False
    for rule in selector.get("matchExpressions") or ():
        key, operator, values = rule["key"], rule["operator"], rule.get("values") or ()
        if operator == "In" and have.get(key) not in values:
            return False
        if operator == "NotIn" and key in have and have[key] in values:
            return False
        if operator == "Exists" and key not in have:
            return False
        if operator == "DoesNotExist" and key in have:
            return False
    return True
