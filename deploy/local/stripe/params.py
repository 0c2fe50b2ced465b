"""Form bodies and query strings as Stripe's clients write them, and typed access to what they hold."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import parse_qsl

from deploy.local.stripe.errors import StripeError, invalid_parameter, missing_parameter

_SEGMENT = re.compile(r"\[([^\[\]]*)\]")


def decode_form(encoded: str) -> dict[str, Any]:
    """`a[b]=1&c[0]=x&c[1]=y&d[]=z` → `{"a": {"b": "1"}, "c": ["x", "y"], "d": ["z"]}`; every leaf stays text."""
    tree: dict[str, Any] = {}
    for name, value in parse_qsl(encoded, keep_blank_values=True):
        head, _, brackets = name.partition("[")
        path = [head, *_SEGMENT.findall("[" + brackets)] if brackets else [head]
        node = tree
        for step in path[:-1]:
            child = node.setdefault(_next_key(node, step), {})
            if not isinstance(child, dict):
                raise StripeError(400, f"Invalid parameter nesting: {name}", param=name)
            node = child
        node[_next_key(node, path[-1])] = value
    return {key: _indexed_to_lists(value) for key, value in tree.items()}


def _next_key(node: Mapping[str, Any], step: str) -> str:
    return step if step else str(len(node))


def _indexed_to_lists(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    if value and all(key.isdigit() for key in value):
        return [_indexed_to_lists(value[key]) for key in sorted(value, key=int)]
    return {key: _indexed_to_lists(entry) for key, entry in value.items()}


class Params:
    """The parameters of one request. Each is read once by name; `finish` refuses whatever was never asked for.

    Stripe refuses unknown parameters, and a sandbox that swallowed them would hide a misspelling until production.
    An empty string means "unset" as it does at Stripe, and reads as None.
    """

    def __init__(self, values: Mapping[str, Any], prefix: str = "") -> None:
        self._values = dict(values)
        self._prefix = prefix

    def _name(self, name: str) -> str:
        return f"{self._prefix}[{name}]" if self._prefix else name

    def _pop(self, name: str) -> Any:
        value = self._values.pop(name, None)
        return None if value == "" else value

    def has(self, name: str) -> bool:
        return name in self._values

    def text(self, name: str) -> str | None:
        value = self._pop(name)
        if value is not None and not isinstance(value, str):
            raise invalid_parameter(self._name(name), f"Invalid string: {value!r}")
        return value

    def required_text(self, name: str) -> str:
        value = self.text(name)
        if value is None:
            raise missing_parameter(self._name(name))
        return value

    def integer(self, name: str) -> int | None:
        value = self._pop(name)
        if value is None:
            return None
        if not isinstance(value, str) or not re.fullmatch(r"-?\d{1,18}", value):
            raise StripeError(
                400, f"Invalid integer: {value}", code="parameter_invalid_integer", param=self._name(name)
            )
        return int(value)

    def flag(self, name: str) -> bool | None:
        value = self._pop(name)
        if value is None:
            return None
        if value not in ("true", "false"):
            raise invalid_parameter(self._name(name), f"Invalid boolean: {value}")
        return bool(value == "true")

    def one_of(self, name: str, choices: Iterable[str]) -> str | None:
        value = self.text(name)
        allowed = tuple(choices)
        if value is not None and value not in allowed:
            raise invalid_parameter(self._name(name), f"Invalid {name}: must be one of {', '.join(allowed)}")
        return value

    def nested(self, name: str) -> Params | None:
        value = self._pop(name)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise invalid_parameter(self._name(name), "Invalid object")
        return Params(value, self._name(name))

    def metadata(self, before: Mapping[str, str] | None = None) -> dict[str, str]:
        """The metadata after this request: given keys replace, empty ones remove, absent ones stay."""
        merged = dict(before or {})
        values = self._values.pop("metadata", None)
        if values in (None, ""):
            return {} if values == "" else merged
        if not isinstance(values, dict) or not all(isinstance(value, str) for value in values.values()):
            raise invalid_parameter("metadata", "Invalid object")
        for key, value in values.items():
            if value == "":
                merged.pop(key, None)
            elif len(key) > 40 or len(value) > 500:
                raise invalid_parameter(f"metadata[{key}]", "Metadata keys hold 40 characters, values 500.")
            else:
                merged[key] = value
        if len(merged) > 50:
            raise invalid_parameter("metadata", "Metadata can have up to 50 keys.")
        return merged

    def texts(self, name: str) -> list[str]:
        value = self._pop(name)
        if value is None:
            return []
        items = value if isinstance(value, list) else [value]
        if not all(isinstance(item, str) for item in items):
            raise invalid_parameter(self._name(name), "Invalid array")
        return [str(item) for item in items]

    def pop_raw(self, name: str) -> Any:
        """A parameter that is stored or passed over without being understood."""
        return self._pop(name)

    def ignore(self, *names: str) -> None:
        """Parameters of the real API that have no effect here."""
        for name in names:
            self._values.pop(name, None)

    def reject_unknown(self) -> None:
        for name in self._values:
            unknown = self._name(name)
            raise StripeError(400, f"Received unknown parameter: {unknown}", code="parameter_unknown", param=unknown)
