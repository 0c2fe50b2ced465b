"""Kubernetes' `Status` objects for everything that is refused, word for word where clients read them."""

from __future__ import annotations

from typing import Any

Cause = dict[str, str]


class ApiError(Exception):
    """A refusal. `code` is the HTTP status; `reason`, `details` and the message are what the API would send."""

    def __init__(
        self,
        code: int,
        reason: str,
        message: str,
        *,
        details: dict[str, Any] | None = None,
        causes: list[Cause] | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message
        self.details = dict(details or {})
        if causes:
            self.details["causes"] = causes
        if retry_after is not None:
            self.details["retryAfterSeconds"] = retry_after
        self.retry_after = retry_after
        # Some refusals carry empty details.
        self.bare = False

    def status(self) -> dict[str, Any]:
        """The `Status` object."""
        body: dict[str, Any] = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
        }
        if self.reason:
            body["reason"] = self.reason
        if self.details or self.bare:
            body["details"] = self.details
        body["code"] = self.code
        return body


def _details(resource: Any, name: str) -> dict[str, Any]:
    out: dict[str, Any] = {}
    if name:
        out["name"] = name
    if resource.group:
        out["group"] = resource.group
    out["kind"] = resource.plural
    return out


def not_found(resource: Any, name: str) -> ApiError:
    return ApiError(404, "NotFound", f'{resource.qualified} "{name}" not found', details=_details(resource, name))


def _bare(problem: ApiError) -> ApiError:
    problem.bare = True
    return problem


def no_such_path() -> ApiError:
    return _bare(ApiError(404, "NotFound", "the server could not find the requested resource"))


def already_exists(resource: Any, name: str) -> ApiError:
    return ApiError(
        409, "AlreadyExists", f'{resource.qualified} "{name}" already exists', details=_details(resource, name)
    )


def conflict(resource: Any, name: str, why: str) -> ApiError:
    return ApiError(
        409,
        "Conflict",
        f'Operation cannot be fulfilled on {resource.qualified} "{name}": {why}',
        details=_details(resource, name),
    )


MODIFIED = "the object has been modified; please apply your changes to the latest version and try again"


def forbidden(resource: Any, name: str, why: str, causes: list[Cause] | None = None) -> ApiError:
    return ApiError(
        403,
        "Forbidden",
        f'{resource.qualified} "{name}" is forbidden: {why}',
        details=_details(resource, name),
        causes=causes,
    )


def bad_request(message: str) -> ApiError:
    return ApiError(400, "BadRequest", message)


def unauthorized() -> ApiError:
    return ApiError(401, "Unauthorized", "Unauthorized")


def method_not_allowed() -> ApiError:
    return _bare(ApiError(405, "MethodNotAllowed", "the server does not allow this method on the requested resource"))


def unsupported_patch() -> ApiError:
    return _bare(ApiError(415, "UnsupportedMediaType", "415: Unsupported Media Type"))


def unpatchable() -> ApiError:
    """A JSON patch that does not apply."""
    return _bare(ApiError(422, "Invalid", "the server rejected our request due to an error in our request"))


def unsupported_media(accepted: str) -> ApiError:
    return ApiError(
        415,
        "UnsupportedMediaType",
        f"the body of the request was in an unknown format - accepted media types include: {accepted}",
    )


def not_acceptable() -> ApiError:
    return ApiError(
        406,
        "NotAcceptable",
        "only the following media types are accepted: application/json, application/yaml",
    )


def expired(asked: int, oldest: int) -> ApiError:
    return ApiError(410, "Expired", f"too old resource version: {asked} ({oldest})")


def too_many(retry_after: int = 1) -> ApiError:
    return ApiError(429, "TooManyRequests", "Too many requests, please try again later.", retry_after=retry_after)


def internal(message: str) -> ApiError:
    return ApiError(500, "InternalError", f"Internal error occurred: {message}", causes=[{"message": message}])


def invalid(kind: Any, name: str, problems: list[Cause]) -> ApiError:
    """422. `problems` are causes whose message is the part after the field (`Required value`)."""
    texts = [f"{p['field']}: {p['message']}" for p in problems]
    said = texts[0] if len(texts) == 1 else "[" + ", ".join(texts) + "]"
    where = f"{kind.kind}.{kind.group}" if kind.group else kind.kind
    details: dict[str, Any] = {"name": name} if name else {}
    if kind.group:
        details["group"] = kind.group
    details["kind"] = kind.kind
    return ApiError(422, "Invalid", f'{where} "{name}" is invalid: {said}', details=details, causes=problems)


def required(field: str, why: str = "") -> Cause:
    return {"reason": "FieldValueRequired", "message": "Required value" + (f": {why}" if why else ""), "field": field}


def _quoted(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, dict | list):
        import json

        return json.dumps(value, separators=(",", ":"))
    return str(value)


def wrong(field: str, value: Any, why: str) -> Cause:
    return {"reason": "FieldValueInvalid", "message": f"Invalid value: {_quoted(value)}: {why}", "field": field}


def unsupported(field: str, value: Any, allowed: tuple[str, ...]) -> Cause:
    said = ", ".join(f'"{a}"' for a in allowed)
    return {
        "reason": "FieldValueNotSupported",
        "message": f"Unsupported value: {_quoted(value)}: supported values: {said}",
        "field": field,
    }


def duplicate(field: str, value: Any) -> Cause:
    return {"reason": "FieldValueDuplicate", "message": f"Duplicate value: {_quoted(value)}", "field": field}


def not_allowed(field: str, why: str) -> Cause:
    return {"reason": "FieldValueForbidden", "message": f"Forbidden: {why}", "field": field}


def invalid_options(kind: str, problems: list[Cause]) -> ApiError:
    """422 for query parameters."""
    texts = "; ".join(f"{p['field']}: {p['message']}" for p in problems)
    return ApiError(
        422,
        "Invalid",
        f'{kind}.meta.k8s.io "" is invalid: {texts}',
        details={"group": "meta.k8s.io", "kind": kind},
        causes=problems,
    )
