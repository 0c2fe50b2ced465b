"""HTTP connections as the API accepts them."""

from __future__ import annotations

import asyncio
from typing import ClassVar

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

KEEP_ALIVE_SECONDS = 75
"""How long an idle connection is kept: longer than a proxy keeps it (60 s), which would otherwise send a request into a
connection that is being closed, and return 502."""


class HeaderTimeoutProtocol(H11Protocol):
    """Closes connections whose next request's headers are not complete in time, or whose client does not read.

    Hazard: uvicorn's own timeout ends with the first byte of a request, and does not begin before the first response.
    Without this one, silent and half-sent connections stay until they have used up the process's file descriptors.

    Attributes:
        header_timeout: Seconds from the opening of the connection, from the first byte of a later request, or from a
            response that did not wait for the whole body. Until then body and response are limited by the request's
            timeout.
        read_timeout: Seconds in which the client takes what was written and exceeds the buffers, also before the end.
    """

    header_timeout: ClassVar[float] = 10.0
    read_timeout: ClassVar[float] = 60.0

    _closing: asyncio.TimerHandle | None = None
    _aborting: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        super().connection_made(transport)
        self._await_headers()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._await_headers()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():
            self._abort_later()
        elif self.conn.their_state is h11.SEND_BODY or self.conn.trailing_data[0]:
            self._await_headers()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._abort_later()

    def resume_writing(self) -> None:
        super().resume_writing()
        if not self.transport.is_closing():
            self._stop_aborting()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._abort_later()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        self._stop_aborting()
        super().connection_lost(exc)
        # uvicorn leaves it running when the client has reset the connection.
        self._unset_keepalive_if_required()

    def _await_headers(self) -> None:
        """Close the connection later if headers are expected; a client that sends slowly does not defer it."""
        if not self._expects_headers():
            self._stop_waiting()
        elif self._closing is None:
            self._closing = self.loop.call_later(self.header_timeout, self._close)

    def _expects_headers(self) -> bool:
        """Return whether the next thing to come is a request, after the rest of a body that is already answered."""
        if self.conn.their_state is h11.SEND_BODY:
            return bool(self.cycle.response_complete)
        return self.conn.their_state is h11.IDLE

    def _stop_waiting(self) -> None:
        if self._closing is not None:
            self._closing.cancel()
            self._closing = None

    def _close(self) -> None:
        self.transport.close()
        self._abort_later()

    def _abort_later(self) -> None:
        """Abort the connection if its client does not read: a closed one waits until everything has been sent."""
        if self._aborting is None:
            self._aborting = self.loop.call_later(self.read_timeout, self.transport.abort)

    def _stop_aborting(self) -> None:
        if self._aborting is not None:
            self._aborting.cancel()
            self._aborting = None
