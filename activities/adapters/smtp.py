"""Mail over SMTP: one connection per batch. Errors are unavailable (retry all), rejected, or connection lost."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from email.message import EmailMessage

import aiosmtplib


class SmtpUnavailable(Exception):
    """The server is unreachable or rejects the login. No mail was sent; retry the whole batch later."""


class SmtpRejected(Exception):
    """The server rejected this mail. ``permanent`` for a 5xx code. The message has the code and no addresses."""

    def __init__(self, code: int) -> None:
        super().__init__(f"SMTP {code}")
        self.permanent = code >= 500


class SmtpConnectionLost(Exception):
    """The connection was lost while sending: the mail may have arrived. A resend with the same Message-ID is safe."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SmtpSettings:
    """The SMTP server and its login. ``security`` is ``none``, ``starttls`` or ``tls``; the timeout is per command."""

    host: str
    port: int
    username: str | None = None
    password: str | None = None
    security: str = "none"
    timeout_seconds: float = 8.0


class SmtpConnection:
    """An open session with the server."""

    def __init__(self, client: aiosmtplib.SMTP) -> None:
        self._client = client

    @property
    def is_connected(self) -> bool:
        return self._client.is_connected

    async def send(self, message: EmailMessage, *, sender: str, recipients: Sequence[str]) -> None:
        """Send one mail. Returns once the server has accepted it.

        Raises:
            SmtpRejected: The server rejected all recipients. If it accepts some, the mail counts as sent.
            SmtpConnectionLost: the outcome is unknown.
        """
        try:
            await self._client.send_message(message, sender=sender, recipients=list(recipients))
        except aiosmtplib.SMTPRecipientsRefused as error:
            raise SmtpRejected(min(rejected.code for rejected in error.recipients)) from error
        except (aiosmtplib.SMTPServerDisconnected, aiosmtplib.SMTPTimeoutError, OSError) as error:
            self._client.close()
            raise SmtpConnectionLost(type(error).__name__) from error
        except aiosmtplib.SMTPResponseException as error:
            raise SmtpRejected(error.code) from error
        except (aiosmtplib.SMTPException, ValueError) as error:
            raise SmtpRejected(554) from error


class SmtpClient:
    """Opens connections. ``sender`` is the envelope's and the mail's ``From``."""

    def __init__(self, settings: SmtpSettings) -> None:
        self._settings = settings

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[SmtpConnection]:
        """Open a connection and close it at the end, with QUIT if the server still answers.

        Raises:
            SmtpUnavailable: On entering, when no connection can be opened.
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
            raise SmtpUnavailable(type(error).__name__) from error
        try:
            yield SmtpConnection(client)
        finally:
            await _quit(client)


async def _quit(client: aiosmtplib.SMTP) -> None:
    if not client.is_connected:
        return
    try:
        await client.quit(timeout=1)
    except (aiosmtplib.SMTPException, OSError):
        client.close()
