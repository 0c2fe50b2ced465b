"""What an instance may become, and when one may be removed as nobody's."""

from __future__ import annotations

from datetime import datetime, timedelta
from enum import StrEnum

from workflows.rules.errors import Refusal, RuleBroken


class InstanceStatus(StrEnum):
    REQUESTED = "requested"
    PROVISIONING = "provisioning"
    READY = "ready"
    STOPPED = "stopped"
    SUSPENDED = "suspended"
    DEGRADED = "degraded"
    FAILED = "failed"
    DELETING = "deleting"
    DELETED = "deleted"
    CLEANUP_PENDING = "cleanup_pending"


S = InstanceStatus

_RUNNING = frozenset({S.READY, S.STOPPED, S.SUSPENDED, S.DEGRADED, S.DELETING})

MOVES: dict[InstanceStatus, frozenset[InstanceStatus]] = {
    S.REQUESTED: frozenset({S.PROVISIONING, S.FAILED, S.DELETING, S.CLEANUP_PENDING}),
    S.PROVISIONING: frozenset({S.READY, S.FAILED, S.DELETING, S.CLEANUP_PENDING}),
    S.READY: _RUNNING - {S.READY},
    S.STOPPED: _RUNNING - {S.STOPPED},
    S.SUSPENDED: _RUNNING - {S.SUSPENDED},
    S.DEGRADED: _RUNNING - {S.DEGRADED},
    # A failed provisioning has been undone; deleting it again must be harmless.
    S.FAILED: frozenset({S.DELETING}),
    S.DELETING: frozenset({S.DELETED, S.CLEANUP_PENDING}),
    S.CLEANUP_PENDING: frozenset({S.DELETING, S.DELETED, S.FAILED}),
    S.DELETED: frozenset(),
}

EXISTING = frozenset({S.READY, S.STOPPED, S.SUSPENDED, S.DEGRADED})
"""Statuses in which the customer's objects and data are in the cluster and stay there."""

GONE = frozenset({S.DELETED, S.FAILED})
"""Statuses in which nothing of the instance may be in the cluster any more."""

UNSERVED = frozenset({S.STOPPED, S.SUSPENDED})
"""Scaled to zero on purpose, data kept."""


OPERABLE: dict[str, frozenset[InstanceStatus]] = {
    "restart": frozenset({S.READY, S.DEGRADED}),
    "stop": frozenset({S.READY, S.DEGRADED, S.STOPPED}),
    "start": frozenset({S.STOPPED, S.READY, S.DEGRADED}),
    "suspend": EXISTING,
    "resume": EXISTING,
    "resize": EXISTING,
    "backup": frozenset({S.READY, S.DEGRADED}),
    "delete": frozenset(S),
}
"""In which statuses an operation may begin, by its kind. A customer cannot start what the platform suspended."""


def require_operable(kind: str, status: InstanceStatus) -> None:
    """Raises: ``RuleBroken`` ``ILLEGAL_MOVE`` when the operation makes no sense for an instance in ``status``."""
    if status not in OPERABLE[kind]:
        raise RuleBroken(
            Refusal.ILLEGAL_MOVE,
            f"An instance that is {status} does not take the operation {kind}.",
            {"status": status, "operation": kind},
        )


class Trouble(StrEnum):
    """Why an instance is not ready. Stable: part of conditions, outcomes and alerts."""

    IMAGE_PULL = "ImagePull"
    CRASH_LOOP = "CrashLoop"
    CONFIGURATION = "Configuration"
    UNSCHEDULABLE = "Unschedulable"
    QUOTA_EXCEEDED = "QuotaExceeded"
    PVC_PENDING = "PVCPending"
    POD_SECURITY = "PodSecurity"
    JOB_FAILED = "JobFailed"
    NO_ANSWER = "NoAnswer"
    DEADLINE_EXCEEDED = "DeadlineExceeded"
    FOREIGN_OWNER = "ForeignOwner"
    INVALID = "Invalid"
    TERMINATING = "Terminating"
    GONE = "Gone"
    UNAVAILABLE = "Unavailable"


PERMANENT = frozenset(
    {Trouble.FOREIGN_OWNER, Trouble.INVALID, Trouble.QUOTA_EXCEEDED, Trouble.POD_SECURITY, Trouble.GONE}
)
"""Answers of the cluster that no retry changes."""

CAPACITY = frozenset({Trouble.UNSCHEDULABLE, Trouble.QUOTA_EXCEEDED})
"""What operators have to make room for; the customer only sees that it waits."""


class Patience:
    """How long one and the same trouble is borne.

    Trouble that goes away and stays away for ``heals`` is forgotten; another trouble starts its own count. So a
    registry that hiccups now and then never adds up, and a container that crashes, runs for a second and crashes
    again does.
    """

    def __init__(self, bearable: timedelta, heals: timedelta = timedelta(seconds=15)) -> None:
        self._bearable = bearable
        self._heals = min(heals, bearable)
        self._trouble: Trouble | None = None
        self._since: datetime | None = None
        self._well_since: datetime | None = None

    @property
    def trouble(self) -> Trouble | None:
        return self._trouble

    def observe(self, trouble: Trouble | None, now: datetime) -> bool:
        """Take note of what is wrong at ``now`` (None: nothing). True means that it has lasted too long."""
        if trouble is None:
            self._well_since = self._well_since or now
            if now - self._well_since >= self._heals:
                self._trouble, self._since = None, None
            return False
        self._well_since = None
        if trouble is not self._trouble or self._since is None:
            self._trouble, self._since = trouble, now
        return now - self._since >= self._bearable


def move(current: InstanceStatus, target: InstanceStatus) -> InstanceStatus:
    """Return ``target`` if it is a legal move.

    Raises:
        RuleBroken: ``ILLEGAL_MOVE`` if the table does not list it.
    """
    if target not in MOVES[current]:
        raise RuleBroken(
            Refusal.ILLEGAL_MOVE,
            f"An instance that is {current} cannot become {target}.",
            {"from": current, "to": target},
        )
    return target


def settle(current: InstanceStatus, target: InstanceStatus) -> InstanceStatus:
    """Return ``target``, also when the instance is there already: activities are repeated.

    Raises:
        RuleBroken: ``ILLEGAL_MOVE`` if the table does not list it.
    """
    return target if current is target else move(current, target)


def collectable(status: InstanceStatus | None, created_at: datetime, now: datetime, grace: timedelta) -> bool:
    """Whether a namespace that bears our labels is an orphan.

    Args:
        status: Of the instance that the namespace names, or None when the database knows none.
        created_at: When the namespace was created.
        grace: How long a namespace may exist before anybody judges it; a transaction may still be on its way.
    """
    return (status is None or status in GONE) and now - created_at >= grace
