"""Statuses of an instance and their transitions, failure reasons, and the rule for orphaned namespaces."""

from __future__ import annotations

from datetime import datetime, timedelta
from enum import StrEnum

from workflows.rules.errors import ErrorCode, RuleViolation


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

_PROVISIONED_OR_DELETING = frozenset({S.READY, S.STOPPED, S.SUSPENDED, S.DEGRADED, S.DELETING})

TRANSITIONS: dict[InstanceStatus, frozenset[InstanceStatus]] = {
    S.REQUESTED: frozenset({S.PROVISIONING, S.FAILED, S.DELETING, S.CLEANUP_PENDING}),
    S.PROVISIONING: frozenset({S.READY, S.FAILED, S.DELETING, S.CLEANUP_PENDING}),
    S.READY: _PROVISIONED_OR_DELETING - {S.READY},
    S.STOPPED: _PROVISIONED_OR_DELETING - {S.STOPPED},
    S.SUSPENDED: _PROVISIONED_OR_DELETING - {S.SUSPENDED},
    S.DEGRADED: _PROVISIONED_OR_DELETING - {S.DEGRADED},
    # A failed provisioning has been undone; deleting it again must be harmless.
    S.FAILED: frozenset({S.DELETING}),
    S.DELETING: frozenset({S.DELETED, S.CLEANUP_PENDING}),
    S.CLEANUP_PENDING: frozenset({S.DELETING, S.DELETED, S.FAILED}),
    S.DELETED: frozenset(),
}

PROVISIONED_STATUSES = frozenset({S.READY, S.STOPPED, S.SUSPENDED, S.DEGRADED})
"""Statuses in which the customer's objects and data are in the cluster and stay there."""

REMOVED_STATUSES = frozenset({S.DELETED, S.FAILED})
"""Statuses in which nothing of the instance may be in the cluster any more."""

SCALED_DOWN_STATUSES = frozenset({S.STOPPED, S.SUSPENDED})
"""Scaled to zero on purpose, data kept."""


OPERATION_STATUSES: dict[str, frozenset[InstanceStatus]] = {
    "restart": frozenset({S.READY, S.DEGRADED}),
    "stop": frozenset({S.READY, S.DEGRADED, S.STOPPED}),
    "start": frozenset({S.STOPPED, S.READY, S.DEGRADED}),
    "suspend": PROVISIONED_STATUSES,
    "resume": PROVISIONED_STATUSES,
    "resize": PROVISIONED_STATUSES,
    "backup": frozenset({S.READY, S.DEGRADED}),
    "delete": frozenset(S),
}
"""In which statuses an operation may begin, by its kind. A customer cannot start what the platform suspended."""


def require_operation_allowed(kind: str, status: InstanceStatus) -> None:
    """Raises: ``RuleViolation`` ``ILLEGAL_MOVE`` when the operation makes no sense for an instance in ``status``."""
    if status not in OPERATION_STATUSES[kind]:
        raise RuleViolation(
            ErrorCode.ILLEGAL_MOVE,
            f"An instance that is {status} does not take the operation {kind}.",
            {"status": status, "operation": kind},
        )


class FailureReason(StrEnum):
    """Why an instance is not ready. Stable: part of conditions, outcomes and alerts."""

    IMAGE_PULL = "ImagePull"
    CRASH_LOOP = "CrashLoop"
    CONFIGURATION = "Configuration"
    UNSCHEDULABLE = "Unschedulable"
    QUOTA_EXCEEDED = "QuotaExceeded"
    PVC_PENDING = "PVCPending"
    POD_SECURITY = "PodSecurity"
    JOB_FAILED = "JobFailed"
    PROBE_FAILED = "ProbeFailed"
    DEADLINE_EXCEEDED = "DeadlineExceeded"
    NAME_CONFLICT = "NameConflict"
    INVALID = "Invalid"
    TERMINATING = "Terminating"
    DELETED_EXTERNALLY = "DeletedExternally"
    UNAVAILABLE = "Unavailable"


NON_RETRYABLE_REASONS = frozenset(
    {
        FailureReason.NAME_CONFLICT,
        FailureReason.INVALID,
        FailureReason.QUOTA_EXCEEDED,
        FailureReason.POD_SECURITY,
        FailureReason.DELETED_EXTERNALLY,
    }
)
"""Answers of the cluster that no retry changes."""

CAPACITY_REASONS = frozenset({FailureReason.UNSCHEDULABLE, FailureReason.QUOTA_EXCEEDED})
"""What operators have to make room for; the customer only sees that it waits."""


class FailureDebounce:
    """Reports a failure reason once it has persisted for ``threshold``.

    A reason that is absent for ``recovery_window`` is cleared; a different reason restarts the count. Rare failures
    of a registry therefore never accumulate, and a container that crashes, runs for a second and crashes again does.
    Instants are the time that the instance has been observed for: no clock that can be set.
    """

    def __init__(self, threshold: timedelta, recovery_window: timedelta = timedelta(seconds=15)) -> None:
        self._threshold = threshold
        self._recovery_window = min(recovery_window, threshold)
        self._reason: FailureReason | None = None
        self._since: timedelta | None = None
        self._recovered_since: timedelta | None = None

    @property
    def reason(self) -> FailureReason | None:
        return self._reason

    def persisted_for(self, now: timedelta) -> timedelta:
        """Return how long the failure reason has persisted at ``now``; zero without one."""
        return timedelta() if self._since is None else now - self._since

    def resume(self, reason: FailureReason | None, since: timedelta) -> None:
        """Go on with a failure reason that was first observed at ``since``; None is none."""
        self._reason, self._since = (None, None) if reason is None else (reason, since)
        self._recovered_since = None

    def observe(self, reason: FailureReason | None, now: timedelta) -> bool:
        """Record the failure reason at ``now`` (None: healthy). Return whether it has persisted for the threshold."""
        if reason is None:
            self._recovered_since = now if self._recovered_since is None else self._recovered_since
            if now - self._recovered_since >= self._recovery_window:
                self._reason, self._since = None, None
            return False
        self._recovered_since = None
        if reason is not self._reason or self._since is None:
            self._reason, self._since = reason, now
        return now - self._since >= self._threshold


def transition(current: InstanceStatus, target: InstanceStatus) -> InstanceStatus:
    """Return ``target`` if it is a legal move.

    Raises:
        RuleViolation: ``ILLEGAL_MOVE`` if the table does not list it.
    """
    if target not in TRANSITIONS[current]:
        raise RuleViolation(
            ErrorCode.ILLEGAL_MOVE,
            f"An instance that is {current} cannot become {target}.",
            {"from": current, "to": target},
        )
    return target


def transition_idempotently(current: InstanceStatus, target: InstanceStatus) -> InstanceStatus:
    """Return ``target``, also when the instance is there already: activities are repeated.

    Raises:
        RuleViolation: ``ILLEGAL_MOVE`` if the table does not list it.
    """
    return target if current is target else transition(current, target)


class NamespaceVerdict(StrEnum):
    """What the orphan collection does with a namespace of this installation."""

    KEEP = "keep"
    COLLECT = "collect"
    REPORT = "report"


def judge_namespace(
    status: InstanceStatus | None, created_at: datetime, now: datetime, grace: timedelta
) -> NamespaceVerdict:
    """Return what becomes of a namespace that carries this installation's label.

    Only what the database itself knows as deleted or failed is collected. An instance that the database does not know
    is reported: the database may have been restored from a time before that instance was ordered.

    Args:
        status: Of the instance that the namespace names; None when the database has no such instance there.
        created_at: When the namespace was created.
        grace: Minimum age of a namespace; a transaction may still be in progress.
    """
    if now - created_at < grace:
        return NamespaceVerdict.KEEP
    if status is None:
        return NamespaceVerdict.REPORT
    return NamespaceVerdict.COLLECT if status in REMOVED_STATUSES else NamespaceVerdict.KEEP


def max_orphans(namespaces: int, *, minimum: int, share: float) -> int:
    """Return how many of ``namespaces`` may be orphans before the collection pauses: ``share``, at least ``minimum``.

    More at once means that the database is wrong, not the cluster.
    """
    return max(minimum, int(namespaces * share))
