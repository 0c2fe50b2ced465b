"""Instances over HTTP: what is shown, and operations through the subscription that owns them."""

from __future__ import annotations

import pytest

from tests.support.api import parse_error
from tests.support.fake_workflow_client import NOW, ApiWithCatalogue, instance_id_for
from workflows.rules.errors import ErrorCode, RuleViolation


async def test_an_instance_shows_its_address_and_resources(seeded_api: ApiWithCatalogue) -> None:
    mine = instance_id_for(seeded_api.insert_subscription())
    seeded_api.api.execute(
        """UPDATE instances SET conditions = '[{"type": "Ready", "status": "True", "reason": "Up"}]'"""
    )
    data = (await seeded_api.customer.http.get(f"/instances/{mine}")).json()["data"]
    assert {"id", "status", "url", "hostname", "namespace", "service", "version", "resources", "conditions"} <= set(
        data
    )
    assert (data["status"], data["service"]) == ("ready", "n8n")
    assert data["resources"] == {"cpu_millicores": 1000, "memory_mib": 2048, "storage_gib": 10, "replicas": 1}
    assert data["conditions"][0]["type"] == "Ready"
    assert [row["id"] for row in (await seeded_api.customer.http.get("/instances")).json()["data"]] == [mine]
    stopped = await seeded_api.customer.http.get("/instances", params={"status": "stopped"})
    assert stopped.json()["data"] == []


async def test_operations_are_accepted_and_can_be_read(seeded_api: ApiWithCatalogue) -> None:
    subscription = seeded_api.insert_subscription()
    mine = instance_id_for(subscription)
    operations = []
    for kind in ("restart", "stop", "start", "backups"):
        key = seeded_api.customer.idempotency_header()
        response = await seeded_api.customer.http.post(f"/instances/{mine}/{kind}", headers=key)
        assert response.status_code == 202, response.text
        operation = response.json()["data"]["operation"]
        assert {"id", "kind", "status"} <= set(operation)
        assert operation["status"] == "pending"
        repeated = await seeded_api.customer.http.post(f"/instances/{mine}/{kind}", headers=key)
        assert repeated.json() == response.json()
        operations.append(operation)
    assert [operation["kind"] for operation in operations] == ["restart", "stop", "start", "backup"]
    assert {subscription_id for subscription_id, _ in seeded_api.workflows.commands_of("start_operation")} == {
        subscription
    }
    assert [order.operation_id for _, order in seeded_api.workflows.commands_of("start_operation")] == [
        row["id"] for row in operations
    ]
    seeded_api.api.execute(
        "INSERT INTO instance_operations (id, organization_id, instance_id, kind, status, actor, created_at)"
        " VALUES (%s, %s, %s, 'restart', 'running', 'usr_1', %s)",
        *(operations[0]["id"], seeded_api.customer.organization_id, mine, NOW),
    )
    followed = (await seeded_api.customer.http.get(f"/instances/{mine}/operations/{operations[0]['id']}")).json()[
        "data"
    ]
    assert (followed["id"], followed["status"]) == (operations[0]["id"], "running")
    assert [
        row["id"] for row in (await seeded_api.customer.http.get(f"/instances/{mine}/operations")).json()["data"]
    ] == [operations[0]["id"]]


async def test_an_operation_without_an_outcome_in_time_is_asked_for_again(seeded_api: ApiWithCatalogue) -> None:
    mine, key = instance_id_for(seeded_api.insert_subscription()), {"Idempotency-Key": "slow"}
    seeded_api.workflows.times_out = True
    accepted = await seeded_api.customer.http.post(f"/instances/{mine}/restart", headers=key)
    assert accepted.status_code == 202
    seeded_api.workflows.raises = RuleViolation(
        ErrorCode.CONFLICT, "Another operation of this instance is in progress."
    )
    refused = await seeded_api.customer.http.post(f"/instances/{mine}/restart", headers=key)
    assert (refused.status_code, parse_error(refused)["code"]) == (409, "CONFLICT")


async def test_a_second_operation_waits_for_the_first(seeded_api: ApiWithCatalogue) -> None:
    mine = instance_id_for(seeded_api.insert_subscription())
    seeded_api.workflows.raises = RuleViolation(ErrorCode.CONFLICT, "Another operation is not finished yet.")
    response = await seeded_api.customer.http.post(f"/instances/{mine}/restart")
    assert (response.status_code, parse_error(response)["code"]) == (409, "CONFLICT")


@pytest.mark.scenario("S1")
async def test_an_instance_of_another_organization_is_not_found(seeded_api: ApiWithCatalogue) -> None:
    theirs = instance_id_for(seeded_api.insert_subscription(account=await seeded_api.api.register_verified_user()))
    mine = instance_id_for(seeded_api.insert_subscription())
    seeded_api.api.execute(
        "INSERT INTO instance_operations (id, organization_id, instance_id, kind, status, actor, created_at)"
        " SELECT 'op_1', organization_id, id, 'restart', 'running', 'usr_1', %s FROM instances WHERE id = %s",
        *(NOW, theirs),
    )
    for path in (f"{theirs}", f"{theirs}/operations", f"{theirs}/operations/op_1", f"{mine}/operations/op_1"):
        assert (await seeded_api.customer.http.get(f"/instances/{path}")).status_code == 404, path
    for kind in ("restart", "stop", "start", "backups"):
        assert (await seeded_api.customer.http.post(f"/instances/{theirs}/{kind}")).status_code == 404
    assert seeded_api.workflows.calls == []
