"""Short database activities that run locally first."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from temporalio import workflow
from temporalio.exceptions import ApplicationError, FailureError, is_cancelled_exception

from workflows import policies
from workflows.errors import ORDINARY_ACTIVITY_REQUIRED

Command = TypeVar("Command")
Result = TypeVar("Result")


async def execute(method: Callable[[Any, Command], Awaitable[Result]], command: Command) -> Result:
    """Run an activity locally, and as an ordinary activity after its local attempts failed.

    A local activity holds its workflow task while it is retried: entities that fail for long (the database is down)
    would occupy every slot of the worker. The server retries the ordinary activity without a slot. The activity must be
    idempotent: a local attempt that timed out may still commit.

    A workflow task that is lost loses the result of a local activity, and other commands may come first when it is
    repeated. So a local activity must not commit what the workflow alone goes on with, such as a hold for a payment: it
    raises ``ORDINARY_ACTIVITY_REQUIRED`` instead.

    Args:
        method: The unbound method of a port.
        command: Its argument.

    Raises:
        ApplicationError: the activity refused (non-retryable); it comes bare from a local activity.
        ActivityError: the ordinary activity refused or was cancelled.
    """
    try:
        return await workflow.execute_local_activity_method(method, command, **policies.DATABASE_LOCAL)
    except FailureError as error:
        if is_cancelled_exception(error) or (_is_final(error) and not _is_ordinary_required(error)):
            raise
    return await workflow.execute_activity_method(method, command, **policies.DATABASE)


def _is_ordinary_required(error: FailureError) -> bool:
    return isinstance(error, ApplicationError) and error.type == ORDINARY_ACTIVITY_REQUIRED


def _is_final(error: FailureError) -> bool:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ApplicationError) and cause.non_retryable:
            return True
        cause = cause.__cause__
    return False
