"""The outbox over a real database and a real mail server: each fact is told once, whatever breaks on the way."""

from __future__ import annotations

import asyncio
import email
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from email import policy
from email.message import EmailMessage

import httpx
import pytest
import pytest_asyncio
from temporalio.testing import ActivityEnvironment

from db.queries import delivery
from db.queries.outbox import enqueue_values
from deploy.local.mailbox import Mailbox
from deploy.local.ports import free_ports
from tests.support.accounts import NOW
from tests.support.databases import Database
from tests.support.post import USD_15, Post
from tests.support.wait import eventually
from workflows.ports.notifications import Drain, Drained
from workflows.rules.notices import CHANNEL_EMAIL, LIMITS

ADA = "ada@customer.example"


@pytest_asyncio.fixture
async def mailbox() -> AsyncIterator[Mailbox]:
    async with Mailbox() as opened:
        yield opened


@pytest.fixture
def post(database: Database, mailbox: Mailbox) -> Post:
    made = Post(database, mailbox.smtp_port)
    made.reader(ADA)
    return made


async def received(mailbox: Mailbox, number: int = 0) -> EmailMessage:
    async with httpx.AsyncClient(base_url=mailbox.http_url) as web:
        mails = (await web.get("/messages")).json()
        raw = (await web.get(f"/messages/{mails[number]['id']}/raw")).content
    found = email.message_from_bytes(raw, policy=policy.default)
    assert isinstance(found, EmailMessage)
    return found


async def test_a_fact_is_told_once_however_often_it_is_recorded(post: Post, mailbox: Mailbox) -> None:
    await post.enqueue(post.notice(), post.notice())
    await post.enqueue(post.notice(context={"amount": {"amount_minor": 9, "currency": "USD"}}))
    drained = await post.drain()
    await post.enqueue(post.notice())
    assert drained == Drained(sent=1, setbacks=0, away=False)
    assert (await post.drain()).sent == 0
    (mail,) = await mailbox.messages()
    assert (mail["to"], mail["subject"]) == (ADA, "Receipt: US$15.00 added to your wallet")
    row = post.row()
    assert (row["status"], row["attempts"], row["recipient"], row["error"]) == ("sent", 1, ADA, None)
    assert row["message_id"] == (await received(mailbox))["Message-ID"]
    assert (await received(mailbox))["Auto-Submitted"] == "auto-generated"
    assert (await received(mailbox))["Date"].datetime == NOW


async def test_two_dispatchers_at_once_share_the_work(post: Post, mailbox: Mailbox) -> None:
    facts = [f"fact {number:02d}" for number in range(50)]
    await post.enqueue(*(post.notice(fact) for fact in facts))
    drained = await asyncio.gather(*(post.drain(post.dispatcher()) for _ in range(3)))
    assert sum(one.sent for one in drained) == len(facts)
    assert len(await mailbox.messages()) == len(facts)
    assert {row["attempts"] for row in post.rows()} == {1}


async def test_each_reader_role_gets_what_concerns_it(post: Post, mailbox: Mailbox) -> None:
    post.reader("billing@customer.example", role="billing")
    post.reader("member@customer.example", role="member")
    gone = post.reader("gone@customer.example", role="owner")
    operator = post.reader("operator@berth.example", role=None, platform="ADMINISTRATOR")
    post.execute("UPDATE users SET disabled_at = now() WHERE id = %s", gone)
    alert = post.notice("alert", kind="operator_alert", organization_id=None, context={"title": "Look"})
    personal = post.notice("personal", kind="welcome", user_id=operator, context={})
    await post.enqueue(post.notice(), alert, personal, post.notice("nobody", user_id=gone))
    drained = await post.drain()
    assert (drained.sent, drained.setbacks) == (3, 1)
    assert {row["fact"]: row["recipient"] for row in post.rows()} == {
        "fact": "ada@customer.example, billing@customer.example",
        "alert": "operator@berth.example",
        "personal": "operator@berth.example",
        "nobody": None,
    }
    assert (post.row("nobody")["status"], post.row("nobody")["error"]) == ("failed", "NoReader")
    welcome = next(mail for mail in await mailbox.messages() if "Welcome" in mail["subject"])
    assert "Welcome, Ada" in welcome["text"]


async def test_the_claim_of_the_dead_lapses_and_the_mail_keeps_its_name(
    post: Post, mailbox: Mailbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It died between the server's 250 and its own record: the only moment in which a mail goes out twice."""
    await post.enqueue(post.notice())

    class Died(BaseException):
        pass

    dying = post.dispatcher()

    async def dies(*_: object) -> None:
        raise Died

    monkeypatch.setattr(dying, "_record", dies)
    with pytest.raises(Died):
        await post.drain(dying)
    assert len(await mailbox.messages()) == 1
    assert (await post.drain()).sent == 0, "the claim still holds"
    assert post.row()["status"] == "sending"
    post.due_now()
    assert (await post.drain()).sent == 1
    assert len(await mailbox.messages()) == 1, "the receiver knows the Message-ID"
    assert (post.row()["status"], post.row()["attempts"]) == ("sent", 2)


async def test_whose_claim_was_taken_over_records_nothing(post: Post) -> None:
    await post.enqueue(post.notice())
    async with post.sessions.begin() as session:
        (mine,) = await delivery.claim(session, channel="email", claim="slow", most=5, lasts=timedelta(seconds=60))
    post.due_now()
    await post.drain()
    async with post.sessions.begin() as session:
        late = delivery.Outcome(id=mine.id, status="failed", error="too late")
        assert await delivery.record(session, claim="slow", outcomes=[late]) == 0
    assert post.row()["status"] == "sent"


async def test_a_lost_answer_is_sent_again_and_kept_once(post: Post, mailbox: Mailbox) -> None:
    mailbox.faults.order({"fault": "drop", "count": 1})
    await post.enqueue(post.notice("a"), post.notice("b"))
    drained = await post.drain()
    assert drained.setbacks >= 1
    assert "Interrupted" in next(row["error"] for row in post.rows() if row["error"])
    post.due_now()
    await post.drain(seconds=0.5)
    assert [row["status"] for row in post.rows()] == ["sent", "sent"]
    assert len(await mailbox.messages()) == 2


async def test_while_the_server_is_away_nothing_is_lost_and_no_attempt_counts(database: Database) -> None:
    (port,) = free_ports(1)
    post = Post(database, port)
    post.reader(ADA)
    await post.enqueue(*(post.notice(f"fact {number}") for number in range(5)))
    post.age(LIMITS.age * 2)
    for _ in range(LIMITS.refusals + 2):
        assert await post.drain() == Drained(sent=0, setbacks=0, away=True)
    assert {(row["status"], row["attempts"], row["error"]) for row in post.rows()} == {("pending", 0, None)}
    async with Mailbox(smtp_port=port) as back:
        assert (await post.drain()).sent == 5
        assert len(await back.messages()) == 5


async def test_a_refusal_is_final_after_its_attempts(post: Post, mailbox: Mailbox) -> None:
    mailbox.faults.order({"fault": "reject"})
    await post.enqueue(post.notice())
    for _ in range(LIMITS.refusals):
        assert post.row()["status"] == "pending"
        await post.drain()
        post.due_now()
    assert (post.row()["status"], post.row()["error"], post.row()["attempts"]) == ("failed", "SMTP 550", 3)
    mailbox.faults.clear()
    assert (await post.drain()).sent == 0


async def test_a_deferred_mail_waits_longer_each_time_and_arrives(post: Post, mailbox: Mailbox) -> None:
    mailbox.faults.order({"fault": "defer", "count": 5})
    await post.enqueue(post.notice())
    pauses = []
    for _ in range(5):
        await post.drain()
        (row,) = post.rows("SELECT *, extract(epoch FROM next_attempt_at - now()) AS pause FROM notifications")
        assert (row["status"], row["error"]) == ("pending", "SMTP 451")
        pauses.append(float(row["pause"]))
        assert (await post.drain()).setbacks == 0, "it is not due yet"
        post.due_now()
    assert [round(pause) for pause in pauses] == [2, 4, 8, 16, 32]
    assert (await post.drain()).sent == 1
    assert len(await mailbox.messages()) == 1


async def test_a_mail_that_is_deferred_for_days_fails_in_the_end(post: Post, mailbox: Mailbox) -> None:
    mailbox.faults.order({"fault": "defer"})
    await post.enqueue(post.notice())
    await post.drain()
    post.due_now()
    post.age(LIMITS.age)
    await post.drain()
    assert (post.row()["status"], post.row()["error"]) == ("failed", "SMTP 451")


@pytest.mark.scenario("S12")
async def test_a_secret_rests_encrypted_and_is_blank_once_sent(post: Post, mailbox: Mailbox) -> None:
    token = "tok-4711-very-secret"
    await post.enqueue(
        post.notice("good", kind="email_verification", context={}, secret={"token": token}),
        post.notice("bad", kind="password_reset", context={}, secret={"token": token}),
    )
    for row in post.rows():
        assert row["secret_context"]
        assert token not in str(row)
    with pytest.raises(ValueError, match="sealer"):
        enqueue_values(post.notice("third", kind="password_reset", secret={"token": token}))
    # Sealed for another row: as if somebody had moved it there.
    post.execute(
        "UPDATE notifications SET secret_context = (SELECT secret_context FROM notifications WHERE fact = 'good')"
        " WHERE fact = 'bad'"
    )
    for _ in range(LIMITS.refusals):
        await post.drain()
        post.due_now()
    (mail,) = await mailbox.messages()
    assert f"https://berth.example/verify-email?token={token}" in mail["text"]
    assert token in mail["html"]
    assert {row["fact"]: (row["status"], row["secret_context"]) for row in post.rows()} == {
        "good": ("sent", None),
        "bad": ("failed", None),
    }
    assert token not in str(post.rows())


async def test_a_receipt_brings_the_invoice(post: Post, mailbox: Mailbox) -> None:
    invoice_id = post.invoice()
    context = {"subscription_id": "sub_1", "amount": USD_15, "invoice_id": invoice_id, "period_end": NOW.isoformat()}
    await post.enqueue(post.notice(kind="subscription_renewed", context=context))
    assert (await post.drain()).sent == 1
    mail = await received(mailbox)
    (attachment,) = mail.iter_attachments()
    content = attachment.get_content()
    assert (attachment.get_filename(), attachment.get_content_type()) == ("BERTH-2027-000001.pdf", "application/pdf")
    assert content.startswith(b"%PDF-")
    (kept,) = post.rows("SELECT * FROM documents")
    assert kept["content_sha256"] == hashlib.sha256(content).hexdigest()
    assert mail["Subject"] == "Receipt BERTH-2027-000001: your service"


async def test_an_invoice_of_another_account_is_not_attached(post: Post, database: Database, mailbox: Mailbox) -> None:
    other = Post(database, mailbox.smtp_port)
    context = {"subscription_id": "sub_1", "invoice_id": other.invoice()}
    await post.enqueue(post.notice(kind="subscription_renewed", context=context))
    assert (await post.drain()).sent == 1
    assert list((await received(mailbox)).iter_attachments()) == []


async def test_one_that_cannot_be_composed_does_not_hold_up_the_others(post: Post, mailbox: Mailbox) -> None:
    await post.enqueue(
        post.notice("1 no amount", context={}),
        post.notice("2 not money", context={"amount": "a lot"}),
        post.notice("3 odd currency", context={"amount": {"amount_minor": 1.5, "currency": "USD"}}),
        post.notice(
            "4 not an instant",
            kind="subscription_renewed",
            context={"subscription_id": "s", "amount": USD_15, "period_start": "soon", "period_end": "later"},
        ),
        post.notice("5 good"),
        post.notice("6 of tomorrow"),
    )
    post.execute("UPDATE notifications SET kind = 'a_kind_of_tomorrow' WHERE fact LIKE '6%%'")
    drained = await post.drain()
    assert (drained.sent, drained.setbacks) == (1, 5)
    assert len(await mailbox.messages()) == 1
    assert {row["error"] for row in post.rows() if row["status"] != "sent"} == {"NotRenderable"}


async def test_a_drain_waits_for_what_becomes_due_and_ends_in_time(post: Post, mailbox: Mailbox) -> None:
    draining = asyncio.create_task(post.drain(seconds=3))
    await asyncio.sleep(0)
    await post.enqueue(post.notice())
    await eventually(lambda: len(mailbox._store.all(None)) if mailbox._store else 0)
    assert (await draining).sent == 1


@asynccontextmanager
async def stalling() -> AsyncIterator[int]:
    """A server that greets nobody."""
    held: list[asyncio.StreamWriter] = []

    async def hold(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        held.append(writer)

    server = await asyncio.start_server(hold, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        for writer in held:
            writer.close()
        server.close()


async def test_a_server_that_stalls_is_away(post: Post) -> None:
    await post.enqueue(post.notice())
    async with stalling() as port:
        assert (await post.drain(post.dispatcher(port, timeout=0.3))).away
    assert (post.row()["status"], post.row()["attempts"]) == ("pending", 0)


async def test_a_worker_that_shuts_down_ends_its_drain_and_gives_back_what_it_held(
    post: Post, mailbox: Mailbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    await post.enqueue(*(post.notice(f"fact {number}") for number in range(10)))
    environment, dispatcher = ActivityEnvironment(), post.dispatcher()
    deliver = dispatcher._deliver

    async def deliver_and_stop(*given: object) -> delivery.Outcome:
        outcome = await deliver(*given)  # type: ignore[arg-type]  # passed on as it came
        environment.worker_shutdown()
        return outcome

    monkeypatch.setattr(dispatcher, "_deliver", deliver_and_stop)
    drained = await environment.run(dispatcher.drain, Drain(channel=CHANNEL_EMAIL, seconds=60))
    assert drained.sent == 1
    assert [row["status"] for row in post.rows()].count("pending") == 9
    assert {row["attempts"] for row in post.rows() if row["status"] == "pending"} == {0}
    assert len(await mailbox.messages()) == 1


async def test_the_backlog_tells_what_waits_and_for_how_long(post: Post) -> None:
    async with post.sessions() as session:
        assert await delivery.backlog(session, CHANNEL_EMAIL) == (0, 0)
    await post.enqueue(post.notice("a"), post.notice("b"))
    post.execute("UPDATE notifications SET next_attempt_at = now() - interval '90 seconds' WHERE fact = 'a'")
    async with post.sessions() as session:
        waiting, overdue = await delivery.backlog(session, CHANNEL_EMAIL)
    assert waiting == 2
    assert 89 < overdue < 100
