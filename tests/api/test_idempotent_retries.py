"""A retry under a key continues what the first request began: the state of a later day does not judge it."""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg
import pytest

from tests.support.api import parse_error
from tests.support.databases import DatabaseFixture
from tests.support.fake_workflow_client import (
    NOW,
    STARTER,
    ApiWithCatalogue,
    insert_payment_method,
    instance_id_for,
    serve_api_with_catalogue,
)
from workflows.rpc_errors import TemporalUnavailable, WorkflowNotRunning
from workflows.rules import host_labels
from workflows.rules.errors import RETRYABLE, ErrorCode, RuleViolation

KEY = {"Idempotency-Key": "the-key"}
BUSY = RuleViolation(ErrorCode.CONFLICT, "Another payment is in progress. Retry when it has ended.", RETRYABLE)


def update_ids(seeded_api: ApiWithCatalogue, name: str) -> list[str]:
    return [command.update_id for _, command in seeded_api.workflows.commands_of(name)]


@pytest.mark.parametrize("error", [BUSY, WorkflowNotRunning()])
async def test_a_conflict_that_passes_is_not_the_answer_of_its_key(
    seeded_api: ApiWithCatalogue, error: Exception
) -> None:
    path = f"/subscriptions/{seeded_api.insert_subscription()}/pause"
    seeded_api.workflows.raises = error
    refused = await seeded_api.customer.http.post(path, headers=KEY)
    assert refused.status_code == 409
    seeded_api.workflows.raises = None
    accepted = await seeded_api.customer.http.post(path, headers=KEY)
    assert (accepted.status_code, "Idempotent-Replayed" in accepted.headers) == (200, False)
    replayed = await seeded_api.customer.http.post(path, headers=KEY)
    assert (replayed.content, replayed.headers["Idempotent-Replayed"]) == (accepted.content, "true")


async def test_a_retry_after_a_retryable_rejection_sends_a_new_update(seeded_api: ApiWithCatalogue) -> None:
    """Temporal answers a repeated update id with the refusal."""
    path = f"/subscriptions/{seeded_api.insert_subscription()}/pause"
    for error in (BUSY, TemporalUnavailable(), BUSY, None):
        seeded_api.workflows.raises = error
        await seeded_api.customer.http.post(path, headers=KEY)
    first, second, third, fourth = update_ids(seeded_api, "pause")
    assert len({first, second, fourth}) == 3
    # What became of the second is unknown: the retry asks for the same update.
    assert second == third


async def test_a_retryable_rejection_says_so(seeded_api: ApiWithCatalogue) -> None:
    seeded_api.workflows.raises = BUSY
    refused = await seeded_api.customer.http.post(f"/subscriptions/{seeded_api.insert_subscription()}/pause")
    assert parse_error(refused)["details"] == {"retryable": "true"}


async def test_an_operation_that_was_accepted_is_not_refused_by_a_later_state(seeded_api: ApiWithCatalogue) -> None:
    path = f"/instances/{instance_id_for(seeded_api.insert_subscription())}/stop"
    seeded_api.workflows.times_out = True
    accepted = await seeded_api.customer.http.post(path, headers=KEY)
    seeded_api.api.execute("UPDATE instances SET status = 'deleting'")
    seeded_api.workflows.times_out = False
    repeated = await seeded_api.customer.http.post(path, headers=KEY)
    assert (accepted.status_code, repeated.status_code) == (202, 202)
    assert repeated.json()["data"]["operation"]["id"] == accepted.json()["data"]["operation"]["id"]
    assert len(set(update_ids(seeded_api, "start_operation"))) == 1
    other = await seeded_api.customer.http.post(path, headers={"Idempotency-Key": "another"})
    assert parse_error(other)["code"] == "ILLEGAL_MOVE"


async def test_an_accepted_order_outlives_its_service(seeded_api: ApiWithCatalogue) -> None:
    order = {"plan_id": STARTER}
    seeded_api.workflows.times_out = True
    accepted = await seeded_api.customer.http.post("/subscriptions", json=order, headers=KEY)
    seeded_api.api.execute("""UPDATE services SET is_published = false, parameters_schema = '{"required": ["x"]}'""")
    seeded_api.workflows.times_out = False
    created = await seeded_api.customer.http.post("/subscriptions", json=order, headers=KEY)
    assert (accepted.status_code, created.status_code) == (202, 201)
    assert created.json()["data"]["id"] == accepted.json()["data"]["id"]
    other = await seeded_api.customer.http.post("/subscriptions", json=order, headers={"Idempotency-Key": "another"})
    assert other.status_code == 404


async def test_an_accepted_order_outlives_its_host_name(
    seeded_api: ApiWithCatalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = {"plan_id": STARTER, "parameters": {"subdomain": "shop"}}
    seeded_api.workflows.times_out = True
    accepted = await seeded_api.customer.http.post("/subscriptions", json=order, headers=KEY)
    # A later release reserves the name.
    monkeypatch.setattr(host_labels, "RESERVED_LABELS", host_labels.RESERVED_LABELS | {"shop"})
    seeded_api.workflows.times_out = False
    created = await seeded_api.customer.http.post("/subscriptions", json=order, headers=KEY)
    assert (accepted.status_code, created.status_code) == (202, 201)
    other = await seeded_api.customer.http.post("/subscriptions", json=order, headers={"Idempotency-Key": "another"})
    assert parse_error(other)["details"]["field"] == "parameters.subdomain"


async def test_the_process_ends_after_the_response_is_stored(
    database: DatabaseFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        psycopg.connect(database.superuser_dsn()) as lock,
        psycopg.connect(database.superuser_dsn(), autocommit=True) as reader,
    ):
        async with serve_api_with_catalogue(database) as served:
            create_subscription = served.workflows.create_subscription

            async def lock_and_create(order: Any) -> Any:
                lock.execute("SELECT 1 FROM idempotency_records FOR UPDATE")
                return await create_subscription(order)

            monkeypatch.setattr(served.workflows, "create_subscription", lock_and_create)
            created = await served.customer.http.post("/subscriptions", json={"plan_id": STARTER}, headers=KEY)
            assert created.status_code == 201
            # The process is stopped while the row is locked.
            asyncio.get_running_loop().call_later(0.5, lock.rollback)
        assert reader.execute("SELECT response_status FROM idempotency_records").fetchall() == [(201,)]


async def test_a_response_does_not_wait_until_it_is_stored(
    seeded_api: ApiWithCatalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the work on, the row of the key is locked."""
    create_subscription = seeded_api.workflows.create_subscription
    with psycopg.connect(seeded_api.api.superuser_dsn) as lock:

        async def lock_and_create(order: Any) -> Any:
            lock.execute("SELECT 1 FROM idempotency_records FOR UPDATE")
            return await create_subscription(order)

        monkeypatch.setattr(seeded_api.workflows, "create_subscription", lock_and_create)
        order = seeded_api.customer.http.post("/subscriptions", json={"plan_id": STARTER}, headers=KEY)
        created = await asyncio.wait_for(order, timeout=60)
        stored = seeded_api.api.query_as_superuser("SELECT response_status FROM idempotency_records")
        lock.rollback()
    repeated = await seeded_api.customer.http.post("/subscriptions", json={"plan_id": STARTER}, headers=KEY)
    assert (created.status_code, stored) == (201, [{"response_status": None}])
    assert (repeated.content, repeated.headers["Idempotent-Replayed"]) == (created.content, "true")
    assert len(seeded_api.workflows.commands_of("create_subscription")) == 1


async def test_a_top_up_outlives_the_card_that_it_charged(seeded_api: ApiWithCatalogue) -> None:
    api, customer = seeded_api.api, seeded_api.customer
    card = insert_payment_method(api, customer)
    top_up = {"amount_minor": 2000, "currency": "USD", "gateway": "stripe"}
    seeded_api.workflows.times_out = True
    accepted = await customer.http.post("/billing/topups", json=top_up, headers=KEY)
    payment_id = accepted.json()["data"]["id"]
    api.execute(
        "INSERT INTO payments (id, organization_id, purpose, gateway, payment_method_id, amount_minor, currency,"
        " captured_minor, status, idempotency_key, workflow_id, created_at, updated_at, succeeded_at)"
        " VALUES (%s, %s, 'top_up', 'stripe', %s, 2000, 'USD', 2000, 'succeeded', 'key', 'workflow', %s, %s, %s)",
        *(payment_id, customer.organization_id, card, NOW, NOW, NOW),
    )
    api.execute("UPDATE payment_methods SET detached_at = now()")
    seeded_api.workflows.times_out = False
    repeated = await customer.http.post("/billing/topups", json=top_up, headers=KEY)
    assert (accepted.status_code, repeated.status_code) == (202, 201)
    assert repeated.json()["data"]["id"] == payment_id
    other = await customer.http.post("/billing/topups", json=top_up, headers={"Idempotency-Key": "another"})
    assert other.status_code == 422


async def test_a_removal_whose_answer_was_lost_is_done(seeded_api: ApiWithCatalogue) -> None:
    card = insert_payment_method(seeded_api.api, seeded_api.customer)
    seeded_api.workflows.raises = TemporalUnavailable()
    path = f"/billing/payment-methods/{card}"
    assert (await seeded_api.customer.http.delete(path, headers=KEY)).status_code == 503
    seeded_api.api.execute("UPDATE payment_methods SET detached_at = now()")
    seeded_api.workflows.raises = None
    assert (await seeded_api.customer.http.delete(path, headers=KEY)).status_code == 200
    assert (await seeded_api.customer.http.delete(path)).status_code == 404
