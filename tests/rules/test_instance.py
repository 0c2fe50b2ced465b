"""Transitions of an instance, the failure debounce, and the verdicts on orphaned namespaces."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from workflows.ports.instances import OperationKind
from workflows.rules.errors import ErrorCode, RuleViolation
from workflows.rules.instance import (
    OPERATION_STATUSES,
    TRANSITIONS,
    FailureDebounce,
    FailureReason,
    InstanceStatus,
    NamespaceVerdict,
    judge_namespace,
    max_orphans,
    require_operation_allowed,
    transition,
    transition_idempotently,
)

S = InstanceStatus
T = datetime(2027, 1, 1, tzinfo=UTC)


def test_every_status_has_transitions_and_deleted_is_final() -> None:
    assert set(TRANSITIONS) == set(S)
    assert TRANSITIONS[S.DELETED] == frozenset()


def test_an_instance_that_is_being_deleted_never_becomes_ready() -> None:
    for status in (S.DELETING, S.DELETED, S.CLEANUP_PENDING, S.FAILED):
        with pytest.raises(RuleViolation) as raised:
            transition(status, S.READY)
        assert raised.value.code is ErrorCode.ILLEGAL_MOVE
        assert raised.value.details == {"from": status, "to": "ready"}


def test_a_transition_to_the_same_status_is_idempotent() -> None:
    assert all(transition_idempotently(status, status) is status for status in S)


def test_every_operation_has_the_statuses_that_allow_it() -> None:
    assert set(OPERATION_STATUSES) == {kind.value for kind in OperationKind}
    for kind in OPERATION_STATUSES:
        for status in S:
            if status in OPERATION_STATUSES[kind]:
                require_operation_allowed(kind, status)
            else:
                with pytest.raises(RuleViolation):
                    require_operation_allowed(kind, status)


def test_a_suspended_instance_rejects_customer_operations() -> None:
    for kind in ("start", "stop", "restart", "backup"):
        with pytest.raises(RuleViolation):
            require_operation_allowed(kind, S.SUSPENDED)
    require_operation_allowed("resume", S.SUSPENDED)


def observe_reasons(
    *observations: tuple[float, FailureReason | None], threshold: float = 60, recovery: float = 15
) -> list[bool]:
    debounce = FailureDebounce(timedelta(seconds=threshold), timedelta(seconds=recovery))
    return [debounce.observe(failure_reason, timedelta(seconds=at)) for at, failure_reason in observations]


@pytest.mark.scenario("P8")
def test_a_failure_reason_is_reported_once_it_has_lasted_for_the_threshold() -> None:
    pull = FailureReason.IMAGE_PULL
    assert observe_reasons((0, pull), (30, pull), (59.9, pull), (60, pull)) == [False, False, False, True]


@pytest.mark.scenario("P8")
def test_a_reason_that_recovers_repeatedly_is_never_reported() -> None:
    pull = FailureReason.IMAGE_PULL
    observed = [(at, None if at % 50 >= 20 else pull) for at in range(0, 1000, 5)]
    assert not any(observe_reasons(*observed))


def test_a_short_recovery_between_two_crashes_does_not_restart_the_count() -> None:
    crash = FailureReason.CRASH_LOOP
    assert observe_reasons((0, crash), (20, None), (25, crash), (50, None), (55, crash), (60, crash))[-1]


def test_a_recovery_that_begins_with_the_observation_counts_from_there() -> None:
    debounce = FailureDebounce(timedelta(seconds=60))
    debounce.resume(FailureReason.CRASH_LOOP, timedelta(seconds=-50))
    for seconds in (0, 15):
        assert not debounce.observe(None, timedelta(seconds=seconds))
    assert debounce.reason is None
    assert not debounce.observe(FailureReason.CRASH_LOOP, timedelta(seconds=16))


def test_a_different_failure_reason_restarts_the_count() -> None:
    full, pull = FailureReason.UNSCHEDULABLE, FailureReason.IMAGE_PULL
    assert observe_reasons((0, full), (59, full), (60, pull), (119, pull), (120, pull)) == [
        False,
        False,
        False,
        False,
        True,
    ]


@pytest.mark.scenario("P20")
def test_only_namespaces_of_deleted_or_failed_instances_are_collected_and_unknown_ones_are_reported() -> None:
    grace = timedelta(hours=1)
    old, young = T - timedelta(hours=2), T - timedelta(minutes=59)
    verdicts = {status: judge_namespace(status, old, T, grace) for status in (None, *S)}
    assert verdicts.pop(None) is NamespaceVerdict.REPORT
    collected = {status for status, verdict in verdicts.items() if verdict is NamespaceVerdict.COLLECT}
    assert collected == {S.DELETED, S.FAILED}
    assert {verdict for status, verdict in verdicts.items() if status not in collected} == {NamespaceVerdict.KEEP}
    assert {judge_namespace(status, young, T, grace) for status in (None, *S)} == {NamespaceVerdict.KEEP}


@pytest.mark.scenario("P20")
@pytest.mark.parametrize(("namespaces", "allowed"), [(0, 3), (10, 3), (60, 3), (79, 3), (80, 4), (1000, 50)])
def test_orphans_are_collected_up_to_a_number_and_a_share(namespaces: int, allowed: int) -> None:
    assert max_orphans(namespaces, minimum=3, share=0.05) == allowed
