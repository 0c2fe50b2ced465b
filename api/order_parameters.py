"""What an order may say about its instance: the JSON Schema of its service."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import orjson
from jsonschema.protocols import Validator

from api.errors import validation_error
from workflows.json_schema import build_validator
from workflows.rules.host_labels import require_available_label

MAX_KEPT_VALIDATORS = 256


@lru_cache(maxsize=MAX_KEPT_VALIDATORS)
def _validator(schema: str) -> Validator:
    """Kept by the schema's text: one that an administrator changes is another one."""
    return build_validator(orjson.loads(schema))


def check_parameters(schema: str, parameters: dict[str, Any]) -> None:
    """Raise 422 for the first violation of the schema, a JSON Schema as text; the message does not quote the value."""
    error = next(iter(sorted(_validator(schema).iter_errors(parameters), key=_error_path)), None)
    if error is None:
        return
    field = ".".join(["parameters", *(str(part) for part in error.absolute_path)])
    reason = {
        "additionalProperties": "Unknown parameter.",
        "required": "Missing required parameter.",
        "format": f"Must be a valid {error.validator_value}.",
        "pattern": "Does not match the required pattern.",
        "type": f"Must be of type {error.validator_value}.",
        "enum": f"Must be one of: {_allowed_values(error)}.",
    }.get(str(error.validator), f"Violates the schema constraint {error.validator}: {error.validator_value}.")
    raise validation_error(field, reason)


def check_host_label(parameters: dict[str, Any]) -> None:
    """Refuse a subdomain that is not for customers. Raises ``RuleViolation`` ``VALIDATION_ERROR`` (422)."""
    subdomain = parameters.get("subdomain")
    if isinstance(subdomain, str):
        require_available_label(subdomain)


def _allowed_values(error: Any) -> str:
    # Another validator may carry a value that is no list.
    values = error.validator_value if error.validator == "enum" else ()
    return ", ".join(str(value) for value in values)


def _error_path(error: Any) -> list[str]:
    return [str(part) for part in error.absolute_path]
