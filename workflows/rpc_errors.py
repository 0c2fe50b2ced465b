"""Translation of the errors of Temporal's client."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable
from typing import Any, TypeVar

from temporalio.client import (
    WithStartWorkflowOperation,
    WorkflowUpdateFailedError,
    WorkflowUpdateRPCTimeoutOrCancelledError,
)
from temporalio.service import RPCError, RPCStatusCode

from workflows.errors import to_rule_violation

T = TypeVar("T")

_UNAVAILABLE_STATUSES = (
    RPCStatusCode.UNAVAILABLE,
    RPCStatusCode.DEADLINE_EXCEEDED,
    RPCStatusCode.CANCELLED,
    RPCStatusCode.RESOURCE_EXHAUSTED,
)
_CONNECT_ERROR = "Failed client connect"


class TemporalUnavailable(Exception):
    """The Temporal server or every worker is unavailable. Whether the command was accepted is unknown."""


class WorkflowTaskPending(TemporalUnavailable):
    """The current run has just started and no worker has executed its first task, so it cannot answer queries."""


class WorkflowNotRunning(Exception):
    """The workflow has ended or was never started."""


async def consume_start_error(start: WithStartWorkflowOperation[Any, Any]) -> None:
    """Retrieve the error that the SDK keeps in the handle, so that asyncio does not report it as unretrieved."""
    with contextlib.suppress(Exception):
        async with asyncio.timeout(0.05):
            await start.workflow_handle()


async def translate_rpc_errors(call: Awaitable[T]) -> T:
    try:
        return await call
    except WorkflowUpdateFailedError as error:
        raise to_rule_violation(error) from error
    except WorkflowUpdateRPCTimeoutOrCancelledError as error:
        raise TemporalUnavailable from error
    except RPCError as error:
        raise from_rpc_error(error) from error
    except RuntimeError as error:
        raise from_connect_error(error) from error


def from_connect_error(error: RuntimeError) -> Exception:
    """Return the error of a lazy client whose first connection failed, which the SDK reports as ``RuntimeError``."""
    return TemporalUnavailable(str(error)) if str(error).startswith(_CONNECT_ERROR) else error


def from_rpc_error(error: RPCError) -> Exception:
    if error.status is RPCStatusCode.NOT_FOUND:
        return WorkflowNotRunning(error.message)
    if error.status is RPCStatusCode.FAILED_PRECONDITION:
        return WorkflowTaskPending(error.message)
    if error.status in _UNAVAILABLE_STATUSES:
        return TemporalUnavailable(error.message)
    return error
