"""Every mail, with all it can be told and with the least, and customers' words that stay words."""

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
from activities.invoice_page import invoice_pdf
from activities.notice_kinds import KNOWN, REQUIRED
from activities.notifications import NotificationActivities
from activities.rendering import SUBJECT_LIMIT, TEMPLATES, NotRenderable, Reader, Renderer
from db.queries.delivery import Claimed
from db.queries.documents import InvoiceFacts, InvoiceLineFacts
from tests.support.post import PORTAL, SENDER
from workflows.rules.money import Money
from workflows.rules.notices import NoticeKind

AT = datetime(2027, 1, 31, 10, tzinfo=UTC)
READER = Reader(name="Ada Lovelace", organization_name="Analytical Engines Ltd", timezone="Europe/Paris")
NOBODY = Reader(name=None, organization_name=None, timezone=None)
USD_15 = {"amount_minor": 1500, "currency": "USD"}

EXAMPLES: dict[str, Any] = {
    "amount": USD_15,
    "balance": {"amount_minor": 250, "currency": "USD"},
    "credit": {"amount_minor": 725, "currency": "USD"},
    "days": 3,
    "cancel_at_period_end": False,
    "balance_too_low": True,
    "url": "https://notes.apps.berth.example",
    "hostname": "notes.apps.berth.example",
    "credentials_url": "https://berth.example/credentials/1",
    "to": "wallet",
    "last4": "4242",
    "severity": "critical",
    "decline_code": "insufficient_funds",
}
INSTANTS = {
    "period_start", "period_end", "due_at", "next_attempt", "delete_at", "expires_at", "trial_end", "suspends_at",
    "cancels_at", "effective_at",
}  # fmt: skip


def full() -> dict[str, Any]:
    """Everything that a mail may be told."""
    told = {key: EXAMPLES.get(key, f"some {key}") for key in KNOWN}
    return told | dict.fromkeys(INSTANTS, "2027-02-28T10:00:00+00:00")


def minimal(kind: NoticeKind) -> dict[str, Any]:
    return {key: EXAMPLES.get(key, f"some {key}") for key in REQUIRED[kind]}


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    return Renderer(public_url=PORTAL + "/")


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
    assert {path.stem for path in TEMPLATES.glob("*.j2")} == set(NoticeKind) == set(REQUIRED)
    assert all(needed <= KNOWN for needed in REQUIRED.values())


@pytest.mark.parametrize("reader", [READER, NOBODY], ids=["known", "unknown"])
@pytest.mark.parametrize("told", ["full", "minimal"])
@pytest.mark.parametrize("kind", list(NoticeKind))
def test_every_kind_renders(renderer: Renderer, kind: NoticeKind, told: str, reader: Reader) -> None:
    mail = renderer.render(kind, full() if told == "full" else minimal(kind), reader)
    page = Page(mail.html)
    for shown in (mail.subject, mail.text, " ".join(page.words)):
        assert not re.search(r"\bNone\b|Undefined|\{\{|\{%|  \|", shown), shown
    assert 3 < len(mail.subject) <= SUBJECT_LIMIT
    assert mail.subject[0].isupper() or mail.subject[0] == "[" or told == "full"
    assert mail.text.count("\n\n\n") == 0, "no holes where something is missing"
    assert all(len(line) <= 78 or "http" in line for line in mail.text.splitlines())
    assert mail.text.rstrip().endswith(PORTAL)
    # What the text says, the page says as well.
    for sentence in mail.text.split("-- ")[0].split("\n\n")[:2]:
        assert " ".join(sentence.split()) in " ".join(" ".join(page.words).split())
    assert "script" not in {tag for tag, _ in page.elements}
    assert "img" not in {tag for tag, _ in page.elements}, "nothing that reports the opening of a mail"
    assert all(link.startswith("http") for link in page.links)


@pytest.mark.parametrize("kind", list(NoticeKind))
def test_what_is_missing_is_named_and_never_shown(renderer: Renderer, kind: NoticeKind) -> None:
    for key in REQUIRED[kind]:
        told = minimal(kind)
        del told[key]
        with pytest.raises(NotRenderable, match=key):
            renderer.render(kind, told, READER)


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
@pytest.mark.parametrize("kind", list(NoticeKind))
@pytest.mark.parametrize("hostile", HOSTILE, ids=range(len(HOSTILE)))
def test_customers_words_stay_words(renderer: Renderer, kind: NoticeKind, hostile: str) -> None:
    harmless = renderer.render(kind, full() | dict.fromkeys(WORDS, "Harmless"), READER)
    named = Reader(name=hostile, organization_name=hostile, timezone=hostile[:40])
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


def composed(renderer: Renderer, kind: NoticeKind, hostile: str) -> EmailMessage:
    """The mail as it is handed over, without a database behind."""
    unused: Any = None
    sender = NotificationActivities(unused, unused, renderer, unused, sender=SENDER, sealer=None)
    notice = Claimed(
        id="ntf_1",
        organization_id="org_1",
        kind=kind,
        context={},
        secret_context=None,
        request_id="req_1",
        attempts=1,
        business_at=AT,
        created_at=AT,
        now=AT,
        addresses=("ada@customer.example",),
        reader_name=hostile,
        organization_name=hostile,
        timezone="UTC",
    )
    reader = Reader(name=hostile, organization_name=hostile, timezone="UTC")
    return sender._message(notice, renderer.render(kind, full() | dict.fromkeys(WORDS, hostile), reader))


@pytest.mark.scenario("S6")
def test_nobody_is_greeted_by_an_address(renderer: Renderer) -> None:
    """Whoever registers somebody else's address must not get a link of theirs into that mail."""
    for name in ("Win at evil.example", "http://evil.example", "www.evil", "mail me@evil.example", "a/b"):
        reader = Reader(name=name, organization_name=None, timezone=None)
        mail = renderer.render("email_verification", {"token": "t"}, reader)
        assert "evil" not in mail.text + mail.html
    for name in ("Ada", "J. R. Tolkien", "O'Brien-Łukasz", "山田 太郎"):
        reader = Reader(name=name, organization_name=None, timezone=None)
        assert f"Hello {name}, welcome" in renderer.render("email_verification", {"token": "t"}, reader).text


@pytest.mark.parametrize(
    ("minor", "currency", "shown"),
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
def test_money_is_exact_in_every_currency(renderer: Renderer, minor: int, currency: str, shown: str) -> None:
    amount = {"amount_minor": minor, "currency": currency}
    mail = renderer.render("top_up_receipt", {"amount": amount}, READER)
    assert shown in mail.text.replace("\u00a0", " ")
    assert shown in mail.subject.replace("\u00a0", " ")


def test_instants_are_told_in_the_accounts_zone(renderer: Renderer) -> None:
    told = {"subscription_id": "sub_1", "days": 3, "due_at": "2027-01-31T23:30:00+00:00"}
    paris = renderer.render("subscription_expiring", told, READER)
    assert "1 February 2027, 00:30 (Europe/Paris)" in paris.text
    nowhere = Reader(name=None, organization_name=None, timezone="Mars/Olympus")
    assert "31 January 2027, 23:30 (UTC)" in renderer.render("subscription_expiring", told, nowhere).text


@pytest.mark.parametrize(
    ("status", "said"),
    [
        ("past_due", "Your service goes on for now."),
        ("suspended", "Your service stays suspended"),
        ("paused", "The trial has ended, so your service is paused"),
    ],
)
def test_a_payment_that_failed_says_what_becomes_of_the_service(renderer: Renderer, status: str, said: str) -> None:
    told = {"subscription_id": "sub_1", "status": status, "next_attempt": "2027-02-28T10:00:00+00:00"}
    text = renderer.render("payment_failed", told, READER).text
    assert said in " ".join(text.split())


def test_tokens_are_quoted_in_links(renderer: Renderer) -> None:
    mail = renderer.render("password_reset", {"token": "a+b/c=&x=<>"}, READER)
    assert "https://berth.example/reset-password?token=a%2Bb%2Fc%3D%26x%3D%3C%3E" in mail.text


def facts(**changes: Any) -> InvoiceFacts:
    currency = changes.pop("currency", "USD")

    def money(minor: int) -> Money:
        return Money(amount_minor=minor, currency=currency)

    line = InvoiceLineFacts(
        description=changes.pop("description", "n8n Starter"),
        quantity=1,
        unit_price=money(1500),
        discount=money(0),
        tax=money(0),
        amount=money(1500),
        period_start=AT,
        period_end=datetime(2027, 2, 28, 10, tzinfo=UTC),
    )
    given: dict[str, Any] = {
        "id": "inv_1",
        "number": "BERTH-2027-000001",
        "status": "paid",
        "issued_at": AT,
        "paid_at": AT,
        "period_start": AT,
        "period_end": line.period_end,
        "subtotal": money(1500),
        "tax": money(0),
        "total": money(1500),
        "due": money(0),
        "organization_id": "org_1",
        "organization_name": "Analytical Engines Ltd",
        "country": "FR",
        "timezone": "Europe/Paris",
        "subscription_id": "sub_1",
        "subscription_name": "Notes",
        "paid_by": "Visa ending in 4242",
        "lines": (line,) * changes.pop("count", 1),
    }
    return InvoiceFacts(**(given | changes))


@pytest.mark.scenario("S6")
@pytest.mark.parametrize("hostile", HOSTILE, ids=range(len(HOSTILE)))
def test_an_invoice_is_a_page_whatever_its_words(hostile: str) -> None:
    content = invoice_pdf(facts(organization_name=hostile, subscription_name=hostile, description=hostile[:500]))
    assert content.startswith(b"%PDF-")
    assert b"/URI" not in content
    assert b"/JavaScript" not in content


@pytest.mark.parametrize("status", ["open", "paid", "void", "uncollectible"])
def test_the_same_invoice_is_the_same_bytes(status: str) -> None:
    given = facts(status=status, count=60, currency="JPY")
    assert invoice_pdf(given) == invoice_pdf(given)
    assert invoice_pdf(given) != invoice_pdf(facts(status=status, count=61, currency="JPY"))


def test_an_amount_is_never_a_float() -> None:
    wrong: Any = 15.0
    with pytest.raises(TypeError):
        formatting.money(wrong, "USD")
