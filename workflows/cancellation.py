"""The cancellation of a workflow that one of its activities has outlived."""

from __future__ import annotations

import asyncio

from temporalio import workflow


def is_cancelled() -> bool:
    """Return whether the server has cancelled this workflow, also when its activity then failed for another reason."""
    return workflow.cancellation_reason() is not None


def raise_if_cancelled() -> None:
    """Raise ``CancelledError`` if the server has cancelled this workflow; never called by a compensation.

    Hazard: an activity that is cancelled with ``WAIT_CANCELLATION_COMPLETED`` and succeeds all the same returns its
    result, and the SDK drops the cancellation.
    """
    if is_cancelled():
        raise asyncio.CancelledError
