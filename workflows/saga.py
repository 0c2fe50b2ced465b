"""Saga: runs the compensations of completed steps, newest first, when a workflow fails or is cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import TracebackType

from temporalio import workflow

Compensation = Callable[[], Awaitable[None]]


class Saga:
    """``async with Saga() as saga:`` and, **before** each step, ``saga.add_compensation(compensate)``.

    A compensation is added before its step, because a step whose response was lost may have happened. It must
    tolerate that nothing happened, and that it is called twice. On any ``Exception`` and on cancellation
    (``asyncio.CancelledError``, which an activity reports as ``ActivityError``) the compensations run newest first,
    shielded from further cancellation, each one even when another has failed. The original exception then propagates.

    Attributes:
        cause: The error that started the compensations; a compensation may read it.
        compensation_errors: Errors of the compensations; empty means that every step was compensated.
    """

    def __init__(self) -> None:
        self._compensations: list[Compensation] = []
        self.cause: BaseException | None = None
        self.compensation_errors: list[Exception] = []

    def add_compensation(self, compensation: Compensation) -> None:
        self._compensations.append(compensation)

    async def __aenter__(self) -> Saga:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # Eviction from the worker's cache ends coroutines with GeneratorExit and the like: that is no failure.
        if not isinstance(error, Exception | asyncio.CancelledError):
            return
        self.cause = error
        compensating = asyncio.create_task(self._compensate())
        while not compensating.done():
            try:
                await asyncio.shield(compensating)
            except asyncio.CancelledError:
                continue

    async def _compensate(self) -> None:
        while self._compensations:
            compensation = self._compensations.pop()
            try:
                await compensation()
            except Exception as error:  # noqa: BLE001 - kept in `compensation_errors`; the others still run
                workflow.logger.warning("a compensation failed", exc_info=error)
                self.compensation_errors.append(error)
