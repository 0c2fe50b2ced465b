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
from api.redaction import MASK
from tests.support.log_capture import capture_log, only_configured_handler


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


@pytest.mark.scenario("S12")
def test_an_exception_is_masked_with_everything_that_caused_it(stream: io.StringIO) -> None:
    try:
        try:
            raise ConnectionError("cannot reach postgresql://berth:hunter2@db.internal:5432/berth")
        except ConnectionError as cause:
            raise RuntimeError("no answer to\nada@example.com") from cause
    except RuntimeError:
        structlog.get_logger("example").exception("example.failed")
        logging.getLogger("library").exception("failed")
    for line in lines(stream):
        assert "RuntimeError: no answer to" in line["exception"]
        assert "hunter2" not in line["exception"]
        assert "ada@example.com" not in line["exception"]


def test_a_record_that_cannot_be_formatted_is_reported_without_its_content(
    stream: io.StringIO, capfd: pytest.CaptureFixture[str]
) -> None:
    with only_configured_handler():
        logging.getLogger("library").warning("%d of %s", "sk_live_51HxExample")
    (line,) = lines(stream)
    assert (line["event"], line["logger"], line["error"]) == ("log.record_failed", "library", "TypeError")
    assert "sk_live" not in "".join((stream.getvalue(), *capfd.readouterr()))
