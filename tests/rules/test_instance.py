"""What an instance may become, how long trouble is borne, and what is nobody's."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from workflows.ports.instances import OperationKind
from workflows.rules.errors import Refusal, RuleBroken
from workflows.rules.instance import (
    EXISTING,
    MOVES,
    OPERABLE,
    InstanceStatus,
    Patience,
    Trouble,
    collectable,
    move,
    require_operable,
    settle,
)

S = InstanceStatus
T = datetime(2027, 1, 1, tzinfo=UTC)


def test_every_status_has_moves_and_deleted_is_the_end() -> None:
    assert set(MOVES) == set(S)
    assert MOVES[S.DELETED] == frozenset()


def test_an_instance_that_is_being_deleted_never_becomes_ready() -> None:
    for status in (S.DELETING, S.DELETED, S.CLEANUP_PENDING, S.FAILED):
        with pytest.raises(RuleBroken) as refusal:
            move(status, S.READY)
        assert refusal.value.code is Refusal.ILLEGAL_MOVE
        assert refusal.value.details == {"from": status, "to": "ready"}


def test_settling_where_one_is_changes_nothing() -> None:
    assert all(settle(status, status) is status for status in S)


def test_every_operation_says_when_it_may_begin() -> None:
    assert set(OPERABLE) == {kind.value for kind in OperationKind}
    for kind in OPERABLE:
        for status in S:
            if status in OPERABLE[kind]:
                require_operable(kind, status)
            else:
                with pytest.raises(RuleBroken):
                    require_operable(kind, status)


def test_what_the_platform_suspended_no_customer_starts() -> None:
    for kind in ("start", "stop", "restart", "backup"):
        with pytest.raises(RuleBroken):
            require_operable(kind, S.SUSPENDED)
    require_operable("resume", S.SUSPENDED)


def seconds(*observations: tuple[float, Trouble | None], bearable: float = 60, heals: float = 15) -> list[bool]:
    patience = Patience(timedelta(seconds=bearable), timedelta(seconds=heals))
    return [patience.observe(trouble, T + timedelta(seconds=at)) for at, trouble in observations]


@pytest.mark.scenario("P8")
def test_one_and_the_same_trouble_is_borne_for_so_long_and_no_longer() -> None:
    pull = Trouble.IMAGE_PULL
    assert seconds((0, pull), (30, pull), (59.9, pull), (60, pull)) == [False, False, False, True]


@pytest.mark.scenario("P8")
def test_a_registry_that_hiccups_and_heals_never_adds_up() -> None:
    pull = Trouble.IMAGE_PULL
    observed = [(at, None if at % 50 >= 20 else pull) for at in range(0, 1000, 5)]
    assert not any(seconds(*observed))


def test_a_container_that_runs_for_a_second_between_two_crashes_is_still_crashing() -> None:
    crash = Trouble.CRASH_LOOP
    assert seconds((0, crash), (20, None), (25, crash), (50, None), (55, crash), (60, crash))[-1]


def test_another_trouble_starts_its_own_count() -> None:
    full, pull = Trouble.UNSCHEDULABLE, Trouble.IMAGE_PULL
    assert seconds((0, full), (59, full), (60, pull), (119, pull), (120, pull)) == [False, False, False, False, True]


@pytest.mark.scenario("P20")
def test_an_orphan_bears_our_label_has_no_owner_and_is_older_than_the_grace() -> None:
    grace = timedelta(hours=1)
    old, young = T - timedelta(hours=2), T - timedelta(minutes=59)
    assert collectable(None, old, T, grace)
    assert not collectable(None, young, T, grace)
    assert {status for status in S if collectable(status, old, T, grace)} == {S.DELETED, S.FAILED}
    assert not any(collectable(status, old, T, grace) for status in EXISTING | {S.PROVISIONING, S.REQUESTED})
