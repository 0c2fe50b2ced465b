"""What leaves the process by its log, whoever said it."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import UTC, datetime

import pytest

from api.logs import MASK
from worker import logs, sight
from workflows.ports.payments import Charge, Pay, Purpose
from workflows.refusals import refuse
from workflows.rules.errors import Refusal
from workflows.rules.money import Money

PLAIN = logging.Formatter("%(message)s")


def said(message: str, *arguments: object) -> str:
    record = logging.LogRecord("somebody", logging.INFO, __file__, 1, message, arguments, None)
    return logs.Scrubbing(PLAIN).format(record)


@pytest.mark.scenario("S12")
@pytest.mark.parametrize(
    "secret",
    [
        "ada.lovelace+tag@mail.customer.example",
        "ada@localhost",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJ1c3JfMSJ9.c2lnbmF0dXJl",
        "sk_live_51HxExample",
        "whsec_abcdef0123",
    ],
)
def test_what_looks_personal_or_secret_is_masked_wherever_it_stands(secret: str) -> None:
    for message in ("%s", '{"detail": "Key (email)=(%s) exists"}', "mail to <%s>, later", "a=%s&b=1"):
        shown = said(message, secret)
        assert secret not in shown
        assert MASK in shown


@pytest.mark.scenario("S12")
def test_secrets_inside_addresses_are_masked_and_the_rest_stays() -> None:
    assert said("GET https://berth.example/verify-email?token=abc%2Bdef&next=/") == (
        f"GET https://berth.example/verify-email?token={MASK}&next=/"
    )
    assert "hunter2" not in said("connecting to postgresql://berth:hunter2@db.internal:5432/berth")


@pytest.mark.parametrize(
    "harmless",
    [
        "payment/pay_4kq2 of org_1 moved to succeeded at 2027-01-31T10:00:00Z",
        "http://127.0.0.1:8000/api/v1/subscriptions/sub_1",
        "activities/payments.py:42 charge",
    ],
)
def test_what_finds_things_stays(harmless: str) -> None:
    assert said(harmless) == harmless


def test_the_account_is_found_in_a_command_or_one_level_below() -> None:
    pay = Pay(
        payment_id="pay_1",
        organization_id="org_1",
        amount=Money(amount_minor=1, currency="USD"),
        gateway="stripe",
        purpose=Purpose.TOP_UP,
    )

    @dataclass
    class Nameless:
        instance_id: str

    charge = Charge(pay=pay, now=datetime(2027, 1, 31, tzinfo=UTC))
    assert [sight.account([one]) for one in (pay, charge, Nameless("ins_1"), "text")] == ["org_1", "org_1", None, None]
    assert sight.account([]) is None


def test_an_error_is_called_by_its_kind_and_its_place() -> None:
    refusal = refuse(Refusal.INSUFFICIENT_FUNDS, "Ada has nothing left")
    assert sight.outcome_of(refusal) == sight.REFUSED
    assert sight.name_of(refusal) == "INSUFFICIENT_FUNDS"
    with pytest.raises(ValueError, match="Ada") as caught:
        int("Ada")
    assert sight.outcome_of(caught.value) == sight.FAILED
    assert sight.name_of(caught.value) == "ValueError"
    (frame,) = sight.where(caught.value)
    assert frame.startswith("tests/worker/test_logs.py:")
    assert sight.outcome_of(KeyboardInterrupt()) == sight.CANCELLED
