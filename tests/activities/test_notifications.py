"""The outbox on a real database and a mail server: each notification is sent once, whatever fails in between."""

from __future__ import annotations

import asyncio
import email
import hashlib
from datetime import timedelta
from email import policy
from email.message import EmailMessage
from typing import Any

import httpx
import pytest
from sqlalchemy.exc import OperationalError
from temporalio.testing import ActivityEnvironment

from db.queries import outbox_delivery
from db.queries.outbox import to_outbox_row
from deploy.local.mailbox import Mailbox
from tests.support.databases import DatabaseFixture
from tests.support.inserts import NOW
from tests.support.notification_fixture import RECIPIENT, USD_15, NotificationFixture
from tests.support.wait import wait_until
from workflows.ports.notifications import DrainOutbox, DrainOutcome
from workflows.rules.notifications import CHANNEL_EMAIL, LIMITS, NotificationKind


async def received(mailbox: Mailbox, number: int = 0) -> EmailMessage:
    async with httpx.AsyncClient(base_url=mailbox.http_url) as web:
        mails = (await web.get("/messages")).json()
        raw = (await web.get(f"/messages/{mails[number]['id']}/raw")).content
    message = email.message_from_bytes(raw, policy=policy.default)
    assert isinstance(message, EmailMessage)
    return message


async def test_a_notification_is_sent_once_however_often_it_is_enqueued(
    notifications: NotificationFixture, mailbox: Mailbox
) -> None:
    await notifications.enqueue(notifications.build_notification(), notifications.build_notification())
    await notifications.enqueue(
        notifications.build_notification(context={"amount": {"amount_minor": 9, "currency": "USD"}})
    )
    drained = await notifications.drain()
    await notifications.enqueue(notifications.build_notification())
    assert drained == DrainOutcome(sent=1, failures=0, server_unavailable=False)
    assert (await notifications.drain()).sent == 0
    (mail,) = await mailbox.messages()
    assert (mail["to"], mail["subject"]) == (RECIPIENT, "Receipt: US$15.00 added to your wallet")
    row = notifications.get_notification()
    assert (row["status"], row["attempts"], row["recipient_addresses"], row["error"]) == ("sent", 1, RECIPIENT, None)
    assert row["message_id"] == (await received(mailbox))["Message-ID"]
    assert (await received(mailbox))["Auto-Submitted"] == "auto-generated"
    assert (await received(mailbox))["Date"].datetime == NOW


async def test_two_dispatchers_at_once_share_the_work(notifications: NotificationFixture, mailbox: Mailbox) -> None:
    facts = [f"fact {number:02d}" for number in range(50)]
    await notifications.enqueue(*(notifications.build_notification(fact) for fact in facts))

    async def drain_to_the_end() -> int:
        activities, sent = notifications.build_activities(), 0
        while notifications.rows("SELECT id FROM notifications WHERE status IN ('pending', 'sending')"):
            sent += (await notifications.drain(activities)).sent
        return sent

    assert sum(await asyncio.gather(*(drain_to_the_end() for _ in range(3)))) == len(facts)
    assert len(await mailbox.messages()) == len(facts)
    assert {row["attempts"] for row in notifications.rows()} == {1}


async def test_each_reader_role_gets_what_concerns_it(notifications: NotificationFixture, mailbox: Mailbox) -> None:
    notifications.insert_user("billing@customer.example", role="billing")
    notifications.insert_user("member@customer.example", role="member")
    gone = notifications.insert_user("gone@customer.example", role="owner")
    operator = notifications.insert_user("operator@berth.example", role=None, platform="ADMINISTRATOR")
    notifications.execute("UPDATE users SET disabled_at = now() WHERE id = %s", gone)
    alert = notifications.build_notification(
        "alert", kind=NotificationKind.OPERATOR_ALERT, organization_id=None, context={"title": "Look"}
    )
    personal = notifications.build_notification("personal", kind=NotificationKind.WELCOME, user_id=operator, context={})
    await notifications.enqueue(
        notifications.build_notification(), alert, personal, notifications.build_notification("nobody", user_id=gone)
    )
    drained = await notifications.drain()
    assert (drained.sent, drained.failures) == (3, 1)
    assert {row["dedup_key"]: row["recipient_addresses"] for row in notifications.rows()} == {
        "fact": "ada@customer.example, billing@customer.example",
        "alert": "operator@berth.example",
        "personal": "operator@berth.example",
        "nobody": None,
    }
    assert (notifications.get_notification("nobody")["status"], notifications.get_notification("nobody")["error"]) == (
        "failed",
        "NoRecipient",
    )
    welcome = next(mail for mail in await mailbox.messages() if "Welcome" in mail["subject"])
    assert "Welcome, Ada" in welcome["text"]


async def test_the_claim_of_the_dead_lapses_and_the_mail_keeps_its_name(
    notifications: NotificationFixture, mailbox: Mailbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It died between the server's 250 and its own record: the only moment in which a mail goes out twice."""
    await notifications.enqueue(notifications.build_notification())

    class Died(BaseException):
        pass

    dying = notifications.build_activities()

    async def dies(*_: object) -> None:
        raise Died

    monkeypatch.setattr(dying, "_record_deliveries", dies)
    with pytest.raises(Died):
        await notifications.drain(dying)
    assert len(await mailbox.messages()) == 1
    assert (await notifications.drain()).sent == 0, "the claim still holds"
    assert notifications.get_notification()["status"] == "sending"
    notifications.make_all_due()
    assert (await notifications.drain()).sent == 1
    assert len(await mailbox.messages()) == 1, "the receiver knows the Message-ID"
    assert (notifications.get_notification()["status"], notifications.get_notification()["attempts"]) == ("sent", 2)


async def test_a_failure_of_the_database_in_the_middle_of_a_batch_repeats_no_mail(
    notifications: NotificationFixture, mailbox: Mailbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    await notifications.enqueue(*(notifications.build_notification(fact) for fact in ("a", "b", "c")))
    faulty = notifications.build_activities()
    ids = [row["id"] for row in notifications.rows("SELECT id FROM notifications ORDER BY created_at, id")]
    compose = faulty._compose

    async def interrupted(notification: outbox_delivery.ClaimedNotification, *arguments: Any) -> EmailMessage:
        if notification.id == ids[1]:
            raise OperationalError("SELECT", None, Exception("canceling statement due to statement timeout"))
        return await compose(notification, *arguments)

    monkeypatch.setattr(faulty, "_compose", interrupted)
    with pytest.raises(OperationalError):
        await notifications.drain(faulty)
    rows = {row["id"]: (row["status"], row["attempts"]) for row in notifications.rows()}
    assert [rows[id] for id in ids] == [("sent", 1), ("sending", 1), ("pending", 0)]
    assert (await notifications.drain()).sent == 1
    notifications.make_all_due()
    assert (await notifications.drain()).sent == 1
    assert sorted(row["attempts"] for row in notifications.rows()) == [1, 1, 2]
    assert len(await mailbox.messages()) == 3


async def test_whose_claim_was_taken_over_records_nothing(notifications: NotificationFixture) -> None:
    await notifications.enqueue(notifications.build_notification())
    async with notifications.sessions.begin() as session:
        (mine,) = await outbox_delivery.claim_due(
            session, channel="email", claim_id="slow", limit=5, lease=timedelta(seconds=60)
        )
    notifications.make_all_due()
    await notifications.drain()
    async with notifications.sessions.begin() as session:
        late = outbox_delivery.DeliveryOutcome(id=mine.id, status="failed", error="too late")
        assert await outbox_delivery.record_outcomes(session, claim_id="slow", outcomes=[late]) == 0
    assert notifications.get_notification()["status"] == "sent"


async def test_a_lost_answer_is_sent_again_and_kept_once(notifications: NotificationFixture, mailbox: Mailbox) -> None:
    mailbox.faults.add({"fault": "drop", "count": 1})
    await notifications.enqueue(notifications.build_notification("a"), notifications.build_notification("b"))
    drained = await notifications.drain()
    assert drained.failures >= 1
    assert "SmtpConnectionLost" in next(row["error"] for row in notifications.rows() if row["error"])
    notifications.make_all_due()
    await notifications.drain(seconds=0.5)
    assert [row["status"] for row in notifications.rows()] == ["sent", "sent"]
    assert len(await mailbox.messages()) == 2


@pytest.mark.scenario("S12")
async def test_a_secret_rests_encrypted_and_is_blank_once_sent(
    notifications: NotificationFixture, mailbox: Mailbox
) -> None:
    token = "tok-4711-very-secret"
    await notifications.enqueue(
        notifications.build_notification(
            "good", kind=NotificationKind.EMAIL_VERIFICATION, context={}, secret_context={"token": token}
        ),
        notifications.build_notification(
            "bad", kind=NotificationKind.PASSWORD_RESET, context={}, secret_context={"token": token}
        ),
    )
    for row in notifications.rows():
        assert row["encrypted_context"]
        assert token not in str(row)
    with pytest.raises(ValueError, match="encryptor"):
        to_outbox_row(
            notifications.build_notification(
                "third", kind=NotificationKind.PASSWORD_RESET, secret_context={"token": token}
            )
        )
    # Encrypted for another row, as if it had been copied from there.
    notifications.execute(
        "UPDATE notifications SET encrypted_context = (SELECT encrypted_context FROM notifications WHERE dedup_key"
        " = 'good')"
        " WHERE dedup_key = 'bad'"
    )
    for _ in range(LIMITS.maximum_rejections):
        await notifications.drain()
        notifications.make_all_due()
    (mail,) = await mailbox.messages()
    assert f"https://berth.example/verify-email?token={token}" in mail["text"]
    assert token in mail["html"]
    assert {row["dedup_key"]: (row["status"], row["encrypted_context"]) for row in notifications.rows()} == {
        "good": ("sent", None),
        "bad": ("failed", None),
    }
    assert token not in str(notifications.rows())


async def test_a_receipt_brings_the_invoice(notifications: NotificationFixture, mailbox: Mailbox) -> None:
    invoice_id = notifications.insert_invoice()
    context = {"subscription_id": "sub_1", "amount": USD_15, "invoice_id": invoice_id, "period_end": NOW.isoformat()}
    await notifications.enqueue(
        notifications.build_notification(kind=NotificationKind.SUBSCRIPTION_RENEWED, context=context)
    )
    assert (await notifications.drain()).sent == 1
    mail = await received(mailbox)
    body = mail.get_body(("plain",))
    assert body is not None
    assert "Paid with: Wallet" in body.get_content()
    (attachment,) = mail.iter_attachments()
    content = attachment.get_content()
    assert (attachment.get_filename(), attachment.get_content_type()) == ("BERTH-2027-000001.pdf", "application/pdf")
    assert content.startswith(b"%PDF-")
    (document,) = notifications.rows("SELECT * FROM documents")
    assert document["content_sha256"] == hashlib.sha256(content).hexdigest()
    assert mail["Subject"] == "Receipt BERTH-2027-000001: your service"


async def test_an_invoice_of_another_account_is_not_attached(
    notifications: NotificationFixture, database: DatabaseFixture, mailbox: Mailbox
) -> None:
    other = NotificationFixture(database, mailbox.smtp_port)
    context = {"subscription_id": "sub_1", "invoice_id": other.insert_invoice()}
    await notifications.enqueue(
        notifications.build_notification(kind=NotificationKind.SUBSCRIPTION_RENEWED, context=context)
    )
    assert (await notifications.drain()).sent == 1
    assert list((await received(mailbox)).iter_attachments()) == []


async def test_one_that_cannot_be_composed_does_not_hold_up_the_others(
    notifications: NotificationFixture, mailbox: Mailbox
) -> None:
    await notifications.enqueue(
        notifications.build_notification("1 no amount", context={}),
        notifications.build_notification("2 not money", context={"amount": "a lot"}),
        notifications.build_notification(
            "3 odd currency", context={"amount": {"amount_minor": 1.5, "currency": "USD"}}
        ),
        notifications.build_notification(
            "4 not an instant",
            kind=NotificationKind.SUBSCRIPTION_RENEWED,
            context={"subscription_id": "s", "amount": USD_15, "period_start": "soon", "period_end": "later"},
        ),
        notifications.build_notification("5 good"),
        notifications.build_notification("6 of tomorrow"),
    )
    notifications.execute("UPDATE notifications SET kind = 'a_kind_of_tomorrow' WHERE dedup_key LIKE '6%%'")
    drained = await notifications.drain()
    assert (drained.sent, drained.failures) == (1, 5)
    assert len(await mailbox.messages()) == 1
    assert {row["error"] for row in notifications.rows() if row["status"] != "sent"} == {"RenderingError"}


async def test_a_drain_waits_for_what_becomes_due_and_ends_in_time(
    notifications: NotificationFixture, mailbox: Mailbox
) -> None:
    draining = asyncio.create_task(notifications.drain(seconds=3))
    await asyncio.sleep(0)
    await notifications.enqueue(notifications.build_notification())
    await wait_until(lambda: len(mailbox._store.all(None)) if mailbox._store else 0)
    assert (await draining).sent == 1


async def test_a_worker_that_shuts_down_ends_its_drain_and_gives_back_what_it_held(
    notifications: NotificationFixture, mailbox: Mailbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    await notifications.enqueue(*(notifications.build_notification(f"fact {number}") for number in range(10)))
    environment, dispatcher = ActivityEnvironment(), notifications.build_activities()
    deliver = dispatcher._deliver

    async def deliver_and_stop(*arguments: object) -> outbox_delivery.DeliveryOutcome:
        outcome = await deliver(*arguments)  # type: ignore[arg-type]  # passed on as it came
        environment.worker_shutdown()
        return outcome

    monkeypatch.setattr(dispatcher, "_deliver", deliver_and_stop)
    drained = await environment.run(dispatcher.drain_outbox, DrainOutbox(channel=CHANNEL_EMAIL, duration_seconds=60))
    assert drained.sent == 1
    assert [row["status"] for row in notifications.rows()].count("pending") == 9
    assert {row["attempts"] for row in notifications.rows() if row["status"] == "pending"} == {0}
    assert len(await mailbox.messages()) == 1


async def test_the_backlog_tells_what_waits_and_for_how_long(notifications: NotificationFixture) -> None:
    async with notifications.sessions() as session:
        assert await outbox_delivery.pending_backlog(session, CHANNEL_EMAIL) == (0, 0)
    await notifications.enqueue(notifications.build_notification("a"), notifications.build_notification("b"))
    notifications.execute(
        "UPDATE notifications SET next_attempt_at = now() - interval '90 seconds' WHERE dedup_key = 'a'"
    )
    async with notifications.sessions() as session:
        waiting, overdue = await outbox_delivery.pending_backlog(session, CHANNEL_EMAIL)
    assert waiting == 2
    assert 89 < overdue < 100


async def test_a_password_reset_is_sent_before_a_backlog_of_renewals(
    notifications: NotificationFixture, mailbox: Mailbox
) -> None:
    renewals = [
        notifications.build_notification(
            f"renewed {number}",
            kind=NotificationKind.SUBSCRIPTION_RENEWED,
            context={"subscription_id": "sub_1"},
        )
        for number in range(60)
    ]
    await notifications.enqueue(*renewals)
    notifications.make_all_due()
    for kind in (NotificationKind.PASSWORD_RESET, NotificationKind.EMAIL_VERIFICATION):
        await notifications.enqueue(
            notifications.build_notification(kind.value, kind=kind, context={}, secret_context={"token": "tok_1"})
        )
    async with notifications.sessions.begin() as session:
        claimed = await outbox_delivery.claim_due(
            session, channel=CHANNEL_EMAIL, claim_id="first", limit=3, lease=timedelta(seconds=60)
        )
    assert [notification.kind for notification in claimed] == [
        "password_reset",
        "email_verification",
        "subscription_renewed",
    ]


async def test_a_recipient_at_an_international_domain_is_named_in_ascii(
    database: DatabaseFixture, mailbox: Mailbox
) -> None:
    notifications = NotificationFixture(database, mailbox.smtp_port)
    notifications.insert_user("info@müller.de")
    await notifications.enqueue(notifications.build_notification())
    assert (await notifications.drain()).sent == 1
    assert (await received(mailbox))["To"] == "info@xn--mller-kva.de"
