"""The mailbox over real sockets: what senders may rely on, and what survives a kill."""

from __future__ import annotations

import asyncio
import signal
import smtplib
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from email.message import EmailMessage
from email.utils import format_datetime
from pathlib import Path

import aiosmtplib
import httpx
import pytest

from deploy.local.mailbox import Mailbox
from deploy.ports import free_ports
from tests.support.http_process import HttpProcess
from tests.support.wait import scale_timeout


@pytest.fixture
async def box() -> AsyncIterator[Mailbox]:
    async with Mailbox() as mailbox:
        yield mailbox


@pytest.fixture
async def web(box: Mailbox) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=box.http_url) as client:
        yield client


def letter(to: str = "ada@example.org", *, identity: str | None = None, subject: str = "Hello") -> EmailMessage:
    message = EmailMessage()
    message["From"] = "Berth <noreply@berth.example>"
    message["To"] = to
    message["Subject"] = subject
    message["Date"] = format_datetime(datetime(2027, 1, 31, 8, 0, tzinfo=UTC))
    if identity is not None:
        message["Message-ID"] = identity
    message.set_content("Guten Tag, schöne Grüße ✓\n")
    message.add_alternative("<h1>Guten Tag</h1><script>alert(1)</script>", subtype="html")
    return message


async def send(box: Mailbox, message: EmailMessage) -> None:
    await aiosmtplib.send(message, hostname=box.smtp_host, port=box.smtp_port)


async def test_a_mail_is_stored_with_its_parts(box: Mailbox, web: httpx.AsyncClient) -> None:
    await send(box, letter(subject="Rechnung für März — ✓"))
    (mail,) = (await web.get("/messages")).json()
    assert {"id", "from", "to", "subject", "sent_at", "text", "html"} <= mail.keys()
    assert (mail["from"], mail["to"]) == ("noreply@berth.example", "ada@example.org")
    assert mail["subject"] == "Rechnung für März — ✓"
    assert mail["text"] == "Guten Tag, schöne Grüße ✓\n"
    assert mail["html"].startswith("<h1>Guten Tag</h1>")
    # The mail's own date: on a moved clock it is not the moment of arrival.
    assert mail["sent_at"] == "2027-01-31T08:00:00.000Z"
    assert await box.messages() == [mail]
    detail = (await web.get(f"/messages/{mail['id']}")).json()
    assert ["Subject", "Rechnung für März — ✓"] in detail["headers"]


async def test_smtplib_works_too(box: Mailbox) -> None:
    def deliver() -> None:
        with smtplib.SMTP(box.smtp_host, box.smtp_port) as connection:
            connection.send_message(letter("one@example.org"))
            connection.send_message(letter("two@example.org"))

    await asyncio.to_thread(deliver)
    assert [mail["to"] for mail in await box.messages()] == ["one@example.org", "two@example.org"]


async def test_mails_are_found_by_any_recipient_oldest_first(box: Mailbox, web: httpx.AsyncClient) -> None:
    await send(box, letter("ada+billing@example.org, bob@example.org", subject="1"))
    await send(box, letter("bob@example.org", subject="2"))
    await send(box, letter("BOB@Example.org", subject="3"))
    mails = (await web.get("/messages", params={"to": "bob@example.org"})).json()
    assert [mail["subject"] for mail in mails] == ["1", "2", "3"]
    # A plus sign that the caller did not encode arrives as a space.
    assert len((await web.get("/messages?to=ada+billing@example.org")).json()) == 1
    assert (await web.get("/messages", params={"to": "example.org"})).json() == []
    assert (await web.delete("/messages")).status_code == 200
    assert (await web.get("/messages")).json() == []


async def test_a_repeated_mail_is_stored_once(box: Mailbox, web: httpx.AsyncClient) -> None:
    for _ in range(3):
        await send(box, letter(identity="<invoice-1@berth.example>"))
    assert len(await box.messages()) == 1
    await send(box, letter("bob@example.org", identity="<invoice-1@berth.example>"))
    assert [mail["to"] for mail in await box.messages()] == ["ada@example.org", "bob@example.org"]
    await web.delete("/messages")
    await send(box, letter(identity="<invoice-1@berth.example>"))
    assert await box.messages() == []


async def test_a_lost_reply_makes_the_sender_repeat_and_the_mail_is_stored_once(
    box: Mailbox, web: httpx.AsyncClient
) -> None:
    await web.post("/sandbox/faults", json={"fault": "drop", "count": 1})
    with pytest.raises(aiosmtplib.SMTPException):
        await send(box, letter(identity="<m@berth.example>"))
    await send(box, letter(identity="<m@berth.example>"))
    assert len(await box.messages()) == 1


async def test_reject_and_defer_faults(box: Mailbox, web: httpx.AsyncClient) -> None:
    await web.post("/sandbox/faults", json={"fault": "reject", "count": 1})
    await web.post("/sandbox/faults", json={"fault": "defer"})
    for code in (550, 451, 451):
        with pytest.raises(aiosmtplib.SMTPDataError) as refused:
            await send(box, letter())
        assert refused.value.code == code
    assert (await web.get("/sandbox/faults")).json()["faults"][0]["fault"] == "defer"
    await web.delete("/sandbox/faults")
    await send(box, letter())
    assert len(await box.messages()) == 1
    assert (await web.post("/sandbox/faults", json={"fault": "gremlin"})).status_code == 400


async def test_the_pages_show_mails_inert(box: Mailbox, web: httpx.AsyncClient) -> None:
    await send(box, letter(subject="<img src=x onerror=alert(1)>"))
    listed = await web.get("/")
    assert "&lt;img src=x" in listed.text
    assert "<img" not in listed.text
    (mail,) = await box.messages()
    page = await web.get(f"/mail/{mail['id']}")
    assert f'src="/mail/{mail["id"]}/html"' in page.text
    assert "allow-scripts" not in page.text
    assert "<script" not in page.text
    part = await web.get(f"/mail/{mail['id']}/html")
    assert part.headers["Content-Security-Policy"].startswith("sandbox")
    assert "allow-scripts" not in part.headers["Content-Security-Policy"]
    assert (await web.get("/mail/99")).status_code == 404
    assert (await web.get("/messages/nothing")).status_code == 404


async def test_malformed_mails_are_stored(box: Mailbox) -> None:
    def deliver() -> None:
        with smtplib.SMTP(box.smtp_host, box.smtp_port) as connection:
            raw = (
                b"Subject: =?bad?x?=\r\nDate: yesterday\r\nContent-Type: text/plain; charset=nope\r\n\r\nbody \xff\r\n"
            )
            connection.sendmail("a@example.org", ["b@example.org"], raw)
            connection.sendmail("a@example.org", ["b@example.org"], b"no header at all\r\n")

    await asyncio.to_thread(deliver)
    first, second = await box.messages()
    assert first["text"].startswith("body ")
    assert first["from"] == "a@example.org"
    assert second["to"] == "b@example.org"


async def test_many_senders_at_once(box: Mailbox) -> None:
    await asyncio.gather(*(send(box, letter(f"n{n}@example.org", identity=f"<{n}@x>")) for n in range(50)))
    assert len({mail["to"] for mail in await box.messages()}) == 50


class MailboxProcess(HttpProcess):
    def __init__(self, state: Path) -> None:
        http_port, self.smtp_port = free_ports(2)
        ports = ("--http-port", str(http_port), "--smtp-port", str(self.smtp_port))
        log = state.with_name(f"{state.name}.log")
        super().__init__("deploy.local.mailbox", "--state", str(state), *ports, port=http_port, log=log)


def test_an_acknowledged_mail_survives_kill_9(tmp_path: Path) -> None:
    served = MailboxProcess(tmp_path)
    with smtplib.SMTP("127.0.0.1", served.smtp_port) as connection:
        for n in range(20):
            connection.send_message(letter(f"n{n}@example.org", identity=f"<{n}@x>"))
        served.end(signal.SIGKILL)
        with pytest.raises(smtplib.SMTPServerDisconnected):
            connection.noop()
    served = MailboxProcess(tmp_path)
    assert len(httpx.get(f"{served.url}/messages").json()) == 20
    with smtplib.SMTP("127.0.0.1", served.smtp_port) as connection:
        connection.send_message(letter("n3@example.org", identity="<3@x>"))
    assert len(httpx.get(f"{served.url}/messages").json()) == 20
    assert served.end(signal.SIGTERM) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_signal_stops_the_mailbox_within_three_seconds(tmp_path: Path, number: int) -> None:
    served = MailboxProcess(tmp_path)
    with smtplib.SMTP("127.0.0.1", served.smtp_port) as connection:
        connection.ehlo()
        before = time.monotonic()
        assert served.end(number) == 0
        assert time.monotonic() - before < scale_timeout(3)
        with pytest.raises(smtplib.SMTPServerDisconnected):
            connection.noop()
