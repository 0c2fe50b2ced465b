"""One port that takes HTTP and HTTPS: kubectl sends its token over TLS only, the contract's fault paths are plain."""

from __future__ import annotations

import asyncio
import socket
import ssl

from aiohttp import web

TLS_HELLO = 0x16


class Listener:
    """Accepts connections for an aiohttp server, with TLS where the client's first byte opens a TLS handshake."""

    def __init__(self, server: web.Server, tls: ssl.SSLContext, host: str, port: int) -> None:
        self._server = server
        self._tls = tls
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind((host, port))
        self._socket.listen(256)
        self._socket.setblocking(False)
        self.port: int = self._socket.getsockname()[1]
        self._connections: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        self._acceptor = asyncio.create_task(self._accept(), name="accept")

    async def stop(self) -> None:
        """Stop listening and cut the connections."""
        self._acceptor.cancel()
        for task in tuple(self._connections):
            task.cancel()
        await asyncio.gather(self._acceptor, *self._connections, return_exceptions=True)
        self._socket.close()
        await self._server.shutdown(timeout=0.2)

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(self._socket)
            except OSError:
                # Too many open files, or the client disconnected before accept.
                await asyncio.sleep(0.05)
                continue
            connection.setblocking(False)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            task = asyncio.create_task(self._serve(connection))
            self._connections.add(task)
            task.add_done_callback(self._connections.discard)

    async def _serve(self, connection: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(60.0):
                first = await _peek(connection)
            if not first:
                connection.close()
            elif first[0] == TLS_HELLO:
                await loop.connect_accepted_socket(self._server, connection, ssl=self._tls, ssl_handshake_timeout=10.0)
            else:
                await loop.connect_accepted_socket(self._server, connection)
        except (OSError, TimeoutError):
            connection.close()
        except asyncio.CancelledError:
            connection.close()
            raise


async def _peek(connection: socket.socket) -> bytes:
    """Return the first byte and leave it in the socket."""
    loop = asyncio.get_running_loop()
    while True:
        try:
            return connection.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            pass
        readable: asyncio.Future[None] = loop.create_future()
        loop.add_reader(connection, lambda f=readable: f.done() or f.set_result(None))  # type: ignore[misc]
        try:
            await readable
        finally:
            loop.remove_reader(connection)
