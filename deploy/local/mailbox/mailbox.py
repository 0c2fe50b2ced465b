"""The whole mailbox as one object: `async with Mailbox() as mailbox: mailbox.smtp_port`."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

from aiohttp import web

from deploy.local.mailbox.smtp import FaultInjector, SmtpHandler, listen
from deploy.local.mailbox.store import MailStore
from deploy.local.mailbox.web import MailboxApi


class Mailbox:
    """Listens on loopback while entered; port 0 chooses a free one.

    Without `state_dir` the mails are kept in a folder that ends with the mailbox.
    """

    def __init__(self, *, state_dir: Path | str | None = None, http_port: int = 0, smtp_port: int = 0) -> None:
        self._owns_state_dir = state_dir is None
        self._state = Path(state_dir) if state_dir is not None else None
        self._http_port = http_port
        self._store: MailStore | None = None
        self._runner: web.AppRunner | None = None
        self._smtp: asyncio.Server | None = None
        self.faults = FaultInjector()
        self.smtp_host = "127.0.0.1"
        self.smtp_port = smtp_port
        self.http_url = ""

    async def __aenter__(self) -> Self:
        try:
            await self._start()
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, raised: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stop()

    async def messages(self, to: str | None = None) -> list[dict[str, str]]:
        """As `GET /messages` gives them: oldest first."""
        if self._store is None:
            raise RuntimeError("the mailbox is not open")
        return [mail.to_json() for mail in self._store.all(to)]

    async def _start(self) -> None:
        if self._state is None:
            self._state = Path(tempfile.mkdtemp(prefix="mailbox-"))
        self._state.mkdir(parents=True, exist_ok=True)
        self._store = MailStore(self._state / "mailbox.sqlite")
        self._smtp = await listen(self.smtp_port, SmtpHandler(self._store, self.faults))
        self.smtp_port = int(self._smtp.sockets[0].getsockname()[1])
        self._runner = web.AppRunner(
            MailboxApi(self._store, self.faults).application(), access_log=None, shutdown_timeout=0.5
        )
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self._http_port, reuse_address=True).start()
        self.http_url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def _stop(self) -> None:
        if self._smtp is not None:
            self._smtp.close()
        if self._runner is not None:
            await self._runner.cleanup()
        if self._store is not None:
            self._store.close()
            self._store = None
        if self._owns_state_dir and self._state is not None:
            shutil.rmtree(self._state, ignore_errors=True)
            self._state = None
