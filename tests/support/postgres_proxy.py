"""A proxy in front of PostgreSQL that counts statements, transactions and round trips."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from sqlalchemy.engine import make_url

from db.encryption import FieldEncryption
from db.session import SessionFactory, create_database_engine, session_factory

STATEMENT_MESSAGES = frozenset(b"QE")
"""Query and Execute."""
COMMAND_COMPLETE = ord("C")
READY_FOR_QUERY = ord("Z")
SOCKET_NAME = ".s.PGSQL.5432"
LENGTH_BYTES = 4


class WireCost(NamedTuple):
    """What one request costs the database.

    Attributes:
        statements: Statements executed, BEGIN and COMMIT included.
        transactions: Transactions started; a statement outside of one counts as one.
        round_trips: Times the server reported that it is ready for the next query. Pipelined statements share one.
    """

    statements: int
    transactions: int
    round_trips: int


@dataclass(slots=True)
class PostgresProxy:
    """A running proxy. ``reset`` starts a new count, ``cost`` returns the present one."""

    url: str
    _statements: int = 0
    _transactions: int = 0
    _round_trips: int = 0
    connections: set[asyncio.Task[None]] = field(default_factory=set)

    def reset(self) -> None:
        self._statements = self._transactions = self._round_trips = 0

    def cost(self) -> WireCost:
        return WireCost(self._statements, self._transactions, self._round_trips)

    def count_frontend_message(self, kind: int, _: bytes) -> None:
        self._statements += kind in STATEMENT_MESSAGES

    def backend_counter(self) -> Callable[[int, bytes], None]:
        """Return a function that counts the round trips and transactions of one connection."""
        in_transaction = False

        def count(kind: int, content: bytes) -> None:
            nonlocal in_transaction
            self._round_trips += kind == READY_FOR_QUERY
            if kind != COMMAND_COMPLETE:
                return
            tag = content.rstrip(b"\x00").split()[0]
            if tag in (b"COMMIT", b"ROLLBACK"):
                in_transaction = False
            elif not in_transaction:
                self._transactions += 1
                in_transaction = tag == b"BEGIN"

        return count


@asynccontextmanager
async def proxy_to(database_url: str) -> AsyncIterator[PostgresProxy]:
    """Serve a proxy on a Unix socket.

    Args:
        database_url: SQLAlchemy's form, with the directory of the server's socket as `host`.

    Yields:
        The proxy; its `url` takes the place of `database_url`.
    """
    url = make_url(database_url)
    upstream = f"{url.query['host']}/.s.PGSQL.{url.query.get('port', url.port or 5432)}"
    with tempfile.TemporaryDirectory(prefix="pgproxy-") as directory:
        query = {**url.query, "host": directory, "port": "5432"}
        proxy = PostgresProxy(url.set(query=query, port=None).render_as_string(hide_password=False))

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            server_reader, server_writer = await asyncio.open_unix_connection(upstream)
            # The start-up message has no type byte.
            length = await reader.readexactly(LENGTH_BYTES)
            server_writer.write(length + await reader.readexactly(int.from_bytes(length) - LENGTH_BYTES))
            await asyncio.gather(
                _forward(reader, server_writer, proxy.count_frontend_message),
                _forward(server_reader, writer, proxy.backend_counter()),
            )

        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.create_task(serve(reader, writer))
            proxy.connections.add(task)
            task.add_done_callback(proxy.connections.discard)

        server = await asyncio.start_unix_server(accept, Path(directory) / SOCKET_NAME)
        try:
            yield proxy
        finally:
            server.close()
            # The clients have closed their connections.
            await asyncio.gather(*proxy.connections)


@asynccontextmanager
async def counted_sessions(
    database_url: str, encryptor: FieldEncryption | None = None
) -> AsyncIterator[tuple[SessionFactory, PostgresProxy]]:
    """Yield sessions as the worker's, and the proxy that counts what their one connection sends."""
    async with proxy_to(database_url) as proxy:
        engine = create_database_engine(proxy.url, pool_size=1, pre_ping=False)
        try:
            async with engine.connect():
                pass
            proxy.reset()
            yield session_factory(engine, encryptor=encryptor), proxy
        finally:
            await engine.dispose()


async def _forward(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, count: Callable[[int, bytes], None]
) -> None:
    """Forward messages until the sender closes."""
    try:
        while True:
            header = await reader.readexactly(1 + LENGTH_BYTES)
            content = await reader.readexactly(int.from_bytes(header[1:]) - LENGTH_BYTES)
            count(header[0], content)
            writer.write(header + content)
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()
