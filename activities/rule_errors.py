"""Rule violations become errors that Temporal does not retry."""

from __future__ import annotations

import functools
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from workflows.errors import to_application_error
from workflows.rules.errors import RuleViolation

Command = TypeVar("Command")
Result = TypeVar("Result")


def converts_rule_violations(
    method: Callable[[Any, Command], Coroutine[Any, Any, Result]],
) -> Callable[[Any, Command], Coroutine[Any, Any, Result]]:
    """Decorate an activity so that a ``RuleViolation`` fails it for good with the rule's error code.

    Any other exception is retried: an unconverted violation would be retried for ever, with the workflow's lock held.
    Placed below ``@activity.defn``.
    """

    @functools.wraps(method)
    async def execute(self: Any, command: Command) -> Result:
        try:
            return await method(self, command)
        except RuleViolation as violation:
            raise to_application_error(violation) from violation

    return execute
