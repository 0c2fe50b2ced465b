"""Credentials over HTTP: handed over once, to the organization that owns the instance, when it is ready."""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy import text
from sqlalchemy.exc import ProgrammingError

from db.encryption import FieldEncryption
from db.queries import credentials
from db.session import session_factory, set_rls_context
from tests.support.api import parse_error
from tests.support.databases import DatabaseFixture
from tests.support.fake_workflow_client import ApiWithCatalogue, instance_id_for

PLAIN = {"url": "https://notes.apps.test", "username": "ada@example.com", "password": "aPasswordThatWasGenerated"}


def store_credentials(seeded_api: ApiWithCatalogue, subscription_id: str, *, key: bytes | None = None) -> str:
    """Store credentials as the worker does; return the instance's id."""
    instance_id = instance_id_for(subscription_id)
    keys = [("1", key)] if key is not None else seeded_api.api.context.settings.encryption_keys
    sealed = FieldEncryption(keys).encrypt_mapping(PLAIN, purpose=credentials.purpose(instance_id))
    seeded_api.api.execute(
        "INSERT INTO instance_credentials (instance_id, organization_id, sealed)"
        " SELECT id, organization_id, %s FROM instances WHERE id = %s",
        sealed,
        instance_id,
    )
    return instance_id


async def test_credentials_are_handed_over_once(seeded_api: ApiWithCatalogue) -> None:
    instance_id = store_credentials(seeded_api, seeded_api.insert_subscription())
    path, key = f"/instances/{instance_id}/credentials", seeded_api.customer.idempotency_header()
    response = await seeded_api.customer.http.post(path, headers=key)
    assert (response.status_code, response.json()["data"]) == (200, PLAIN)
    assert response.headers["Cache-Control"] == "no-store"
    # A repeated key does not return them: a stored response would be a stored password.
    repeated = await seeded_api.customer.http.post(path, headers=key)
    error = parse_error(repeated)
    assert (repeated.status_code, error["code"]) == (409, "CONFLICT")
    assert PLAIN["password"] not in repeated.text
    assert error["details"]["handed_over_at"].endswith("Z")
    (row,) = seeded_api.api.query_as_superuser("SELECT * FROM instance_credentials")
    assert (row["sealed"], row["handed_over_to"]) == (None, seeded_api.customer.user_id)
    stored = seeded_api.api.query_as_superuser("SELECT * FROM idempotency_records") + seeded_api.api.query_as_superuser(
        "SELECT * FROM audit_log"
    )
    assert PLAIN["password"] not in str(stored)
    (entry,) = seeded_api.api.query_as_superuser("SELECT * FROM audit_log")
    assert (entry["organization_id"], entry["actor"], entry["action"], entry["object_id"]) == (
        *(seeded_api.customer.organization_id, seeded_api.customer.user_id),
        *("instance.credentials_handed_over", instance_id),
    )
    assert entry["request_id"] == response.headers["X-Request-ID"]
    assert entry["ip"]
    assert seeded_api.api.query_as_superuser("SELECT * FROM audit_verify_chain()") == []


async def test_exactly_one_of_concurrent_requests_gets_the_credentials(seeded_api: ApiWithCatalogue) -> None:
    instance_id = store_credentials(seeded_api, seeded_api.insert_subscription())
    responses = await asyncio.gather(
        *(seeded_api.customer.http.post(f"/instances/{instance_id}/credentials") for _ in range(8))
    )
    assert sorted(response.status_code for response in responses) == [200] + [409] * 7
    assert sum(PLAIN["password"] in response.text for response in responses) == 1


@pytest.mark.scenario("S1")
async def test_another_organization_does_not_get_the_credentials(seeded_api: ApiWithCatalogue) -> None:
    instance_id = store_credentials(seeded_api, seeded_api.insert_subscription())
    stranger, administrator = await seeded_api.api.register_verified_user(), await seeded_api.api.administrator()
    for other in (stranger, administrator):
        response = await other.http.post(f"/instances/{instance_id}/credentials")
        assert (response.status_code, parse_error(response)["code"]) == (404, "NOT_FOUND")
    assert (await seeded_api.api.http.post(f"/instances/{instance_id}/credentials")).status_code == 401
    # The rejected requests consumed nothing.
    assert seeded_api.api.query_as_superuser("SELECT 1 FROM audit_log") == []
    assert (await seeded_api.customer.http.post(f"/instances/{instance_id}/credentials")).json()["data"] == PLAIN


@pytest.mark.parametrize("status", ["requested", "provisioning", "failed", "deleting", "deleted", "cleanup_pending"])
async def test_credentials_require_a_ready_instance(seeded_api: ApiWithCatalogue, status: str) -> None:
    instance_id = store_credentials(seeded_api, seeded_api.insert_subscription())
    seeded_api.api.execute("UPDATE instances SET status = %s", status)
    response = await seeded_api.customer.http.post(f"/instances/{instance_id}/credentials")
    error = parse_error(response)
    assert (response.status_code, error["code"]) == (409, "ILLEGAL_MOVE")
    assert error["details"]["status"] == status
    seeded_api.api.execute("UPDATE instances SET status = 'ready'")
    assert (await seeded_api.customer.http.post(f"/instances/{instance_id}/credentials")).status_code == 200


async def test_an_instance_without_credentials_has_none(seeded_api: ApiWithCatalogue) -> None:
    instance_id = instance_id_for(seeded_api.insert_subscription())
    response = await seeded_api.customer.http.post(f"/instances/{instance_id}/credentials")
    assert (response.status_code, parse_error(response)["code"]) == (404, "NOT_FOUND")


async def test_credentials_that_cannot_be_decrypted_are_not_consumed(seeded_api: ApiWithCatalogue) -> None:
    """The API may have been started with another key than the worker."""
    instance_id = store_credentials(seeded_api, seeded_api.insert_subscription(), key=bytes(reversed(range(32))))
    response = await seeded_api.customer.http.post(f"/instances/{instance_id}/credentials")
    assert (response.status_code, parse_error(response)["code"]) == (503, "UNAVAILABLE")
    (row,) = seeded_api.api.query_as_superuser("SELECT * FROM instance_credentials")
    assert row["sealed"] is not None
    assert seeded_api.api.query_as_superuser("SELECT 1 FROM audit_log") == []


@pytest.mark.scenario("S1")
async def test_the_apis_role_marks_credentials_and_writes_none(
    seeded_api: ApiWithCatalogue, database: DatabaseFixture
) -> None:
    instance_id = store_credentials(seeded_api, seeded_api.insert_subscription())
    stranger = await seeded_api.api.register_verified_user()
    sessions = session_factory(database.api)

    async def execute(statement: str) -> None:
        async with sessions.begin() as session:
            await set_rls_context(
                session, organization_id=seeded_api.customer.organization_id, user_id=None, role="USER"
            )
            await session.execute(text(statement), {"i": instance_id, "o": seeded_api.customer.organization_id})

    async with sessions.begin() as session:
        await set_rls_context(session, organization_id=stranger.organization_id, user_id=stranger.user_id, role="USER")
        assert (await session.execute(text("SELECT * FROM instance_credentials"))).all() == []
        mark = text("UPDATE instance_credentials SET sealed = NULL, handed_over_at = now() RETURNING 1")
        assert (await session.execute(mark)).all() == []
    for statement in (
        "INSERT INTO instance_credentials (instance_id, organization_id, sealed) VALUES (:i, :o, 'x')",
        "UPDATE instance_credentials SET instance_id = :i, organization_id = :o",
        "DELETE FROM instance_credentials WHERE instance_id = :i AND organization_id = :o",
    ):
        with pytest.raises(ProgrammingError, match="permission denied"):
            await execute(statement)
