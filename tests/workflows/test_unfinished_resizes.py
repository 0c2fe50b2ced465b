"""A resize that was neither done nor undone is repeated, and ends what the failure has set."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

import activities.cluster
from activities.adapters.kubernetes import client
from tests.support.instance_fixture import LARGE, InstanceFixture
from tests.support.instance_workers import run_operation, start_provisioning, workers
from tests.support.subscription_fixture import SubscriptionFixture
from tests.support.temporal import TemporalFixture
from tests.support.wait import wait_until
from workflows import names
from workflows.ports.instances import OperationKind, OperationStatus


async def test_an_instance_that_an_outage_left_degraded_is_ready_after_the_next_resize(
    temporal: TemporalFixture, instances: InstanceFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "MAX_ATTEMPTS", 1)
    monkeypatch.setattr(activities.cluster, "OPERATION_GIVE_UP_AFTER", timedelta(seconds=2))
    instance_id = await instances.insert_instance()
    async with workers(temporal, instances):
        assert (await (await start_provisioning(temporal, instances, instance_id)).result()).ready
        await instances.inject_fault("server_error", instance_id, count=100_000)
        failed = await run_operation(temporal, instances.operate(instance_id, OperationKind.RESIZE, LARGE))
        assert (failed.status, failed.has_known_resources) == (OperationStatus.FAILED, False)
        assert (await instances.row(instance_id))["status"] == "degraded"
        await instances.clear_faults()
        repeated = await run_operation(temporal, instances.operate(instance_id, OperationKind.RESIZE, LARGE))
        assert (repeated.status, repeated.has_known_resources) == (OperationStatus.SUCCEEDED, True)
        row = await instances.row(instance_id)
        assert (row["status"], row["failure_reason"]) == ("ready", None)
        ready = [condition for condition in row["conditions"] if condition["type"] == "Ready"]
        assert [condition["status"] for condition in ready] == ["True"]


async def test_a_resize_that_becomes_ready_late_ends_the_failure_reason_of_its_wait(
    temporal: TemporalFixture, instances: InstanceFixture
) -> None:
    instance_id = await instances.insert_instance()
    async with workers(temporal, instances):
        assert (await (await start_provisioning(temporal, instances, instance_id)).result()).ready
        await instances.inject_fault("unschedulable", instance_id)
        resize = asyncio.create_task(
            run_operation(temporal, instances.operate(instance_id, OperationKind.RESIZE, LARGE))
        )

        async def is_waiting_for_capacity() -> bool:
            return bool((await instances.row(instance_id))["failure_reason"] == "Unschedulable")

        await wait_until(is_waiting_for_capacity)
        await instances.clear_faults()
        assert (await resize).status is OperationStatus.SUCCEEDED
        row = await instances.row(instance_id)
        assert (row["status"], row["failure_reason"]) == ("ready", None)
        assert {c["type"]: c["status"] for c in row["conditions"]}["Ready"] == "True"


async def test_the_former_resources_are_applied_again_after_a_resize_that_was_terminated(
    subscriptions: SubscriptionFixture,
) -> None:
    """Otherwise the customer keeps those of the plan whose change was rolled back."""
    await subscriptions.top_up(10_000)
    subscription = await subscriptions.create_active_subscription("starter")
    subscriptions.external.operations_allowed.clear()
    await subscriptions.change_plan(subscription, "pro")
    await wait_until(lambda: subscriptions.external.operations() == ["resize"])
    query = (
        f"ExecutionStatus = 'Running' AND WorkflowType = '{names.INSTANCE_OPERATION}'"
        f" AND {names.SUBSCRIPTION_KEY.name} = '{subscription}'"
    )

    async def is_terminated() -> bool:
        async for execution in subscriptions.temporal.client.list_workflows(query):
            await subscriptions.temporal.client.get_workflow_handle(execution.id).terminate()
            return True
        return False

    await wait_until(is_terminated)
    subscriptions.external.operations_allowed.set()
    await subscriptions.wait_for_status(subscription, "active")
    await wait_until(lambda: subscriptions.external.operations() == ["resize", "resize"])
    assert (await subscriptions.subscription(subscription))["plan_id"] == subscriptions.plan("starter")
