"""What an attempt of a cluster activity hands to the next one: its age at the cluster and the progress of a wait."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
import pytest_asyncio
from sqlalchemy.exc import OperationalError
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment

import activities.cluster_attempts
from activities.adapters.kubernetes import client, readiness
from activities.adapters.kubernetes.errors import ClusterUnavailable
from activities.adapters.kubernetes.readiness import ReadinessProgress
from activities.cluster import OPERATION_GIVE_UP_AFTER, KubernetesClusterActivities
from activities.cluster_attempts import MAX_UNEXPECTED_ERRORS
from db.session import create_database_engine, session_factory
from deploy.ports import LOOPBACK, free_ports
from tests.support.databases import DatabaseFixture
from tests.support.instance_fixture import TEMPLATES, InstanceFixture, create_instance_fixture
from tests.support.sandboxes import ClusterEndpoint
from tests.support.wait import scale_timeout, wait_until
from workflows import policies
from workflows.ports.instances import AwaitReady, InstanceId, OperationKind
from workflows.rules.instance import FailureReason

START = datetime(2027, 1, 1, tzinfo=UTC)
THRESHOLD = timedelta(minutes=10)


@pytest_asyncio.fixture
async def instances(
    database: DatabaseFixture, cluster: ClusterEndpoint, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[InstanceFixture]:
    # An attempt fails at the first request that is refused.
    monkeypatch.setattr(client, "MAX_ATTEMPTS", 1)
    async with create_instance_fixture(database, cluster, failure_threshold=THRESHOLD) as fixture:
        yield fixture


class Attempts:
    """Runs the attempts of one activity, each with the last heartbeat of the one before it."""

    def __init__(self, step: Any, command: Any) -> None:
        self._step = step
        self._command = command
        self.number = 0
        self.heartbeat: tuple[Any, ...] = ()

    async def run(self, *, due: timedelta, started: timedelta) -> Any:
        """Run an attempt that was put into the task queue at ``due`` and started at ``started``."""
        environment = ActivityEnvironment()
        self.number += 1
        environment.info = replace(
            environment.info,
            attempt=self.number,
            scheduled_time=START,
            current_attempt_scheduled_time=START + due,
            started_time=START + started,
            heartbeat_details=self.heartbeat,
            retry_policy=policies.CLUSTER_CALL["retry_policy"],
        )

        def keep(*details: Any) -> None:
            self.heartbeat = details

        environment.on_heartbeat = keep
        return await environment.run(self._step, self._command)

    async def fail(self, *, due: timedelta, started: timedelta) -> ApplicationError:
        """Run an attempt that fails, and return its error."""
        with pytest.raises(ApplicationError) as raised:
            await self.run(due=due, started=started)
        return raised.value

    async def fail_after(self, observed: Callable[[], bool], instances: InstanceFixture) -> ApplicationError:
        """Run an attempt that an outage of the cluster's API ends once the condition holds, and return its error."""
        attempt = asyncio.create_task(self.fail(due=timedelta(), started=timedelta()))
        await wait_until(observed)
        await instances.inject_fault("server_error", self._command.instance_id, count=1)
        return await attempt

    def set_age(self, age: timedelta) -> None:
        """Set for how long the attempts so far have tried."""
        self.heartbeat = ({**self.heartbeat[0], "age_seconds": age.total_seconds()}, *self.heartbeat[1:])


@pytest.mark.scenario("P5")
async def test_only_attempts_and_the_pauses_between_them_count_as_the_age(instances: InstanceFixture) -> None:
    instance_id = await instances.insert_instance()
    await instances.inject_fault("server_error", instance_id, count=100_000)
    attempts = Attempts(instances.cluster_activities.apply, InstanceId(instance_id=instance_id))
    second, hour = timedelta(seconds=1), timedelta(hours=1)
    assert not (await attempts.fail(due=timedelta(), started=hour)).non_retryable
    # The workers are stopped before the second attempt starts.
    assert not (await attempts.fail(due=hour + second, started=2 * hour)).non_retryable
    # Temporal is unavailable: it schedules the third attempt when it has learned of the failure of the second.
    assert not (await attempts.fail(due=4 * hour, started=4 * hour)).non_retryable
    # The pauses of the retry policy before the second and the third attempt, and the attempts themselves.
    assert 1.5 <= attempts.heartbeat[0]["age_seconds"] < THRESHOLD.total_seconds()
    attempts.set_age(THRESHOLD - 3 * second)
    assert not (await attempts.fail(due=4 * hour, started=4 * hour)).non_retryable
    attempts.set_age(THRESHOLD - 3 * second)
    # Before the fifth attempt is a pause of 4 seconds.
    assert (await attempts.fail(due=4 * hour, started=4 * hour)).non_retryable


@pytest.mark.parametrize("heartbeat", [(), (START.isoformat(),)])
async def test_an_attempt_after_one_without_a_known_heartbeat_counts_as_the_first(
    instances: InstanceFixture, heartbeat: tuple[str, ...]
) -> None:
    """The worker was killed before the heartbeat was sent, or was one of an earlier release."""
    instance_id = await instances.insert_instance()
    await instances.inject_fault("server_error", instance_id, count=100_000)
    attempts = Attempts(instances.cluster_activities.apply, InstanceId(instance_id=instance_id))
    hour = timedelta(hours=1)
    await attempts.fail(due=timedelta(), started=hour)
    attempts.heartbeat = heartbeat
    assert not (await attempts.fail(due=hour, started=hour)).non_retryable


@pytest.mark.scenario("P5")
@pytest.mark.parametrize("kind", [OperationKind.RESTART, OperationKind.STOP, OperationKind.START, OperationKind.RESIZE])
async def test_an_operation_is_given_up_when_the_cluster_has_failed_for_too_long(
    instances: InstanceFixture, kind: OperationKind
) -> None:
    instance_id = await instances.insert_instance(status="ready")
    await instances.inject_fault("server_error", instance_id, count=100_000)
    cluster = instances.cluster_activities
    steps = {
        OperationKind.RESTART: cluster.restart,
        OperationKind.STOP: cluster.scale_down,
        OperationKind.START: cluster.scale_up,
        OperationKind.RESIZE: cluster.resize,
    }
    attempts = Attempts(steps[kind], instances.operate(instance_id, kind))
    await attempts.fail(due=timedelta(), started=timedelta())
    for age, is_given_up in ((OPERATION_GIVE_UP_AFTER * 0.9, False), (OPERATION_GIVE_UP_AFTER, True)):
        attempts.set_age(age)
        error = await attempts.fail(due=timedelta(), started=timedelta())
        assert (error.type, error.non_retryable) == ("Unavailable", is_given_up)


async def test_an_error_that_no_wait_ends_is_retried_a_few_times(
    instances: InstanceFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    instance_id = await instances.insert_instance()

    async def fail_unexpectedly(*_: object) -> None:
        raise KeyError("secret value")

    monkeypatch.setattr(instances.gateway, "get", fail_unexpectedly)
    attempts = Attempts(instances.cluster_activities.apply, InstanceId(instance_id=instance_id))
    # Whatever the number of the attempt: an outage may have come before.
    attempts.number = 100
    for _ in range(MAX_UNEXPECTED_ERRORS - 1):
        with pytest.raises(KeyError):
            await attempts.run(due=timedelta(), started=timedelta())
    error = await attempts.fail(due=timedelta(), started=timedelta())
    assert (error.type, error.non_retryable) == ("KeyError", True)
    assert "secret value" not in error.message


async def test_an_outage_of_the_database_is_retried_however_often_it_fails_an_attempt(
    instances: InstanceFixture,
) -> None:
    instance_id = await instances.insert_instance(status="ready")
    (unused_port,) = free_ports(1)
    engine = create_database_engine(f"postgresql+psycopg://berth_worker@{LOOPBACK}:{unused_port}/berth")
    cluster_activities = KubernetesClusterActivities(
        instances.gateway, TEMPLATES, session_factory(engine), failure_threshold=THRESHOLD
    )
    attempts = Attempts(cluster_activities.restart, instances.operate(instance_id, OperationKind.RESTART))
    for _ in range(MAX_UNEXPECTED_ERRORS + 1):
        with pytest.raises(OperationalError):
            await attempts.run(due=timedelta(), started=timedelta())


@pytest.mark.scenario("P8")
async def test_a_failure_reason_goes_on_after_an_attempt_that_an_outage_ended(
    instances: InstanceFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outages and killed workers do not keep an instance that cannot start from being given up."""
    monkeypatch.setattr(activities.cluster_attempts, "HEARTBEAT_SECONDS", 0.05)
    monkeypatch.setattr(readiness, "RESYNC_SECONDS", 0.2)
    attempts = await wait_for_instance(instances, "image_pull")
    for seconds in (1, 2, 3):
        error = await attempts.fail_after(partial(has_failed_for, attempts, seconds), instances)
        assert (error.type, error.non_retryable) == ("Unavailable", False)
    progress = ReadinessProgress.from_heartbeat(attempts.heartbeat[1])
    assert progress.failure_reason is FailureReason.IMAGE_PULL
    assert progress.waited >= progress.failing_for >= timedelta(seconds=3)
    attempts.heartbeat = (None, replace(progress, failing_for=THRESHOLD).to_heartbeat())
    error = await asyncio.wait_for(attempts.fail(due=timedelta(), started=timedelta()), scale_timeout(10))
    assert (error.type, error.non_retryable) == ("ImagePull", True)


def has_failed_for(attempts: Attempts, seconds: float) -> bool:
    return ReadinessProgress.from_heartbeat(attempts.heartbeat[1]).failing_for >= timedelta(seconds=seconds)


async def test_the_longest_start_goes_on_after_an_attempt_that_was_lost(instances: InstanceFixture) -> None:
    attempts = await wait_for_instance(instances, "slow_ready")
    longest = timedelta(seconds=TEMPLATES.service("n8n").ready_within_seconds)
    attempts.heartbeat = (None, ReadinessProgress(waited=longest).to_heartbeat())
    error = await asyncio.wait_for(attempts.fail(due=timedelta(), started=timedelta()), scale_timeout(10))
    assert (error.type, error.non_retryable) == ("DeadlineExceeded", True)
    await instances.clear_faults()
    # The time between two attempts does not count.
    attempts.heartbeat = (None, ReadinessProgress(waited=longest / 2).to_heartbeat())
    await attempts.run(due=2 * longest, started=2 * longest)


async def test_an_instance_that_got_ready_between_two_attempts_is_probed_however_long_it_was_waited_for(
    instances: InstanceFixture,
) -> None:
    instance_id = await instances.insert_instance()
    await instances.provision(instance_id)
    longest = timedelta(seconds=TEMPLATES.service("n8n").ready_within_seconds)
    attempts = Attempts(instances.cluster_activities.await_ready, AwaitReady(instance_id=instance_id, is_starting=True))
    attempts.heartbeat = (None, ReadinessProgress(waited=longest).to_heartbeat())
    await attempts.run(due=longest, started=longest)


async def wait_for_instance(instances: InstanceFixture, fault: str) -> Attempts:
    """Apply an instance with a fault, and return the attempts of the wait for it."""
    instance_id = await instances.insert_instance()
    await instances.inject_fault(fault, instance_id)
    cluster_activities = instances.cluster_activities
    await instances.run_activity(cluster_activities.apply, InstanceId(instance_id=instance_id))
    return Attempts(cluster_activities.await_ready, AwaitReady(instance_id=instance_id, is_starting=True))


@pytest.mark.scenario("P5")
@pytest.mark.parametrize("attempt", [1, 10, 100])
async def test_an_overloaded_cluster_does_not_use_up_the_attempts_of_an_operation(
    instances: InstanceFixture, attempt: int
) -> None:
    """`Retry-After: 1`, as API servers answer when they are overloaded, is a lower limit of the delay."""
    instance_id = await instances.insert_instance(status="ready")
    await instances.inject_fault("throttle", instance_id, count=100_000)
    attempts = Attempts(instances.cluster_activities.restart, instances.operate(instance_id, OperationKind.RESTART))
    attempts.number = attempt - 1
    error = await attempts.fail(due=timedelta(), started=timedelta())
    assert error.next_retry_delay is not None
    longest = policies.CLUSTER_CALL["retry_policy"].maximum_interval
    assert longest is not None
    assert error.next_retry_delay >= (timedelta(seconds=1) if attempt == 1 else longest)


def test_an_operation_has_attempts_for_as_long_as_it_is_retried() -> None:
    policy = policies.CLUSTER_CALL["retry_policy"]
    assert policy.maximum_interval is not None
    # The first five wait less than the longest interval.
    assert (policy.maximum_attempts - 6) * policy.maximum_interval > OPERATION_GIVE_UP_AFTER


async def test_the_pauses_that_the_cluster_requests_count_towards_the_time_after_which_it_is_given_up() -> None:
    async def call_overloaded_cluster(_: None) -> None:
        async with activities.cluster_attempts.cluster_attempt(give_up_after=OPERATION_GIVE_UP_AFTER):
            raise ClusterUnavailable("overloaded", retry_after=60.0)

    attempts = Attempts(call_overloaded_cluster, None)
    elapsed = timedelta()
    while not (error := await attempts.fail(due=elapsed, started=elapsed)).non_retryable:
        assert error.next_retry_delay is not None
        elapsed += error.next_retry_delay
    assert OPERATION_GIVE_UP_AFTER <= elapsed < OPERATION_GIVE_UP_AFTER + timedelta(minutes=2)
