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

from tests.support.confidential import EMAIL, NAME, PASSWORD, TOKEN, Confidential, fail
from tests.support.databases import Database
from tests.support.life import world
from tests.support.temporal import Temporal
from workflows.client import connect
from workflows.codec import EncryptionCodec, UnknownKey
from workflows.settings import TemporalSettings, parse_encryption_keys

OLD, NEW = ("2026", bytes(range(32))), ("2027", bytes(range(32, 64)))


def payload(data: bytes, **metadata: str) -> Payload:
    return Payload(data=data, metadata={key: value.encode() for key, value in metadata.items()})


def run(work: Any) -> Any:
    return asyncio.run(work)


@given(st.lists(st.tuples(st.binary(max_size=200), st.dictionaries(st.text(max_size=9), st.binary(max_size=9)))))
def test_what_was_encoded_is_decoded_unchanged(parts: Sequence[tuple[bytes, dict[str, bytes]]]) -> None:
    codec = EncryptionCodec([NEW])
    before = [Payload(data=data, metadata=metadata) for data, metadata in parts]
    encoded = run(codec.encode(before))
    assert run(codec.decode(encoded)) == before
    for plain, sealed in zip(before, encoded, strict=True):
        assert set(sealed.metadata) == {"encoding", "encryption-key-id"}
        assert len(plain.data) < 8 or plain.data not in sealed.data


def test_the_same_payload_never_looks_the_same() -> None:
    codec = EncryptionCodec([NEW])
    one, two = run(codec.encode([payload(b"same"), payload(b"same")]))
    assert one.data != two.data


def test_keys_rotate_the_first_encrypts_and_all_decrypt() -> None:
    before, between, after = EncryptionCodec([OLD]), EncryptionCodec([NEW, OLD]), EncryptionCodec([NEW])
    (old,) = run(before.encode([payload(b"words", encoding="json/plain")]))
    (new,) = run(between.encode([payload(b"words", encoding="json/plain")]))
    assert (old.metadata["encryption-key-id"], new.metadata["encryption-key-id"]) == (b"2026", b"2027")
    assert run(between.decode([old, new])) == [payload(b"words", encoding="json/plain")] * 2
    assert run(after.decode([new])) == [payload(b"words", encoding="json/plain")]
    with pytest.raises(UnknownKey, match="2026"):
        run(after.decode([old]))


def test_what_was_never_encrypted_passes() -> None:
    plain = payload(b'"words"', encoding="json/plain")
    assert run(EncryptionCodec([NEW]).decode([plain])) == [plain]


@pytest.mark.parametrize("at", [0, 11, 12, -1])
def test_tampering_is_noticed(at: int) -> None:
    codec = EncryptionCodec([NEW])
    (sealed,) = run(codec.encode([payload(b"words")]))
    data = bytearray(sealed.data)
    data[at] ^= 1
    sealed.data = bytes(data)
    with pytest.raises(InvalidTag):
        run(codec.decode([sealed]))


def test_keys_are_read_as_settings_spell_them() -> None:
    old, new = (base64.urlsafe_b64encode(key).decode() for _, key in (OLD, NEW))
    assert parse_encryption_keys(f"2027:{new}, 2026:{old}") == (NEW, OLD)
    assert parse_encryption_keys(new) == (("1", NEW[1]),)
    assert parse_encryption_keys("") == ()
    for wrong in (f"a:{new},a:{old}", "a:" + base64.b64encode(b"short").decode(), "a:%%%"):
        with pytest.raises(ValueError, match=r"32 bytes|base64|Incorrect padding|[Oo]nly|[Ii]nvalid"):
            parse_encryption_keys(wrong)


@asynccontextmanager
async def connected(temporal: Temporal, *keys: tuple[str, bytes]) -> AsyncIterator[Client]:
    yield await connect(TemporalSettings(address=temporal.address, namespace=temporal.namespace, encryption_keys=keys))


@pytest.mark.scenario("S12")
async def test_nothing_readable_is_in_a_history(temporal: Temporal) -> None:
    queue = temporal.unique("confidential")
    person = {"name": NAME, "email": EMAIL, "password": PASSWORD}
    async with connected(temporal, NEW, OLD) as client:
        async with Worker(client, task_queue=queue, workflows=[Confidential], activities=[fail]):
            handle = await client.start_workflow(
                "Confidential", person, id=temporal.unique("w"), task_queue=queue, memo={"who": NAME}
            )
            assert await handle.execute_update("rename", "Countess", result_type=str) == f"Countess was {NAME}"
            await handle.signal("go", TOKEN)
            with pytest.raises(WorkflowFailureError) as caught:
                await handle.result()
        cause = caught.value.cause
        assert isinstance(cause, ApplicationError)
        assert cause.message == f"{NAME} <{EMAIL}>", "who has the key reads it"
        assert cause.details == (person,)
    # Seen with no key, as the server and anybody at its database sees it.
    bare = temporal.client.get_workflow_handle(handle.id)
    history = await bare.fetch_history()
    kept = json.dumps(history.to_json_dict()) + history.to_json() + str((await bare.describe()).raw_description)
    kept += " ".join(decoded(json.loads(history.to_json())))
    for secret in (NAME, EMAIL, PASSWORD, TOKEN, "Countess", "could not be reached", "Lovelace"):
        assert secret not in kept, f"{secret} can be read"
    assert "Encoded failure" in kept
    assert "binary/encrypted" in " ".join(decoded(json.loads(history.to_json())))


@pytest.mark.scenario("S12")
async def test_nothing_readable_is_in_the_history_of_a_subscription(temporal: Temporal, database: Database) -> None:
    async with connected(temporal, NEW) as client, world(replace(temporal, client=client), database) as on:
        await on.top_up(5000)
        subscription_id = await on.active(name=NAME, parameters_json=json.dumps({"admin": EMAIL, "password": PASSWORD}))
        await on.cancel(subscription_id)
        workflow_id = on.handle(subscription_id).id
        assert (await on.subscription(subscription_id))["name"] == NAME
    history = await temporal.client.get_workflow_handle(workflow_id).fetch_history()
    kept = " ".join(decoded(json.loads(history.to_json())))
    assert subscription_id in kept
    for secret in (NAME, EMAIL, PASSWORD):
        assert secret not in kept, f"{secret} can be read"


def decoded(node: Any) -> list[str]:
    """Every string of a history, and what it says once base 64 is undone."""
    if isinstance(node, dict):
        return [word for value in node.values() for word in decoded(value)]
    if isinstance(node, list):
        return [word for value in node for word in decoded(value)]
    if not isinstance(node, str):
        return []
    try:
        return [node, base64.b64decode(node, validate=True).decode(errors="replace")]
    except ValueError:
        return [node]
