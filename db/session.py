"""Engines and units of work. Nothing here runs at import."""

from __future__ import annotations

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine

from db.sealing import INFO, Sealer

Sessions = async_sessionmaker[AsyncSession]
"""``async with sessions.begin() as session`` is one unit of work: it commits at its end or not at all."""


def create_engine(url: str, *, pool_size: int = 10, timeout_seconds: float = 5, pre_ping: bool = True) -> AsyncEngine:
    """Return an engine whose connections give up after ``timeout_seconds`` instead of hanging.

    ``pre_ping`` spares the caller an error after the database was restarted, for a round trip per unit of work; whoever
    is retried anyway can do without. ``url`` is SQLAlchemy's: ``postgresql+psycopg://role@/berth?host=/socket/directory``.
    """
    return create_async_engine(
        url,
        pool_size=pool_size,
        max_overflow=pool_size,
        pool_timeout=timeout_seconds,
        pool_pre_ping=pre_ping,
        connect_args={"connect_timeout": max(1, int(timeout_seconds)), "prepare_threshold": 2},
    )


def session_factory(engine: AsyncEngine, *, sealer: Sealer | None = None) -> Sessions:
    """``sealer`` encrypts what must not rest readable (secrets of queued mails)."""
    return async_sessionmaker(engine, expire_on_commit=False, info={INFO: sealer})


async def act_as(session: AsyncSession, *, organization_id: str | None, user_id: str | None, role: str | None) -> None:
    """Tell row-level security for whom this transaction speaks. It ends with the transaction."""
    await session.execute(
        text(
            "SELECT set_config('berth.organization', :organization, true),"
            " set_config('berth.user', :user, true), set_config('berth.role', :role, true)"
        ),
        {"organization": organization_id or "", "user": user_id or "", "role": role or ""},
    )
