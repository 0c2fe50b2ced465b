"""Errors of the Kubernetes API as types, parsed from its responses."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

from workflows.rules.instance import NON_RETRYABLE_REASONS, FailureReason

TYPED_PATCH_ERRORS = ("failed to create typed patch object", "failed to convert new object")
"""Messages of a server-side apply with invalid fields: status 500 without a reason (measured on 1.36), not 422."""


class ClusterError(Exception):
    """A request failed, or an instance does not become ready.

    Attributes:
        reason: Failure reason, as operators and customers see it.
        is_permanent: Whether a retry cannot succeed.
        retry_after: Requested delay before a retry, in seconds.
    """

    def __init__(
        self, reason: FailureReason, message: str, *, permanent: bool | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.is_permanent = reason in NON_RETRYABLE_REASONS if permanent is None else permanent
        self.retry_after = retry_after


class InvalidKubeconfig(Exception):
    """No client can be made from a kubeconfig; None stands for the service account of a pod."""

    def __init__(self, kubeconfig: Path | None, cause: Exception) -> None:
        reason = " ".join(str(cause).split()).rstrip(".")
        super().__init__(
            f"no kubeconfig is set, and this process runs in no pod of a cluster ({reason})"
            if kubeconfig is None
            else f"the kubeconfig {kubeconfig} cannot be used: {reason}"
        )


class ClusterUnavailable(ClusterError):
    """429, 5xx or a lost response. The request may have been executed; retry it later."""

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(FailureReason.UNAVAILABLE, message, retry_after=retry_after)


class NotFound(ClusterError):
    def __init__(self, message: str) -> None:
        super().__init__(FailureReason.INVALID, message)


class AlreadyExists(ClusterError):
    """409 on a create: the name is taken."""

    def __init__(self, message: str) -> None:
        super().__init__(FailureReason.NAME_CONFLICT, message)


class Conflict(ClusterError):
    """409: other managers own the ``fields``. Empty if the object was modified concurrently or is being deleted."""

    def __init__(self, message: str, fields: tuple[str, ...]) -> None:
        super().__init__(FailureReason.UNAVAILABLE, message)
        self.fields = fields


class ResourceVersionExpired(ClusterError):
    """410: the resource version is too old to watch from."""

    def __init__(self, message: str) -> None:
        super().__init__(FailureReason.UNAVAILABLE, message)


def from_response(status: int, headers: Mapping[str, str], body: bytes) -> ClusterError:
    """Return the error for a response with status 400 or above."""
    status_object = _parse_status(body)
    message = str(status_object.get("message") or f"HTTP {status}")
    details: dict[str, Any] = status_object.get("details") or {}
    causes: list[dict[str, str]] = details.get("causes") or []
    match status:
        case 404:
            return NotFound(message)
        case 409 if status_object.get("reason") == "AlreadyExists":
            return AlreadyExists(message)
        case 409:
            fields = tuple(c.get("field", "") for c in causes if c.get("reason") == "FieldManagerConflict")
            return Conflict(message, fields)
        case 410:
            return ResourceVersionExpired(message)
        case 403 if any(cause.get("reason") == "NamespaceTerminating" for cause in causes):
            return ClusterError(FailureReason.TERMINATING, message)
        case 403:
            return ClusterError(admission_failure_reason(message) or FailureReason.INVALID, message)
        case 401 | 429:
            return ClusterUnavailable(message, retry_after=_retry_after(headers, details))
        case 500 if not status_object.get("reason") and message.startswith(TYPED_PATCH_ERRORS):
            return ClusterError(FailureReason.INVALID, message)
        case _ if status >= 500:
            return ClusterUnavailable(message, retry_after=_retry_after(headers, details))
        case _:
            fields = tuple(f"{c.get('field')}: {c.get('message')}" for c in causes if c.get("field"))
            return ClusterError(FailureReason.INVALID, "; ".join(fields) or message)


def admission_failure_reason(message: str) -> FailureReason | None:
    """Return which admission plugin rejected a request: quota or Pod Security. None for other messages.

    Both return 403 Forbidden without a machine-readable cause, or appear as the message of a ``FailedCreate`` event.
    Source of the wording: kubernetes/apiserver (resourcequota/controller.go) and pod-security-admission (admission.go).
    """
    if "exceeded quota:" in message or "failed quota:" in message:
        return FailureReason.QUOTA_EXCEEDED
    if "status unknown for quota" in message:
        # The controller has not computed the usage of a new quota yet.
        return FailureReason.UNAVAILABLE
    if "violates PodSecurity" in message:
        return FailureReason.POD_SECURITY
    return None


def from_watch_error(status: Mapping[str, Any]) -> ClusterError:
    """Return the error for the object of a watch's ``ERROR`` event."""
    return from_response(int(status.get("code") or 500), {}, orjson.dumps(status))


def _parse_status(body: bytes) -> dict[str, Any]:
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        return {"message": body[:200].decode(errors="replace")}
    return document if isinstance(document, dict) else {}


def _retry_after(headers: Mapping[str, str], details: Mapping[str, Any]) -> float | None:
    requested_delay = headers.get("Retry-After") or details.get("retryAfterSeconds")
    try:
        return float(requested_delay) if requested_delay is not None else None
    except ValueError:
        return None
