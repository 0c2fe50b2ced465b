"""Validation by JSON Schema as its specification has it, for what customers send."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from jsonschema import Draft202012Validator, ValidationError
from jsonschema.protocols import Validator
from jsonschema.validators import extend

REFERENCES = ("$ref", "$dynamicRef")

_END_OR_NOT = re.compile(r"\\.|\[(?:\\.|[^\]\\])*\]|\$", re.DOTALL)


def to_python_pattern(pattern: str) -> str:
    """Return a pattern of ECMA-262, which JSON Schema uses, for Python.

    ``$`` is the end of the text there. In Python it also matches before a line break at the end: a host name with one
    would pass.
    """
    return _END_OR_NOT.sub(lambda match: r"\Z" if match[0] == "$" else match[0], pattern)


def _check_pattern(_: Validator, pattern: str, instance: object, __: Mapping[str, Any]) -> Iterator[ValidationError]:
    if isinstance(instance, str) and not re.search(to_python_pattern(pattern), instance):
        yield ValidationError(f"does not match {pattern!r}")


def _check_reference(keyword: str) -> Callable[..., Iterator[ValidationError]]:
    follow = Draft202012Validator.VALIDATORS[keyword]

    def check(validator: Validator, reference: str, instance: object, schema: Mapping[str, Any]) -> Any:
        if not reference.startswith("#"):
            return iter([ValidationError("refers to another document")])
        return follow(validator, reference, instance, schema)

    return check


ParameterValidator: type[Validator] = extend(  # type: ignore[no-untyped-call] # the stubs leave it untyped
    Draft202012Validator,
    {"pattern": _check_pattern, **{keyword: _check_reference(keyword) for keyword in REFERENCES}},
)
"""Validates a customer's parameters by the schema of a service. It reads no other document: jsonschema itself would
fetch ``http:`` and ``file:`` references, and wait for them."""


def has_foreign_reference(schema: object) -> bool:
    """Return whether a schema refers to another document."""
    if isinstance(schema, Mapping):
        return any(
            (name in REFERENCES and isinstance(value, str) and not value.startswith("#"))
            or has_foreign_reference(value)
            for name, value in schema.items()
        )
    return isinstance(schema, list) and any(map(has_foreign_reference, schema))
