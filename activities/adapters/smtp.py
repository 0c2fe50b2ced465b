"""Mail over SMTP: one connection for a batch, and every way to fail sorted into the three that matter."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from email.message import EmailMessage

import aiosmtplib


class Away(Exception):
    """No server answers, or it lets nobody in: nothing was sent, and it is no mail's fault."""


class Refused(Exception):
    """The server refused this mail. ``permanent`` for a 5xx code; the code is the message, addresses never are."""

    def __init__(self, code: int) -> None:
        super().__init__(f"SMTP {code}")
        self.permanent = code >= 500


class Interrupted(Exception):
    """The connection broke over this mail: it may have arrived. Sending it again under its Message-ID is safe."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SmtpSettings:
    """Where mails are handed over. ``security`` is ``none``, ``starttls`` or ``tls``; ``timeout`` is per command."""

    host: str
    port: int
    username: str | None = None
    password: str | None = None
    security: str = "none"
    timeout_seconds: float = 8.0


class Connection:
    """An open session with the server."""

    def __init__(self, client: aiosmtplib.SMTP) -> None:
        self._client = client

    @property
    def alive(self) -> bool:
        return self._client.is_connected

    async def send(self, message: EmailMessage, *, sender: str, recipients: Sequence[str]) -> None:
        """Hand one mail over; returns once the server has said that it keeps it.

        Raises:
            Refused: for all recipients. Where the server takes it for some, it is sent.
            Interrupted: nobody knows.
        """
        try:
            await self._client.send_message(message, sender=sender, recipients=list(recipients))
        except aiosmtplib.SMTPRecipientsRefused as error:
            raise Refused(min(refusal.code for refusal in error.recipients)) from error
        except (aiosmtplib.SMTPServerDisconnected, aiosmtplib.SMTPTimeoutError, OSError) as error:
            self._client.close()
            raise Interrupted(type(error).__name__) from error
        except aiosmtplib.SMTPResponseException as error:
            raise Refused(error.code) from error
        except (aiosmtplib.SMTPException, ValueError) as error:
            raise Refused(554) from error


class Smtp:
    """Opens connections. ``sender`` is the envelope's and the mail's ``From``."""

    def __init__(self, settings: SmtpSettings) -> None:
        self._settings = settings

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[Connection]:
        """A connection that is closed at the end, politely where the server still listens.

        Raises:
            Away: on entering.
        """
        client = aiosmtplib.SMTP(
            hostname=self._settings.host,
            port=self._settings.port,
            timeout=self._settings.timeout_seconds,
            use_tls=self._settings.security == "tls",
            start_tls=self._settings.security == "starttls",
            username=self._settings.username,
            password=self._settings.password,
        )
        try:
            await client.connect()
        except (aiosmtplib.SMTPException, OSError, ValueError) as error:
            client.close()
            raise Away(type(error).__name__) from error
        try:
            yield Connection(client)
        finally:
            await _leave(client)


async def _leave(client: aiosmtplib.SMTP) -> None:
    if not client.is_connected:
        return
    try:
        await client.quit(timeout=1)
    except (aiosmtplib.SMTPException, OSError):
        client.close()
