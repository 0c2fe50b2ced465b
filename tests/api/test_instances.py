"""Instances over HTTP: what is shown, and operations through the subscription that owns them."""

from __future__ import annotations

import pytest

from tests.support.api import error_of
from tests.support.desk import AT, Shop, instance_of
from workflows.rules.errors import Refusal, RuleBroken


async def test_an_instance_shows_where_it_is_and_what_it_has(shop: Shop) -> None:
    mine = instance_of(shop.subscription())
    shop.api.execute("""UPDATE instances SET conditions = '[{"type": "Ready", "status": "True", "reason": "Up"}]'""")
    data = (await shop.customer.http.get(f"/instances/{mine}")).json()["data"]
    assert {"id", "status", "url", "hostname", "namespace", "service", "version", "resources", "conditions"} <= set(
        data
    )
    assert (data["status"], data["service"]) == ("ready", "n8n")
    assert data["resources"] == {"cpu_millicores": 1000, "memory_mib": 2048, "storage_gib": 10, "replicas": 1}
    assert data["conditions"][0]["type"] == "Ready"
    assert [row["id"] for row in (await shop.customer.http.get("/instances")).json()["data"]] == [mine]
    stopped = await shop.customer.http.get("/instances", params={"status": "stopped"})
    assert stopped.json()["data"] == []


async def test_operations_are_accepted_and_can_be_followed(shop: Shop) -> None:
    subscription = shop.subscription()
    mine = instance_of(subscription)
    seen = []
    for kind in ("restart", "stop", "start", "backups"):
        key = shop.customer.key()
        answer = await shop.customer.http.post(f"/instances/{mine}/{kind}", headers=key)
        assert answer.status_code == 202, answer.text
        operation = answer.json()["data"]["operation"]
        assert {"id", "kind", "status"} <= set(operation)
        assert operation["status"] == "pending"
        again = await shop.customer.http.post(f"/instances/{mine}/{kind}", headers=key)
        assert again.json() == answer.json()
        seen.append(operation)
    assert [operation["kind"] for operation in seen] == ["restart", "stop", "start", "backup"]
    assert {given for given, _ in shop.desk.ordered("operate")} == {subscription}
    assert [order.operation_id for _, order in shop.desk.ordered("operate")] == [row["id"] for row in seen]
    shop.api.execute(
        "INSERT INTO instance_operations (id, organization_id, instance_id, kind, status, actor, created_at)"
        " VALUES (%s, %s, %s, 'restart', 'running', 'usr_1', %s)",
        *(seen[0]["id"], shop.customer.organization_id, mine, AT),
    )
    followed = (await shop.customer.http.get(f"/instances/{mine}/operations/{seen[0]['id']}")).json()["data"]
    assert (followed["id"], followed["status"]) == (seen[0]["id"], "running")
    assert [row["id"] for row in (await shop.customer.http.get(f"/instances/{mine}/operations")).json()["data"]] == [
        seen[0]["id"]
    ]


async def test_a_second_operation_waits_for_the_first(shop: Shop) -> None:
    mine = instance_of(shop.subscription())
    shop.desk.refuses = RuleBroken(Refusal.CONFLICT, "Another operation is not finished yet.")
    answer = await shop.customer.http.post(f"/instances/{mine}/restart")
    assert (answer.status_code, error_of(answer)["code"]) == (409, "CONFLICT")


@pytest.mark.scenario("S1")
async def test_somebody_elses_instance_is_not_there(shop: Shop) -> None:
    theirs = instance_of(shop.subscription(account=await shop.api.customer()))
    mine = instance_of(shop.subscription())
    shop.api.execute(
        "INSERT INTO instance_operations (id, organization_id, instance_id, kind, status, actor, created_at)"
        " SELECT 'op_1', organization_id, id, 'restart', 'running', 'usr_1', %s FROM instances WHERE id = %s",
        *(AT, theirs),
    )
    for path in (f"{theirs}", f"{theirs}/operations", f"{theirs}/operations/op_1", f"{mine}/operations/op_1"):
        assert (await shop.customer.http.get(f"/instances/{path}")).status_code == 404, path
    for kind in ("restart", "stop", "start", "backups"):
        assert (await shop.customer.http.post(f"/instances/{theirs}/{kind}")).status_code == 404
    assert shop.desk.calls == []
