"""The undo stack: what was done is undone, newest first, when a process fails or is cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import TracebackType

from temporalio import workflow

Undo = Callable[[], Awaitable[None]]


class Saga:
    """``async with Saga() as saga:`` and, **before** each step, ``saga.on_failure(undo)``.

    An undo is armed before the deed because a deed whose answer was lost may have happened; it therefore has to bear
    that nothing happened at all, and that it is called twice. On any ``Exception`` and on cancellation
    (``asyncio.CancelledError``, which an activity reports as ``ActivityError``) the undos run newest first, shielded
    from further cancellation, each one even when another has failed; then the original exception goes on.

    Attributes:
        cause: Why the undos run; an undo may ask.
        failed: What the undos themselves raised; empty means that everything was undone.
    """

    def __init__(self) -> None:
        self._undos: list[Undo] = []
        self.cause: BaseException | None = None
        self.failed: list[Exception] = []

    def on_failure(self, undo: Undo) -> None:
        self._undos.append(undo)

    async def __aenter__(self) -> Saga:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # Eviction from the worker's cache ends coroutines with GeneratorExit and the like: that is no failure.
        if not isinstance(error, Exception | asyncio.CancelledError):
            return
        self.cause = error
        undoing = asyncio.create_task(self._undo())
        while not undoing.done():
            try:
                await asyncio.shield(undoing)
            except asyncio.CancelledError:
                continue

    async def _undo(self) -> None:
        while self._undos:
            undo = self._undos.pop()
            try:
                await undo()
            except Exception as error:  # noqa: BLE001 - kept in `failed`; the other undos must have their turn
                workflow.logger.warning("an undo failed", exc_info=error)
                self.failed.append(error)
