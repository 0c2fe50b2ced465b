"""Names, labels and annotations: the rules of RFC 1123 and 1035 as Kubernetes words them."""

from __future__ import annotations

import random
import re
from typing import Any

from deploy.local.cluster.errors import Cause, required, wrong
from deploy.local.cluster.resources import Obj, Resource

LABEL = re.compile(r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
SUBDOMAIN = re.compile(r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$")
QUALIFIED = re.compile(r"^([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]$")
PATH_SEGMENT = re.compile(r"^[^/%]+$")

_LABEL_TEXT = (
    "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with "
    "an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is "
    "'[a-z0-9]([-a-z0-9]*[a-z0-9])?')"
)
SUBDOMAIN_TEXT = (
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and "
    "end with an alphanumeric character (e.g. 'example.com', regex used for validation is "
    "'[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
)
_VALUE_TEXT = (
    "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and "
    "end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is "
    "'(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')"
)
_KEY_TEXT = (
    "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric "
    "character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is "
    "'([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')"
)
_ALPHABET = "bcdfghjklmnpqrstvwxz2456789"


def suffix(length: int = 5) -> str:
    """Random characters as generated names have them."""
    return "".join(random.choices(_ALPHABET, k=length))  # noqa: S311  # names, not secrets


def check_name(name: Any, rule: str, field: str) -> list[Cause]:
    """Problems of a name under `subdomain` or `label`."""
    if rule == "label" and isinstance(name, str) and "." in name:
        return [wrong(field, name, "must not contain dots")]
    if rule == "label":
        pattern, limit, text = LABEL, 63, _LABEL_TEXT
    else:
        pattern, limit, text = SUBDOMAIN, 253, SUBDOMAIN_TEXT
    if not isinstance(name, str) or not pattern.match(name):
        return [wrong(field, name, text)]
    if len(name) > limit:
        return [wrong(field, name, f"must be no more than {limit} bytes")]
    return []


def check_key(key: str, field: str) -> list[Cause]:
    """Problems of a label or annotation key."""
    prefix, slash, name = key.rpartition("/")
    problems = []
    if slash and (not prefix or len(prefix) > 253 or not SUBDOMAIN.match(prefix)):
        problems.append(wrong(field, key, "prefix part " + SUBDOMAIN_TEXT))
    if not name or not QUALIFIED.match(name):
        problems.append(wrong(field, key, _KEY_TEXT))
    elif len(name) > 63:
        problems.append(wrong(field, key, "name part must be no more than 63 bytes"))
    return problems


def check_labels(labels: dict[str, str], field: str) -> list[Cause]:
    """Problems of a set of labels."""
    problems = []
    for key, value in labels.items():
        problems += check_key(key, field)
        if value and not QUALIFIED.match(value):
            problems.append(wrong(field, value, _VALUE_TEXT))
        elif len(value) > 63:
            problems.append(wrong(field, value, "must be no more than 63 bytes"))
    return problems


def check_metadata(resource: Resource, obj: Obj) -> list[Cause]:
    """Problems of an object's metadata."""
    meta = obj["metadata"]
    name = meta.get("name", "")
    if not name:
        return [required("metadata.name", "name or generateName is required")]
    if resource.group == "rbac.authorization.k8s.io":
        problems = [] if PATH_SEGMENT.match(name) else [wrong("metadata.name", name, "may not contain '/' or '%'")]
    else:
        problems = check_name(name, resource.names, "metadata.name")
    problems += check_labels(meta.get("labels") or {}, "metadata.labels")
    size = 0
    for key, value in (meta.get("annotations") or {}).items():
        problems += check_key(key.lower(), "metadata.annotations")
        size += len(key) + len(value)
    if size > 256 * 1024:
        problems.append(
            {
                "reason": "FieldValueTooLong",
                "message": "Too long: may not be more than 262144 bytes",
                "field": "metadata.annotations",
            }
        )
    for index, owner in enumerate(meta.get("ownerReferences") or ()):
        for key in ("apiVersion", "kind", "name", "uid"):
            if not owner.get(key):
                problems.append(wrong(f"metadata.ownerReferences[{index}].{key}", "", "must not be empty"))
    for finalizer in meta.get("finalizers") or ():
        if "/" not in finalizer and finalizer not in ("orphan", "foregroundDeletion", "kubernetes"):
            problems.append(
                wrong(
                    "metadata.finalizers",
                    finalizer,
                    "name is neither a standard finalizer name nor is it fully qualified",
                )
            )
    return problems
