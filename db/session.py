"""Engines, sessions and the context of row-level security. Nothing here runs at import."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import psycopg
from sqlalchemy import text
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine

from db.encryption import SESSION_INFO_KEY, FieldEncryption

REUSED = "berth.reused"
"""Marks connections of the pool that were used before, and that the server may have closed since."""

_EXPLICIT_BEGIN = "berth.explicit_begin"
"""Execution option of an engine whose connections commit each statement outside of an explicit transaction."""

SessionFactory = async_sessionmaker[AsyncSession]
"""``async with sessions.begin() as session`` is one unit of work: it commits at its end or not at all."""


SET_CONTEXT = (
    "SELECT set_config('berth.organization', %(organization)s, true), set_config('berth.user', %(user)s, true),"
    " set_config('berth.role', %(role)s, true)"
)
"""Set a `RlsContext` until the transaction ends."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RlsContext:
    """The organization, user and role that row-level security admits; None admits public rows only."""

    organization_id: str | None
    user_id: str | None
    role: str | None

    def parameters(self) -> dict[str, str]:
        return {"organization": self.organization_id or "", "user": self.user_id or "", "role": self.role or ""}


def connect_arguments(url: str) -> dict[str, Any]:
    """Return what an engine gives psycopg to connect to ``url``, which is SQLAlchemy's form.

    libpq's own reading of the address differs: of ``?host=a&host=b`` it takes the last host alone.
    """
    _, arguments = PGDialect_psycopg().create_connect_args(make_url(url))  # type: ignore[no-untyped-call]
    return dict(arguments)


def create_database_engine(
    url: str, *, pool_size: int = 10, timeout_seconds: float = 5, pre_ping: bool = True, explicit_begin: bool = False
) -> AsyncEngine:
    """Return an engine whose connections fail after ``timeout_seconds`` instead of hanging.

    Its errors and its log show no parameters of statements: they are customers' data and secrets.

    Args:
        url: SQLAlchemy's form: ``postgresql+psycopg://role@/berth?host=/socket/directory``.
        pool_size: Connections kept open; as many again are opened under load.
        timeout_seconds: Seconds to wait for a connection of the pool, and for a new one.
        pre_ping: Test each connection before use, for one round trip per transaction.
        explicit_begin: A transaction begins at ``db.driver.begin_and_fetch``, which replaces closed connections
            itself: no pre-ping. A statement outside of one commits at once.
    """
    options: dict[str, Any] = (
        {"isolation_level": "AUTOCOMMIT", "execution_options": {_EXPLICIT_BEGIN: True}} if explicit_begin else {}
    )
    return create_async_engine(
        url,
        pool_size=pool_size,
        max_overflow=pool_size,
        pool_timeout=timeout_seconds,
        pool_pre_ping=pre_ping and not explicit_begin,
        hide_parameters=True,
        connect_args={"connect_timeout": max(1, int(timeout_seconds)), "prepare_threshold": 2},
        **options,
    )


def session_factory(engine: AsyncEngine, *, encryptor: FieldEncryption | None = None) -> SessionFactory:
    """``encryptor`` encrypts secrets of queued notifications."""
    return async_sessionmaker(engine, expire_on_commit=False, info={SESSION_INFO_KEY: encryptor})


async def connect_without_begin(session: AsyncSession) -> tuple[AsyncConnection, psycopg.AsyncConnection[Any]]:
    """Return the connection of a session's next transaction, and psycopg's: the pipeline sends BEGIN.

    Otherwise the driver sends BEGIN before the first statement and waits for it. The transaction ends as any other.

    Args:
        session: A session that has executed nothing since its last transaction.
    """
    assert isinstance(session.bind, AsyncEngine)
    if _EXPLICIT_BEGIN in session.bind.get_execution_options():
        connection = await session.connection()
    else:
        connection = await session.connection(execution_options={"isolation_level": "AUTOCOMMIT"})
    raw = (await connection.get_raw_connection()).driver_connection
    assert isinstance(raw, psycopg.AsyncConnection)
    return connection, raw


async def discard_closed_connections(session: AsyncSession) -> None:
    """Discard the session's connection, which the server has closed, and those of the pool that are as old.

    SQLAlchemy notices a closed connection only where it executes the statement itself. Otherwise each of the pool's
    connections would fail one statement after the server was restarted.
    """
    with suppress(DBAPIError):
        await session.execute(text("SELECT 1"))
    await session.invalidate()


def to_sqlalchemy_error(statement: str, error: psycopg.Error) -> BaseException:
    """Return SQLAlchemy's error of the same class, without the parameters."""
    return DBAPIError.instance(statement, None, error, psycopg.Error, hide_parameters=True)


async def set_rls_context(
    session: AsyncSession, *, organization_id: str | None, user_id: str | None, role: str | None
) -> None:
    """Set the organization, user and role that row-level security admits, until the transaction ends."""
    await session.execute(
        text(
            "SELECT set_config('berth.organization', :organization, true),"
            " set_config('berth.user', :user, true), set_config('berth.role', :role, true)"
        ),
        {"organization": organization_id or "", "user": user_id or "", "role": role or ""},
    )


async def allow_long_statements(session: AsyncSession, limit: timedelta) -> None:
    """Raise the role's ``statement_timeout`` to ``limit`` until this transaction ends."""
    milliseconds = str(int(limit.total_seconds() * 1000))
    await session.execute(text("SELECT set_config('statement_timeout', :limit, true)"), {"limit": milliseconds})
