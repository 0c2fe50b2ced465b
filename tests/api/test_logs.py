"""Log lines of the API and the worker have the same fields and are redacted, whichever library wrote them."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

import worker.logs
from api import logs
from api.logs import MASK
from tests.support.log_capture import capture_log

PLAIN = logging.Formatter("%(message)s")


def format_message(message: str, *arguments: object) -> str:
    log_record = logging.LogRecord("example", logging.INFO, __file__, 1, message, arguments, None)
    return logs.RedactingFormatter(PLAIN).format(log_record)


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
def test_personal_data_and_secrets_are_masked_everywhere(secret: str) -> None:
    for message in ("%s", '{"detail": "Key (email)=(%s) exists"}', "mail to <%s>, later", "a=%s&b=1"):
        formatted = format_message(message, secret)
        assert secret not in formatted
        assert MASK in formatted


@pytest.mark.scenario("S12")
def test_secrets_inside_addresses_are_masked_and_the_rest_stays() -> None:
    assert format_message("GET https://berth.example/verify-email?token=abc%2Bdef&next=/") == (
        f"GET https://berth.example/verify-email?token={MASK}&next=/"
    )
    assert "hunter2" not in format_message("connecting to postgresql://berth:hunter2@db.internal:5432/berth")


@pytest.mark.parametrize(
    "harmless",
    [
        "payment/pay_4kq2 of org_1 moved to succeeded at 2027-01-31T10:00:00Z",
        "http://127.0.0.1:8000/api/v1/subscriptions/sub_1",
        "activities/payments.py:42 charge",
    ],
)
def test_ids_are_not_masked(harmless: str) -> None:
    assert format_message(harmless) == harmless


@pytest.fixture(params=[logs.configure_logging, worker.logs.configure_logging], ids=["api", "worker"])
def stream(request: pytest.FixtureRequest) -> Iterator[io.StringIO]:
    """The log of a process: the API's, then the worker's."""
    with capture_log(request.param, level="INFO") as written:
        yield written


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


@pytest.mark.scenario("S12")
def test_both_processes_write_the_same_fields_and_mask_the_same(stream: io.StringIO) -> None:
    structlog.contextvars.bind_contextvars(request_id="req_1")
    structlog.get_logger("example").info("example.happened", password="hunter2", detail="to ada@example.com")
    logging.getLogger("library").warning("cannot send to %s", "ada@example.com")
    product, library = lines(stream)
    assert {"event", "logger", "level", "timestamp", "request_id"} <= product.keys() & library.keys()
    assert (product["request_id"], library["request_id"]) == ("req_1", "req_1")
    assert (product["password"], product["detail"]) == (MASK, f"to {MASK}")
    assert library["event"] == f"cannot send to {MASK}"


def test_libraries_that_log_every_request_write_warnings_only(stream: io.StringIO) -> None:
    for name in logs.WARNING_ONLY_LOGGERS:
        logging.getLogger(f"{name}.part").info("GET /verify-email?token=abc")
    assert lines(stream) == []
    logging.getLogger("httpx").warning("slow")
    assert [line["event"] for line in lines(stream)] == ["slow"]
