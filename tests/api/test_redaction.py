"""No secret reaches a log line, whatever is logged around it, and every line is valid JSON."""

from __future__ import annotations

import base64
import io
import json
import logging
import time
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import worker.logs
from api import logs
from api.ids import generate_secret
from api.redaction import MASK, MAX_DEPTH, is_secret_name, mask_text, mask_value
from tests.support.log_capture import capture_log, only_configured_handler

SECRETS = [
    "ada.lovelace+tag@mail.customer.example",
    "o'brien@customer.example",
    "ada@localhost",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJ1c3JfMSJ9.c2lnbmF0dXJl",
    "sk_live_51HxExample",
    "pk_test_51HxExample",
    "whsec_abcdef0123",
    "pi_3Nabc_secret_9Xyz",
    "brt__GkCrosQiPpz-mfsifmi-D-XiY92y6MH3PTmLiw3r6g",
    "bot_APlVlislJNgiYaLjz63dEV3ufeIMMyO76vEXjwd2_cM",
    "$argon2id$v=19$m=65536,t=3,p=4$c2FsdA$aGFzaA",
    "Bearer 0123456789abcdef",
    "Basic dXNlcjpwYXNz",
]
"""Texts that are secrets wherever they stand."""

SURROUNDED = [
    ("postgresql://berth:%s@db.internal:5432/berth", "hunter/2?"),
    ("host=db password=%s port=5432", "hunter2"),
    ("https://berth.example/verify-email?token=%s&next=/", "abc%2Bdef"),
    ('{"refresh_token": "%s", "n": 1}', 'hun\\"ter2'),
    ("{'api_key': b'%s'}", "hunter2"),
    ("Authorization: %s", "hunter2"),
    ("Credentials(password='%s', url='https://n8n.example')", "hunter 2"),
]
"""Secrets that only what stands around them makes known."""


@pytest.mark.scenario("S12")
@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize("message", ["%s", "mail to <%s>, later", "a=%s&b=1", "a\n%s\nb", "b'a\\n%s'", '{"a": "%s"}'])
def test_a_secret_is_masked_wherever_it_stands(secret: str, message: str) -> None:
    masked = mask_text(message % secret)
    assert secret not in masked
    assert MASK in masked


@pytest.mark.scenario("S12")
@pytest.mark.parametrize(("message", "secret"), SURROUNDED)
def test_a_value_that_is_named_a_secret_is_masked(message: str, secret: str) -> None:
    masked = mask_text(message % secret)
    assert secret not in masked
    assert "hunter" not in masked
    assert MASK in masked


def test_the_tokens_of_this_api_are_masked() -> None:
    for prefix in ("brt", "bot"):
        assert mask_text(f"x={generate_secret(prefix)}") == f"x={MASK}"


def test_the_rest_of_an_address_stays() -> None:
    message = "GET https://berth.example/verify-email?token=abc%2Bdef&next=/"
    assert mask_text(message) == f"GET https://berth.example/verify-email?token={MASK}&next=/"


@pytest.mark.parametrize(
    "harmless",
    [
        "payment/pay_4kq2 of org_1 moved to succeeded at 2027-01-31T10:00:00Z",
        "http://127.0.0.1:8000/api/v1/subscriptions/sub_1",
        "activities/payments.py:42 charge",
        "Basic monthly plan",
        "the token has expired",
    ],
)
def test_ids_and_sentences_are_not_masked(harmless: str) -> None:
    assert mask_text(harmless) == harmless


@pytest.mark.parametrize(
    "name", ["password", "X-Api-Key", "refreshToken", "SET-COOKIE", "client_secret", "Authorization"]
)
def test_a_field_is_masked_by_its_name(name: str) -> None:
    assert is_secret_name(name)
    assert mask_value({name: {"nested": 1}}) == {name: MASK}


@pytest.mark.parametrize("name", ["account", "user", "event", "idempotency_key", "workflow_id"])
def test_other_fields_are_not(name: str) -> None:
    assert not is_secret_name(name)


@pytest.mark.parametrize(
    "repeated", ["a", "a@", "eyJ", "://:", 'password="', "token: [", "sk_live_", "pi_", "basic ", "\\", "$2a$", "a.b@"]
)
def test_the_time_grows_with_the_length_of_a_text(repeated: str) -> None:
    """A customer's text must not stop the process: 400 kB take less than a second per pattern."""
    started = time.process_time()
    mask_text(repeated * (400_000 // len(repeated)) + "@=:_secret_")
    assert time.process_time() - started < 4


@pytest.fixture(scope="module", params=[logs.configure_logging, worker.logs.configure_logging], ids=["api", "worker"])
def stream(request: pytest.FixtureRequest) -> Iterator[io.StringIO]:
    with capture_log(request.param, level="INFO") as written:
        yield written


TEXTS = st.text(max_size=20)
SEPARATORS = st.sampled_from(["", " ", "\n", "\t", '"', "'", "\\", "\\n", ",", ":", "=", "(", "\u2028", "\x00", "<"])


@st.composite
def texts_with_secrets(draw: st.DrawFn) -> str:
    secret = draw(st.sampled_from(SECRETS))
    return f"{draw(TEXTS)}{draw(SEPARATORS)}{secret}{draw(SEPARATORS)}"


class Opaque:
    """An object of a library, whose ``repr`` quotes what it holds."""

    def __init__(self, held: str) -> None:
        self.held = held

    def __repr__(self) -> str:
        return f"Opaque({self.held!r})"


LEAVES = st.one_of(
    texts_with_secrets(),
    texts_with_secrets().map(str.encode),
    texts_with_secrets().map(ValueError),
    texts_with_secrets().map(Opaque),
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
)
FIELD_NAMES = st.one_of(TEXTS, texts_with_secrets(), st.sampled_from(["detail", "password", "X-Api-Key"]))
EVENTS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(FIELD_NAMES, inner, max_size=3),
        st.tuples(inner, inner),
    ),
    max_leaves=8,
)


def reject_constant(name: str) -> None:
    raise AssertionError(f"{name} is not JSON")


def assert_one_line_without_secrets(written: io.StringIO) -> dict[str, Any]:
    text = written.getvalue()
    written.seek(0)
    written.truncate()
    assert text.count("\n") == 1
    line: dict[str, Any] = json.loads(text, parse_constant=reject_constant)
    decoded = json.dumps(line, ensure_ascii=False)
    for secret in SECRETS:
        assert secret not in text
        assert secret not in decoded
    return line


@pytest.mark.scenario("S12")
@given(event=EVENTS, message=texts_with_secrets())
@example(event={"detail": "Key (email)=(\nsk_live_51HxExample)"}, message='a "\nsk_live_51HxExample"')
@example(event=float("nan"), message="")
@example(event=10**5000, message="")
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_event_is_one_line_of_valid_json_without_secrets(stream: io.StringIO, event: Any, message: str) -> None:
    with only_configured_handler():
        structlog.get_logger("example").info(message, facts=event, password=event)
        line = assert_one_line_without_secrets(stream)
        assert line["password"] == MASK
        logging.getLogger("library").warning("%s: %r", message, event)
        assert_one_line_without_secrets(stream)
        try:
            raise ValueError(message, event)
        except ValueError:
            structlog.get_logger("example").exception("example.failed")
        assert "Traceback" in assert_one_line_without_secrets(stream)["exception"]


def test_what_cannot_be_rendered_does_not_cost_the_line(stream: io.StringIO) -> None:
    circle: dict[str, Any] = {}
    circle["self"] = circle

    class Broken:
        def __repr__(self) -> str:
            raise RuntimeError("broken")

    with only_configured_handler():
        structlog.get_logger("example").info("example.happened", circle=circle, broken=Broken())
    line = assert_one_line_without_secrets(stream)
    assert line["broken"] == "<Broken>"
    assert json.dumps(line).count('"self"') < 2 * MAX_DEPTH


def test_credentials_of_any_user_are_masked() -> None:
    for user in ("ada:hunter2", "berth_api:correct horse battery"):
        encoded = base64.b64encode(user.encode()).decode()
        assert encoded not in mask_text(f"Authorization: Basic {encoded}")
