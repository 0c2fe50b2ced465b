"""HTTP connections as the API accepts them."""

from __future__ import annotations

import asyncio
from typing import ClassVar

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol


class HeaderTimeoutProtocol(H11Protocol):
    """Closes connections whose next request's headers are not complete in time.

    Hazard: uvicorn's own timeout ends with the first byte of a request, and does not begin before the first response.
    Without this one, silent and half-sent connections stay until they have used up the process's file descriptors.

    Attributes:
        header_timeout: Seconds from the opening of the connection, or from the first byte of a later request. The body
            and the response are limited by the request's timeout.
    """

    header_timeout: ClassVar[float] = 10.0

    _closing: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        super().connection_made(transport)
        self._await_headers()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._await_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def _await_headers(self) -> None:
        """Close the connection later if headers are expected; a client that sends slowly does not defer it."""
        if self.conn.their_state is not h11.IDLE:
            self._stop_waiting()
        elif self._closing is None:
            self._closing = self.loop.call_later(self.header_timeout, self.transport.close)

    def _stop_waiting(self) -> None:
        if self._closing is not None:
            self._closing.cancel()
            self._closing = None
