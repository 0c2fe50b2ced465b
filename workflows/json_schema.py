"""Validation by JSON Schema as its specification has it, for what customers send."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Any, Final
from urllib.parse import unquote

import re2
from email_validator import EmailNotValidError, validate_email
from jsonschema import Draft202012Validator, FormatChecker, ValidationError
from jsonschema.protocols import Validator
from jsonschema.validators import extend

from workflows.time_zones import is_time_zone

REFERENCES = ("$ref", "$dynamicRef")

IDENTITIES = ("$schema", "$id")
"""Keywords that make a part a separate document. By its ``$schema`` jsonschema chooses another validator, which matches
patterns with ``re``; references within a part with an ``$id`` are fetched over HTTP."""

MAX_PARTS = 1000
"""Objects, lists and values of a schema with its references followed. A reference to a part that it is in has no end,
and references to references can multiply."""

_MISSING: Final = object()
_OPTIONS = re2.Options()
_OPTIONS.log_errors = False


@lru_cache(maxsize=1024)
def _compile_pattern(pattern: str) -> Any:
    """Return a pattern that is matched in linear time. Its ``$`` is the end of the text, as in ECMA-262.

    Raises:
        re2.error: The pattern is invalid, too large, or needs more than linear time.
    """
    return re2.compile(pattern, _OPTIONS)


def _check_pattern(_: Validator, pattern: str, instance: object, __: Mapping[str, Any]) -> Iterator[ValidationError]:
    if isinstance(instance, str) and not _compile_pattern(pattern).search(instance):
        yield ValidationError(f"does not match {pattern!r}")


def _check_unique_items(
    _: Validator, unique: object, instance: object, __: Mapping[str, Any]
) -> Iterator[ValidationError]:
    if unique and isinstance(instance, list) and len({_comparable(item) for item in instance}) < len(instance):
        yield ValidationError("has non-unique elements")


def _comparable(value: object) -> object:
    """Return what equal values of JSON have in common: ``1`` and ``1.0`` are equal, ``1`` and ``true`` are not."""
    if isinstance(value, bool) or value is None:
        return (type(value), value)
    if isinstance(value, list):
        return (list, tuple(_comparable(item) for item in value))
    if isinstance(value, Mapping):
        return (dict, frozenset((name, _comparable(item)) for name, item in value.items()))
    return value


def _refuse(_: Validator, __: object, ___: object, ____: Mapping[str, Any]) -> Iterator[ValidationError]:
    yield ValidationError("uses a keyword that is not supported")


def _check_reference(keyword: str) -> Callable[..., Iterator[ValidationError]]:
    follow = Draft202012Validator.VALIDATORS[keyword]

    def check(validator: Validator, reference: str, instance: object, schema: Mapping[str, Any]) -> Any:
        if not reference.startswith("#"):
            return iter([ValidationError("refers to another document")])
        return follow(validator, reference, instance, schema)

    return check


ParameterValidator: type[Validator] = extend(  # type: ignore[no-untyped-call] # the stubs leave it untyped
    Draft202012Validator,
    {
        "pattern": _check_pattern,
        "uniqueItems": _check_unique_items,
        "patternProperties": _refuse,
        **{keyword: _check_reference(keyword) for keyword in REFERENCES},
    },
)
"""Validates a customer's parameters by the schema of a service.

Hazards of jsonschema itself: it matches patterns with ``re``, whose time can double with each character, compares each
object of a list with unique items with each other one, and fetches ``http:`` and ``file:`` references, and waits for
them.
"""


FORMATS = FormatChecker(formats=())
"""The formats that are checked. Those of jsonschema itself match with ``re`` as well."""


@FORMATS.checks("time-zone")
def _is_time_zone(value: object) -> bool:
    """Whether ``value`` is the name of an IANA time zone; what is no string is judged by its type."""
    return not isinstance(value, str) or is_time_zone(value)


@FORMATS.checks("email")
def _is_email(value: object) -> bool:
    """Whether ``value`` is a mail address; what is no string is judged by its type."""
    if not isinstance(value, str):
        return True
    try:
        # No application takes a name that is not ASCII; its domain is written in ASCII for them.
        validate_email(value, check_deliverability=False, allow_smtputf8=False)
    except EmailNotValidError:
        return False
    return True


def build_validator(schema: Mapping[str, Any]) -> Validator:
    """Return the validator of a service's parameters."""
    return ParameterValidator(schema, format_checker=FORMATS)


def find_schema_fault(schema: Mapping[str, Any]) -> str | None:
    """Return why a valid JSON Schema cannot be used for parameters; None if it can."""
    pending: list[object] = [schema]
    parts = 0
    while pending:
        part = pending.pop()
        parts += 1
        if parts > MAX_PARTS:
            return f"With its references followed, the schema has more than {MAX_PARTS} parts, or no end."
        if isinstance(part, list):
            pending += part
        if not isinstance(part, Mapping):
            continue
        if any(isinstance(part.get(keyword), str) for keyword in IDENTITIES if part is not schema or keyword == "$id"):
            return "`$id`, and `$schema` below the first level, are not supported: the schema is one document."
        if "patternProperties" in part:
            return "`patternProperties` is not supported."
        pending += part.values()
        pattern = part.get("pattern")
        if isinstance(pattern, str) and (fault := _find_pattern_fault(pattern)) is not None:
            return fault
        for reference in (part[keyword] for keyword in REFERENCES if isinstance(part.get(keyword), str)):
            target = _resolve(schema, reference)
            if target is _MISSING:
                return "A `$ref` must point to a part of the schema (`#/…`): no other document is read."
            pending.append(target)
    return None


def _find_pattern_fault(pattern: str) -> str | None:
    try:
        _compile_pattern(pattern)
    except re2.error:
        return "A `pattern` is invalid in RE2, which has no look-ahead, look-behind and back-references."
    return None


def _resolve(schema: object, reference: str) -> object:
    """Return the part that a JSON pointer in a URI's fragment names; ``_MISSING`` if there is none."""
    fragment, *names = reference.split("/")
    if fragment != "#":
        return _MISSING
    part = schema
    for name in names:
        key = unquote(name).replace("~1", "/").replace("~0", "~")
        if isinstance(part, Mapping) and key in part:
            part = part[key]
        elif isinstance(part, list) and key.isdecimal() and int(key) < len(part):
            part = part[int(key)]
        else:
            return _MISSING
    return part
