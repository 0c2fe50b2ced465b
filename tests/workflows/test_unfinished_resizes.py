"""A resize that fails: it is repeated if it was neither done nor undone, or its own plan change is rolled back."""

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


@pytest.mark.parametrize(
    ("failures", "operations", "plan"),
    [
        # The resize to the plan that the customer paid for fails: the change is rolled back, and its price returned.
        ([False, True], 2, "starter"),
        # The resize of the renewal fails: the instance has the resources that the customer paid for.
        ([True], 1, "pro"),
    ],
)
async def test_a_plan_change_during_the_resize_of_a_renewal_is_judged_by_its_own_resize(
    subscriptions: SubscriptionFixture, failures: list[bool], operations: int, plan: str
) -> None:
    await subscriptions.top_up(50_000)
    subscription = await subscriptions.create_active_subscription("pro")
    await subscriptions.change_plan(subscription, "starter", order="down")
    end = (await subscriptions.subscription(subscription))["current_period_end"]
    subscriptions.external.operations_allowed.clear()
    advancing = asyncio.create_task(subscriptions.advance_to(subscription, end + timedelta(seconds=1)))
    await wait_until(lambda: subscriptions.external.operations() == ["resize"])
    before = await subscriptions.balance()
    await subscriptions.change_plan(subscription, "pro", order="up")
    assert await subscriptions.balance() < before
    subscriptions.external.scripted_failures = failures
    subscriptions.external.operations_allowed.set()
    await advancing
    await wait_until(lambda: subscriptions.external.operations() == ["resize"] * operations)
    await subscriptions.wait_until_idle(subscription)
    assert (await subscriptions.subscription(subscription))["plan_id"] == subscriptions.plan(plan)
    assert (await subscriptions.balance() == before) is (plan == "starter")
    # No change is in progress: another one is accepted.
    await subscriptions.change_plan(subscription, "pro" if plan == "starter" else "starter", order="again")


async def test_an_instance_is_suspended_while_the_rollback_of_its_plan_change_waits_for_a_card(
    subscriptions: SubscriptionFixture,
) -> None:
    await subscriptions.top_up(2_100)
    subscription = await subscriptions.create_active_subscription("starter")
    subscriptions.external.operations_allowed.clear()
    await subscriptions.change_plan(subscription, "pro", order="up")
    await wait_until(lambda: subscriptions.external.operations() == ["resize"])
    await subscriptions.workflows.pause(subscription, subscriptions.lifecycle_command("pause"))
    await subscriptions.add_card()
    subscriptions.external.gateway_responses.clear()
    resume = asyncio.create_task(
        subscriptions.workflows.resume(subscription, subscriptions.lifecycle_command("resume"))
    )
    await subscriptions.wait_for_charges(1)
    subscriptions.external.scripted_failures = [True]
    subscriptions.external.operations_allowed.set()
    await subscriptions.cancel(subscription)
    await wait_until(lambda: subscriptions.external.operations() == ["resize", "suspend"])
    # The card's payment has no outcome yet.
    assert (await subscriptions.subscription(subscription))["plan_id"] == subscriptions.plan("pro")
    subscriptions.external.gateway_responses.set()
    await asyncio.gather(resume, return_exceptions=True)

    async def is_rolled_back() -> bool:
        return bool((await subscriptions.subscription(subscription))["plan_id"] == subscriptions.plan("starter"))

    await wait_until(is_rolled_back)
    await subscriptions.wait_until_idle(subscription)
    assert subscriptions.external.operations() == ["resize", "suspend"]
