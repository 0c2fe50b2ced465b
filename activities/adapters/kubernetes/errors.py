"""What the Kubernetes API refuses, as types. The one place that knows how its refusals look."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from workflows.rules.instance import PERMANENT, Trouble

ILL_TYPED = ("failed to create typed patch object", "failed to convert new object")
"""How a server-side apply refuses a manifest with wrong fields: 500 without a reason (measured on 1.36), not 422."""


class ClusterError(Exception):
    """The cluster said no, or nothing.

    Attributes:
        trouble: Why, as operators and customers read it.
        permanent: No retry helps.
        retry_after: Seconds that the cluster asked for.
    """

    def __init__(
        self, trouble: Trouble, message: str, *, permanent: bool | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.trouble = trouble
        self.message = message
        self.permanent = trouble in PERMANENT if permanent is None else permanent
        self.retry_after = retry_after


class Unavailable(ClusterError):
    """429, 5xx, or no answer at all: the same call again, later. It may have been carried out."""

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(Trouble.UNAVAILABLE, message, retry_after=retry_after)


class NotFound(ClusterError):
    def __init__(self, message: str) -> None:
        super().__init__(Trouble.INVALID, message)


class Exists(ClusterError):
    """409 on a create: the name is taken."""

    def __init__(self, message: str) -> None:
        super().__init__(Trouble.FOREIGN_OWNER, message)


class Conflict(ClusterError):
    """409: other managers own the ``fields``; empty when the object changed meanwhile or is being deleted."""

    def __init__(self, message: str, fields: tuple[str, ...]) -> None:
        super().__init__(Trouble.UNAVAILABLE, message)
        self.fields = fields


class Expired(ClusterError):
    """410: the resource version is too old to watch from."""

    def __init__(self, message: str) -> None:
        super().__init__(Trouble.UNAVAILABLE, message)


def from_response(status: int, headers: Mapping[str, str], body: bytes) -> ClusterError:
    """Translate an answer of 400 or above."""
    said = _status_object(body)
    message = str(said.get("message") or f"HTTP {status}")
    details: dict[str, Any] = said.get("details") or {}
    causes: list[dict[str, str]] = details.get("causes") or []
    match status:
        case 404:
            return NotFound(message)
        case 409 if said.get("reason") == "AlreadyExists":
            return Exists(message)
        case 409:
            fields = tuple(c.get("field", "") for c in causes if c.get("reason") == "FieldManagerConflict")
            return Conflict(message, fields)
        case 410:
            return Expired(message)
        case 403 if any(cause.get("reason") == "NamespaceTerminating" for cause in causes):
            return ClusterError(Trouble.TERMINATING, message)
        case 403:
            return ClusterError(refused_creation(message) or Trouble.INVALID, message)
        case 401 | 429:
            return Unavailable(message, retry_after=_retry_after(headers, details))
        case 500 if not said.get("reason") and message.startswith(ILL_TYPED):
            return ClusterError(Trouble.INVALID, message)
        case _ if status >= 500:
            return Unavailable(message, retry_after=_retry_after(headers, details))
        case _:
            fields = tuple(f"{c.get('field')}: {c.get('message')}" for c in causes if c.get("field"))
            return ClusterError(Trouble.INVALID, "; ".join(fields) or message)


def refused_creation(message: str) -> Trouble | None:
    """Tell quota from Pod Security in a Forbidden.

    Both arrive as 403 Forbidden without a machine-readable cause, and as the message of a ``FailedCreate``; their
    wording is fixed by kubernetes/apiserver (resourcequota/controller.go) and pod-security-admission (admission.go).
    """
    if "exceeded quota:" in message or "failed quota:" in message:
        return Trouble.QUOTA_EXCEEDED
    if "status unknown for quota" in message:
        # The quota was made a moment ago and has not been counted yet.
        return Trouble.UNAVAILABLE
    if "violates PodSecurity" in message:
        return Trouble.POD_SECURITY
    return None


def from_event(status: Mapping[str, Any]) -> ClusterError:
    """Translate the object of an ``ERROR`` event of a watch."""
    return from_response(int(status.get("code") or 500), {}, orjson.dumps(status))


def _status_object(body: bytes) -> dict[str, Any]:
    try:
        said = orjson.loads(body)
    except orjson.JSONDecodeError:
        return {"message": body[:200].decode(errors="replace")}
    return said if isinstance(said, dict) else {}


def _retry_after(headers: Mapping[str, str], details: Mapping[str, Any]) -> float | None:
    asked = headers.get("Retry-After") or details.get("retryAfterSeconds")
    try:
        return float(asked) if asked is not None else None
    except ValueError:
        return None
