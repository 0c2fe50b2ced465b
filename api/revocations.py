"""Which sessions' access tokens are refused although they have not expired, known without asking the database.

Every process keeps the set in memory. What is revoked here is refused here at once; other processes learn of it when
they next read the table, within ``every`` seconds (one second by default). Entries live as long as an access token can.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import structlog
from sqlalchemy.exc import SQLAlchemyError

from api.outages import describe_outage
from db.queries import identity
from db.session import SessionFactory

log = structlog.get_logger("api.revocations")

PURGE_EVERY = timedelta(minutes=10)
PURGE_BATCH_SIZE = 500


class RevocationCache:
    def __init__(self, sessions: SessionFactory, *, every: float) -> None:
        self._sessions = sessions
        self._every = every
        self._revoked_until: dict[str, datetime] = {}
        self._purge_at = datetime.now(UTC)

    def __contains__(self, session_id: str) -> bool:
        return session_id in self._revoked_until

    def add(self, session_id: str, until: datetime) -> None:
        """Refuse from now on. The caller has written, or is about to commit, the same to the table."""
        self._revoked_until[session_id] = until

    async def refresh(self) -> None:
        """Read the table, keep what was revoked here meanwhile, forget what has expired."""
        async with self._sessions() as session:
            stored = await identity.list_revocations(session)
        moment = datetime.now(UTC)
        self._revoked_until = {name: until for name, until in (self._revoked_until | stored).items() if until > moment}

    async def purge(self) -> None:
        """Delete one batch of what has expired. Until there is no more, each call deletes the next one."""
        moment = datetime.now(UTC)
        if moment < self._purge_at:
            return
        async with self._sessions() as session:
            has_more = await identity.delete_expired(session, batch_size=PURGE_BATCH_SIZE)
        if not has_more:
            self._purge_at = moment + PURGE_EVERY

    async def run(self) -> None:
        """Refresh until cancelled. While the database is unavailable, the known revocations stay in force."""
        is_database_unavailable = False
        while True:
            try:
                await self.refresh()
                await self.purge()
                is_database_unavailable = False
            except (SQLAlchemyError, OSError) as error:
                if not is_database_unavailable:
                    log.warning("revocations.refresh_failed", **describe_outage(error))
                is_database_unavailable = True
            await asyncio.sleep(self._every)
