"""Every refusal as a code in the envelope; one place decides which status belongs to which code."""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException

from api.envelope import ErrorEnvelope, Json, error_content
from workflows.client import NotRunning, Unavailable
from workflows.rules.errors import Refusal, RuleBroken

log = structlog.get_logger("api.errors")

RETRY_AFTER_SECONDS = 2
_NOTHING: Mapping[str, Any] = {}

STATUS_OF_RULE: Mapping[Refusal, int] = {
    Refusal.VALIDATION_ERROR: 422,
    Refusal.NOT_FOUND: 404,
    Refusal.CONFLICT: 409,
    Refusal.ILLEGAL_MOVE: 409,
    Refusal.INSUFFICIENT_FUNDS: 402,
    Refusal.PAYMENT_DECLINED: 402,
    Refusal.PAYMENT_METHOD_IN_USE: 409,
    Refusal.EMAIL_NOT_VERIFIED: 403,
    Refusal.PLAN_UNAVAILABLE: 422,
    Refusal.COUPON_INVALID: 422,
    Refusal.TRIAL_ALREADY_USED: 409,
    Refusal.DUPLICATE_SUBSCRIPTION: 409,
    Refusal.CURRENCY_MISMATCH: 422,
    Refusal.AMOUNT_TOO_SMALL: 422,
    Refusal.REFUND_EXCEEDS_PAYMENT: 422,
    Refusal.PROVISIONING_FAILED: 409,
    Refusal.CLEANUP_PENDING: 409,
    Refusal.RESIZE_FAILED: 409,
}

CODE_OF_STATUS: Mapping[int, str] = {
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
    """A refusal with its status and code. ``details`` go out as they are: nothing secret in them."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        details: Mapping[str, Any] = _NOTHING,
        headers: Mapping[str, str] = _NOTHING,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.details = details
        self.headers = headers


def not_found(what: str = "object") -> ApiError:
    """Also for what belongs to somebody else: whether it exists is nobody's business."""
    return ApiError(404, "NOT_FOUND", f"There is no such {what}.")


def conflict(message: str, details: Mapping[str, Any] = _NOTHING) -> ApiError:
    return ApiError(409, "CONFLICT", message, details)


def invalid(field: str, reason: str) -> ApiError:
    return ApiError(422, "VALIDATION_ERROR", reason, {"field": field, "reason": reason})


def unauthenticated(message: str = "Sign in first.") -> ApiError:
    return ApiError(401, "UNAUTHENTICATED", message, headers={"WWW-Authenticate": "Bearer"})


def forbidden(message: str = "This is not yours to do.") -> ApiError:
    return ApiError(403, "FORBIDDEN", message)


def unavailable(what: str) -> ApiError:
    return ApiError(
        503,
        "UNAVAILABLE",
        f"{what} is not available at the moment. Nothing was lost; try again shortly.",
        headers={"Retry-After": str(RETRY_AFTER_SECONDS)},
    )


def translated(error: BaseException) -> ApiError | None:
    """Return what ``error`` says to a caller, or None when it is a fault of our own."""
    match error:
        case ApiError():
            return error
        case RuleBroken():
            return ApiError(STATUS_OF_RULE.get(error.code, 422), error.code.value, error.message, error.details)
        case Unavailable():
            return unavailable("The order desk")
        case NotRunning():
            return ApiError(409, Refusal.ILLEGAL_MOVE.value, "This has ended; it takes no more orders.")
        case PoolTimeout() | OperationalError() | InterfaceError():
            return unavailable("The database")
        case DataError():
            return ApiError(422, "VALIDATION_ERROR", "A value is outside of what can be stored.")
        case IntegrityError():
            return ApiError(409, "CONFLICT", "This contradicts what is already there.")
        case DBAPIError() if error.connection_invalidated:
            return unavailable("The database")
        case ConnectionError() | TimeoutError():
            return unavailable("A service that this needs")
        case RequestValidationError():
            return _validation(error)
        case HTTPException():
            code = CODE_OF_STATUS.get(error.status_code, "ERROR")
            return ApiError(error.status_code, code, str(error.detail), headers=error.headers or _NOTHING)
        case _:
            return None


def response(error: ApiError, request_id: str) -> Json:
    content = error_content(error.code, error.message, error.details, request_id)
    return Json(content, status_code=error.status, headers=dict(error.headers))


def failure(error: BaseException, request_id: str) -> Json:
    """The answer to a fault of our own: it says nothing but where to look it up."""
    log.error("request failed", error=type(error).__name__, trace=trace(error), says=_says(error))
    content = error_content("INTERNAL_ERROR", "Something went wrong on our side.", {}, request_id)
    return Json(content, status_code=500)


def trace(error: BaseException) -> list[str]:
    """Where it happened, innermost last, without the values that were at hand."""
    frames = traceback.extract_tb(error.__traceback__)[-12:]
    return [f"{frame.filename.rsplit('/', 3)[-1]}:{frame.lineno} {frame.name}" for frame in frames]


def _says(error: BaseException) -> str:
    # A database's message quotes rows, a validation's quotes input: neither belongs into a log.
    if isinstance(error, DBAPIError):
        return str(getattr(error.orig, "sqlstate", None))
    return str(error)[:300] if isinstance(error, RuntimeError | TypeError | AttributeError | LookupError) else ""


def _validation(error: RequestValidationError) -> ApiError:
    """Which fields, and why; never what was sent, which may be a password."""
    found = []
    for item in error.errors():
        if item["type"] == "json_invalid":
            return ApiError(400, "MALFORMED_REQUEST", "The body is not valid JSON.")
        place = [str(part) for part in item["loc"]]
        field = ".".join(place[1:]) or place[0]
        found.append({"field": field, "in": place[0], "reason": _reason(item)})
    details: dict[str, Any] = {"field": found[0]["field"], "reason": found[0]["reason"]} if found else {}
    if len(found) > 1:
        details["errors"] = found[:20]
    return ApiError(422, "VALIDATION_ERROR", "The request is not valid.", details)


def _reason(item: Mapping[str, Any]) -> str:
    return str(item["msg"]).removeprefix("Value error, ")


async def _handle(request: Request, error: Exception) -> Json:
    request_id = str(request.scope.get("state", {}).get("request_id", ""))
    told = translated(error)
    if told is None:
        return failure(error, request_id)
    if told.status >= 500:
        log.warning("unavailable", error=type(error).__name__, trace=trace(error))
    return response(told, request_id)


def install(app: FastAPI) -> None:
    """Faults that nobody foresaw are answered by the outermost middleware, which knows the request's id as well."""
    for kind in (
        ApiError, RuleBroken, Unavailable, NotRunning, PoolTimeout, DBAPIError, ConnectionError, TimeoutError,
        RequestValidationError, HTTPException,
    ):  # fmt: skip
        app.add_exception_handler(kind, _handle)


_DESCRIPTIONS: Mapping[int, str] = {
    400: "Malformed: not JSON, not UTF-8, a key twice, or a required header missing",
    401: "Not signed in, or no longer",
    402: "What this costs could not be secured",
    403: "Not allowed",
    404: "No such object, or somebody else's",
    409: "Not possible in the present state",
    413: "The body is too large",
    422: "Understood but not valid",
    429: "Too many requests; see Retry-After",
    503: "A service is away; see Retry-After",
}


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """``responses=`` for a route or router, so that the schema says what may be answered."""
    return {status: {"model": ErrorEnvelope, "description": _DESCRIPTIONS[status]} for status in statuses}


COMMON = documented(400, 404, 409, 413, 422, 429, 503)
SIGNED_IN = COMMON | documented(401, 403)
ORDERS = SIGNED_IN | documented(402)
