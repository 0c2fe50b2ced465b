"""Payloads leave the process encrypted: round trips, rotation, and nothing readable in what a server keeps."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from cryptography.exceptions import InvalidTag
from hypothesis import given
from hypothesis import strategies as st
from temporalio.api.common.v1 import Payload
from temporalio.client import Client, WorkflowFailureError
from temporalio.exceptions import ApplicationError
from temporalio.worker import Worker

from tests.support.databases import DatabaseFixture
from tests.support.personal_data_workflow import (
    EMAIL,
    NAME,
    PASSWORD,
    TOKEN,
    PersonalDataWorkflow,
    fail_with_personal_data,
)
from tests.support.subscription_fixture import run_subscription_fixture
from tests.support.temporal import TemporalFixture
from workflows.codec import EncryptionCodec, UnknownEncryptionKey
from workflows.connection import connect
from workflows.settings import TemporalSettings, parse_encryption_keys

OLD, NEW = ("2026", bytes(range(32))), ("2027", bytes(range(32, 64)))


def payload(data: bytes, **metadata: str) -> Payload:
    return Payload(data=data, metadata={key: value.encode() for key, value in metadata.items()})


def run(work: Any) -> Any:
    return asyncio.run(work)


@given(st.lists(st.tuples(st.binary(max_size=200), st.dictionaries(st.text(max_size=9), st.binary(max_size=9)))))
def test_decoding_returns_what_was_encoded(parts: Sequence[tuple[bytes, dict[str, bytes]]]) -> None:
    codec = EncryptionCodec([NEW])
    before = [Payload(data=data, metadata=metadata) for data, metadata in parts]
    encoded = run(codec.encode(before))
    assert run(codec.decode(encoded)) == before
    for plain, sealed in zip(before, encoded, strict=True):
        assert set(sealed.metadata) == {"encoding", "encryption-key-id"}
        assert len(plain.data) < 8 or plain.data not in sealed.data


def test_equal_payloads_have_different_ciphertexts() -> None:
    codec = EncryptionCodec([NEW])
    first, second = run(codec.encode([payload(b"same"), payload(b"same")]))
    assert first.data != second.data


def test_keys_rotate_the_first_encrypts_and_all_decrypt() -> None:
    before, between, after = EncryptionCodec([OLD]), EncryptionCodec([NEW, OLD]), EncryptionCodec([NEW])
    (old,) = run(before.encode([payload(b"words", encoding="json/plain")]))
    (new,) = run(between.encode([payload(b"words", encoding="json/plain")]))
    assert (old.metadata["encryption-key-id"], new.metadata["encryption-key-id"]) == (b"2026", b"2027")
    assert run(between.decode([old, new])) == [payload(b"words", encoding="json/plain")] * 2
    assert run(after.decode([new])) == [payload(b"words", encoding="json/plain")]
    with pytest.raises(UnknownEncryptionKey, match="2026"):
        run(after.decode([old]))


def test_an_unencrypted_payload_is_returned_unchanged() -> None:
    plain = payload(b'"words"', encoding="json/plain")
    assert run(EncryptionCodec([NEW]).decode([plain])) == [plain]


@pytest.mark.parametrize("at", [0, 11, 12, -1])
def test_a_changed_ciphertext_is_rejected(at: int) -> None:
    codec = EncryptionCodec([NEW])
    (sealed,) = run(codec.encode([payload(b"words")]))
    data = bytearray(sealed.data)
    data[at] ^= 1
    sealed.data = bytes(data)
    with pytest.raises(InvalidTag):
        run(codec.decode([sealed]))


def test_encryption_keys_are_parsed_from_the_setting() -> None:
    old, new = (base64.urlsafe_b64encode(key).decode() for _, key in (OLD, NEW))
    assert parse_encryption_keys(f"2027:{new}, 2026:{old}") == (NEW, OLD)
    assert parse_encryption_keys(new) == (("1", NEW[1]),)
    assert parse_encryption_keys("") == ()
    for wrong in (f"a:{new},a:{old}", "a:" + base64.b64encode(b"short").decode(), "a:%%%"):
        with pytest.raises(ValueError, match=r"32 bytes|base64|Incorrect padding|[Oo]nly|[Ii]nvalid"):
            parse_encryption_keys(wrong)


@asynccontextmanager
async def connect_with_keys(temporal: TemporalFixture, *keys: tuple[str, bytes]) -> AsyncIterator[Client]:
    yield await connect(TemporalSettings(address=temporal.address, namespace=temporal.namespace, encryption_keys=keys))


@pytest.mark.scenario("S12")
async def test_a_history_contains_no_readable_personal_data(temporal: TemporalFixture) -> None:
    queue = temporal.unique_id("confidential")
    person = {"name": NAME, "email": EMAIL, "password": PASSWORD}
    async with connect_with_keys(temporal, NEW, OLD) as client:
        async with Worker(
            client, task_queue=queue, workflows=[PersonalDataWorkflow], activities=[fail_with_personal_data]
        ):
            handle = await client.start_workflow(
                "Confidential", person, id=temporal.unique_id("w"), task_queue=queue, memo={"who": NAME}
            )
            assert await handle.execute_update("rename", "Countess", result_type=str) == f"Countess was {NAME}"
            await handle.signal("go", TOKEN)
            with pytest.raises(WorkflowFailureError) as caught:
                await handle.result()
        cause = caught.value.cause
        assert isinstance(cause, ApplicationError)
        assert cause.message == f"{NAME} <{EMAIL}>", "a client with the key reads it"
        assert cause.details == (person,)
    # Read without a key, as the Temporal server and its database hold it.
    bare = temporal.client.get_workflow_handle(handle.id)
    history = await bare.fetch_history()
    history_text = json.dumps(history.to_json_dict()) + history.to_json() + str((await bare.describe()).raw_description)
    history_text += " ".join(decoded_strings(json.loads(history.to_json())))
    for secret in (NAME, EMAIL, PASSWORD, TOKEN, "Countess", "could not be reached", "Lovelace"):
        assert secret not in history_text, f"{secret} can be read"
    assert "Encoded failure" in history_text
    assert "binary/encrypted" in " ".join(decoded_strings(json.loads(history.to_json())))


@pytest.mark.scenario("S12")
async def test_the_history_of_a_subscription_contains_no_readable_personal_data(
    temporal: TemporalFixture, database: DatabaseFixture
) -> None:
    async with (
        connect_with_keys(temporal, NEW) as client,
        run_subscription_fixture(replace(temporal, client=client), database) as fixture,
    ):
        await fixture.top_up(5000)
        subscription_id = await fixture.create_active_subscription(
            name=NAME, parameters={"admin": EMAIL, "password": PASSWORD}
        )
        await fixture.cancel(subscription_id)
        workflow_id = fixture.handle(subscription_id).id
        assert (await fixture.subscription(subscription_id))["name"] == NAME
    history = await temporal.client.get_workflow_handle(workflow_id).fetch_history()
    history_text = " ".join(decoded_strings(json.loads(history.to_json())))
    assert subscription_id in history_text
    for secret in (NAME, EMAIL, PASSWORD):
        assert secret not in history_text, f"{secret} can be read"


def decoded_strings(node: Any) -> list[str]:
    """Return every string of a history, and its base64 decoding where it has one."""
    if isinstance(node, dict):
        return [word for value in node.values() for word in decoded_strings(value)]
    if isinstance(node, list):
        return [word for value in node for word in decoded_strings(value)]
    if not isinstance(node, str):
        return []
    try:
        return [node, base64.b64decode(node, validate=True).decode(errors="replace")]
    except ValueError:
        return [node]
