"""Connections that send no complete request, against a real server."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from api.http_protocol import KEEP_ALIVE_SECONDS, HeaderTimeoutProtocol
from deploy.ports import LOOPBACK, free_ports
from tests.support.wait import wait_until

CLOSE_TIMEOUT = 20.0
"""Seconds after which a connection that is still open fails its test."""

REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


class ImpatientProtocol(HeaderTimeoutProtocol):
    header_timeout = 0.2
    read_timeout = 0.2


@dataclass(slots=True, kw_only=True)
class RunningServer:
    """A server whose only route responds once ``may_respond`` is set."""

    port: int
    server: uvicorn.Server
    may_respond: asyncio.Event = field(default_factory=asyncio.Event)

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(LOOPBACK, self.port)


@asynccontextmanager
async def running_server() -> AsyncIterator[RunningServer]:
    (port,) = free_ports(1)

    async def respond(request: Request) -> PlainTextResponse:
        await running.may_respond.wait()
        return PlainTextResponse("answered" + "." * int(request.query_params.get("padding", "0")))

    server = uvicorn.Server(
        uvicorn.Config(
            Starlette(routes=[Route("/", respond)]),
            host=LOOPBACK,
            port=port,
            log_config=None,
            lifespan="off",
            http=ImpatientProtocol,
            timeout_keep_alive=int(CLOSE_TIMEOUT),
            timeout_graceful_shutdown=1,
        )
    )
    running = RunningServer(port=port, server=server)
    serving = asyncio.create_task(server.serve())
    try:
        await wait_until(lambda: server.started, timeout=CLOSE_TIMEOUT, description="the server")
        yield running
    finally:
        server.should_exit = True
        await serving


async def is_closed(reader: asyncio.StreamReader) -> bool:
    return await asyncio.wait_for(reader.read(), CLOSE_TIMEOUT) == b""


async def read_response(reader: asyncio.StreamReader) -> bytes:
    return await asyncio.wait_for(reader.readuntil(b"answered"), CLOSE_TIMEOUT)


async def test_a_connection_that_sends_nothing_is_closed() -> None:
    async with running_server() as server:
        reader, writer = await server.connect()
        assert await is_closed(reader)
        writer.close()


async def test_a_client_that_sends_its_headers_byte_by_byte_does_not_defer_the_end() -> None:
    async with running_server() as server:
        reader, writer = await server.connect()
        end = asyncio.ensure_future(reader.read())
        sent = 0
        while not end.done() and sent < 100 * CLOSE_TIMEOUT:
            writer.write(b"G" if sent == 0 else b"E")
            sent += 1
            await asyncio.wait({end}, timeout=0.01)
        assert end.done()
        assert sent > 1
        writer.close()


async def test_a_half_sent_second_request_is_closed() -> None:
    async with running_server() as server:
        server.may_respond.set()
        reader, writer = await server.connect()
        writer.write(REQUEST)
        assert await read_response(reader)
        writer.write(REQUEST[:20])
        assert await is_closed(reader)
        writer.close()


async def test_a_request_that_is_complete_may_take_longer_than_its_headers() -> None:
    async with running_server() as server:
        reader, writer = await server.connect()
        writer.write(REQUEST)
        # Opened later and closed by its timeout: so the timeout of the first connection has passed as well.
        silent_reader, silent_writer = await server.connect()
        assert await is_closed(silent_reader)
        server.may_respond.set()
        assert b"200 OK" in await read_response(reader)
        for each in (writer, silent_writer):
            each.close()


async def test_kept_alive_connections_serve_further_requests() -> None:
    async with running_server() as server:
        server.may_respond.set()
        reader, writer = await server.connect()
        for _ in range(3):
            writer.write(REQUEST)
            assert await read_response(reader)
        writer.close()


async def test_an_idle_connection_is_kept_for_longer_than_headers_may_take() -> None:
    async with running_server() as server:
        server.may_respond.set()
        reader, writer = await server.connect()
        writer.write(REQUEST)
        assert await read_response(reader)
        # Opened later and closed by its timeout: so that of the first connection has passed as well.
        silent_reader, silent_writer = await server.connect()
        assert await is_closed(silent_reader)
        writer.write(REQUEST)
        assert await read_response(reader)
        for each in (writer, silent_writer):
            each.close()


async def test_a_request_that_was_half_sent_behind_another_is_closed() -> None:
    async with running_server() as server:
        reader, writer = await server.connect()
        writer.write(REQUEST + REQUEST[:20])
        server.may_respond.set()
        assert await read_response(reader)
        assert await is_closed(reader)
        writer.close()


def test_the_api_keeps_idle_connections_for_longer_than_proxies_do() -> None:
    # ingress-nginx (`upstream-keepalive-timeout`) and the load balancers of AWS reuse a connection for 60 s.
    assert KEEP_ALIVE_SECONDS > 60


async def test_a_body_that_stays_unfinished_after_the_response_is_closed() -> None:
    async with running_server() as server:
        server.may_respond.set()
        reader, writer = await server.connect()
        writer.write(REQUEST[:-2] + b"Content-Length: 1000\r\n\r\n")
        assert await read_response(reader)
        writer.write(b"x")
        assert await is_closed(reader)
        writer.close()


@pytest.mark.parametrize("headers", [b"", b"Connection: close\r\n"])
async def test_a_client_that_does_not_read_its_response_is_disconnected(headers: bytes) -> None:
    async with running_server() as server:
        server.may_respond.set()
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.setblocking(False)
            await asyncio.get_running_loop().sock_connect(client, (LOOPBACK, server.port))
            request = REQUEST.replace(b"/ ", b"/?padding=20000000 ").replace(b"\r\n\r\n", b"\r\n" + headers + b"\r\n")
            await asyncio.get_running_loop().sock_sendall(client, request)
            await wait_until(lambda: server.server.server_state.total_requests == 1, timeout=CLOSE_TIMEOUT)
            await wait_until(lambda: not server.server.server_state.connections, timeout=CLOSE_TIMEOUT)
