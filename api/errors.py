"""Every refusal as a code in the envelope; one place decides which status belongs to which code."""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException

from api.outages import describe_outage
from api.response_envelope import ErrorEnvelope, JsonResponse, error_envelope
from db.errors import is_database_unavailable
from workflows.rpc_errors import TemporalUnavailable, WorkflowNotRunning
from workflows.rules.errors import ErrorCode, RuleViolation

log = structlog.get_logger("api.errors")

RETRY_AFTER_SECONDS = 2
_NO_DETAILS: Mapping[str, Any] = {}

STATUS_BY_ERROR_CODE: Mapping[ErrorCode, int] = {
    ErrorCode.VALIDATION_ERROR: 422,
    ErrorCode.NOT_FOUND: 404,
    ErrorCode.CONFLICT: 409,
    ErrorCode.ILLEGAL_MOVE: 409,
    ErrorCode.INSUFFICIENT_FUNDS: 402,
    ErrorCode.PAYMENT_DECLINED: 402,
    ErrorCode.PAYMENT_METHOD_IN_USE: 409,
    ErrorCode.EMAIL_NOT_VERIFIED: 403,
    ErrorCode.PLAN_UNAVAILABLE: 422,
    ErrorCode.COUPON_INVALID: 422,
    ErrorCode.TRIAL_ALREADY_USED: 409,
    ErrorCode.DUPLICATE_SUBSCRIPTION: 409,
    ErrorCode.CURRENCY_MISMATCH: 422,
    ErrorCode.AMOUNT_TOO_SMALL: 422,
    ErrorCode.REFUND_EXCEEDS_PAYMENT: 422,
    ErrorCode.PROVISIONING_FAILED: 409,
    ErrorCode.CLEANUP_PENDING: 409,
    ErrorCode.RESIZE_FAILED: 409,
}

CODE_BY_STATUS: Mapping[int, str] = {
    400: "MALFORMED_REQUEST",
    401: "UNAUTHENTICATED",
    403: "FORBIDDEN",
    404: "NOT_FOUND",
    405: "METHOD_NOT_ALLOWED",
    409: "CONFLICT",
    413: "PAYLOAD_TOO_LARGE",
    415: "UNSUPPORTED_MEDIA_TYPE",
    422: "VALIDATION_ERROR",
    429: "RATE_LIMITED",
    503: "UNAVAILABLE",
}


class ApiError(Exception):
    """A refusal with its status and code. ``details`` go out as they are: nothing secret in them.

    ``is_final`` False: the same request may succeed later, so the refusal is not stored under its Idempotency-Key.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        details: Mapping[str, Any] = _NO_DETAILS,
        headers: Mapping[str, str] = _NO_DETAILS,
        *,
        is_final: bool = True,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.details = details
        self.headers = headers
        self.is_final = is_final


def not_found_error(object_name: str = "object") -> ApiError:
    """Return the 404 for an object that does not exist or belongs to another organization."""
    return ApiError(404, "NOT_FOUND", f"{object_name.capitalize()} not found.")


def conflict_error(message: str, details: Mapping[str, Any] = _NO_DETAILS) -> ApiError:
    return ApiError(409, "CONFLICT", message, details)


def validation_error(field: str, reason: str) -> ApiError:
    return ApiError(422, "VALIDATION_ERROR", reason, {"field": field, "reason": reason})


def unauthenticated_error(
    message: str = "Authentication required. Send `Authorization: Bearer <access token>`.",
) -> ApiError:
    return ApiError(401, "UNAUTHENTICATED", message, headers={"WWW-Authenticate": "Bearer"})


def forbidden_error(message: str = "Permission denied.") -> ApiError:
    return ApiError(403, "FORBIDDEN", message)


def unavailable_error(dependency: str) -> ApiError:
    return ApiError(
        503,
        "UNAVAILABLE",
        f"{dependency} is temporarily unavailable. Retry after {RETRY_AFTER_SECONDS} s with the same Idempotency-Key.",
        headers={"Retry-After": str(RETRY_AFTER_SECONDS)},
    )


def timeout_error(seconds: float) -> ApiError:
    return ApiError(
        503,
        "UNAVAILABLE",
        f"The request timed out after {seconds:g} s. Retry with the same Idempotency-Key.",
        headers={"Retry-After": str(RETRY_AFTER_SECONDS)},
    )


def to_api_error(error: BaseException) -> ApiError | None:
    """Return what ``error`` says to a caller, or None when it is a fault of our own."""
    match error:
        case ApiError():
            return error
        case RuleViolation():
            return ApiError(
                STATUS_BY_ERROR_CODE.get(error.code, 422),
                error.code.value,
                error.message,
                error.details,
                is_final=not error.is_retryable,
            )
        case TemporalUnavailable():
            return unavailable_error("Order processing")
        case WorkflowNotRunning():
            return ApiError(
                409,
                ErrorCode.ILLEGAL_MOVE.value,
                "The workflow has reached a final status and accepts no more commands.",
                # An operator may have stopped it: then it is started again.
                is_final=False,
            )
        case ConnectionError() | TimeoutError():
            return unavailable_error("A dependency")
        case _ if is_database_unavailable(error):
            return unavailable_error("The database")
        case DataError():
            return ApiError(422, "VALIDATION_ERROR", "A value is out of range for its type.")
        case IntegrityError():
            return ApiError(409, "CONFLICT", "The request conflicts with an existing object.", is_final=False)
        case RequestValidationError():
            return _from_validation_error(error)
        case HTTPException():
            code = CODE_BY_STATUS.get(error.status_code, "ERROR")
            return ApiError(error.status_code, code, str(error.detail), headers=error.headers or _NO_DETAILS)
        case _:
            return None


def error_response(error: ApiError, request_id: str) -> JsonResponse:
    content = error_envelope(error.code, error.message, error.details, request_id)
    return JsonResponse(content, status_code=error.status, headers=dict(error.headers))


def internal_error_response(error: BaseException, request_id: str) -> JsonResponse:
    """The answer to a fault of our own: it says nothing but where to look it up."""
    log.error("request.failed", error=type(error).__name__, trace=stack_frames(error), detail=_loggable_message(error))
    content = error_envelope("INTERNAL_ERROR", "Internal error. Contact support with the request id.", {}, request_id)
    return JsonResponse(content, status_code=500)


def stack_frames(error: BaseException) -> list[str]:
    """Return the innermost 12 frames as `file:line function`, innermost last, without values."""
    frames = traceback.extract_tb(error.__traceback__)[-12:]
    return [f"{frame.filename.rsplit('/', 3)[-1]}:{frame.lineno} {frame.name}" for frame in frames]


def _loggable_message(error: BaseException) -> str:
    # A database's message quotes rows, a validation's quotes input: neither belongs into a log.
    if isinstance(error, DBAPIError):
        return str(getattr(error.orig, "sqlstate", None))
    return str(error)[:300] if isinstance(error, RuntimeError | TypeError | AttributeError | LookupError) else ""


def _from_validation_error(error: RequestValidationError) -> ApiError:
    """Which fields, and why; never what was sent, which may be a password."""
    failures = []
    for item in error.errors():
        if item["type"] == "json_invalid":
            return ApiError(400, "MALFORMED_REQUEST", "The body is not valid JSON.")
        place = [str(part) for part in item["loc"]]
        field = ".".join(place[1:]) or place[0]
        failures.append({"field": field, "in": place[0], "reason": _reason(item)})
    details: dict[str, Any] = {"field": failures[0]["field"], "reason": failures[0]["reason"]} if failures else {}
    message = "Request validation failed."
    if failures:
        message = f"Request validation failed: {failures[0]['field']}: {failures[0]['reason'].rstrip('.')}."
    if len(failures) > 1:
        details["errors"] = failures[:20]
    return ApiError(422, "VALIDATION_ERROR", message, details)


def _reason(item: Mapping[str, Any]) -> str:
    if item["type"] == "extra_forbidden":
        return "Unknown query parameter." if item["loc"][0] == "query" else "Unknown field."
    return str(item["msg"]).removeprefix("Value error, ")


async def _handle(request: Request, error: Exception) -> JsonResponse:
    request_id = str(request.scope.get("state", {}).get("request_id", ""))
    api_error = to_api_error(error)
    if api_error is None:
        return internal_error_response(error, request_id)
    if api_error.status >= 500:
        log.warning("request.dependency_unavailable", trace=stack_frames(error), **describe_outage(error))
    return error_response(api_error, request_id)


def install_error_handlers(app: FastAPI) -> None:
    """Install the handlers of known errors. The outermost middleware answers all others."""
    for kind in (
        ApiError, RuleViolation, TemporalUnavailable, WorkflowNotRunning, PoolTimeout, DBAPIError, ConnectionError,
        TimeoutError,
        RequestValidationError, HTTPException,
    ):  # fmt: skip
        app.add_exception_handler(kind, _handle)


_DESCRIPTIONS: Mapping[int, str] = {
    400: "Malformed request: invalid JSON or UTF-8, duplicate key, or missing header",
    401: "Access token missing, invalid, expired or revoked",
    402: "Insufficient funds, or payment declined",
    403: "Permission denied",
    404: "Not found, or owned by another organization",
    409: "Conflict with the current state",
    413: "The body is too large",
    422: "Validation failed",
    429: "Too many requests; see Retry-After",
    503: "A dependency is unavailable; see Retry-After",
}


def error_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """``responses=`` for a route or router, so that the schema says what may be answered."""
    return {status: {"model": ErrorEnvelope, "description": _DESCRIPTIONS[status]} for status in statuses}


PUBLIC_RESPONSES = error_responses(400, 404, 409, 413, 422, 429, 503)
AUTHENTICATED_RESPONSES = PUBLIC_RESPONSES | error_responses(401, 403)
PAYMENT_RESPONSES = AUTHENTICATED_RESPONSES | error_responses(402)
