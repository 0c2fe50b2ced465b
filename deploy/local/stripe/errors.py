"""The refusals of the Stripe API, in the shape that its client libraries parse."""

from __future__ import annotations

from typing import Any


class StripeError(Exception):
    """A request that fails with an error response.

    Args:
        keep: False rolls back every change of the request and releases its idempotency key (a validation error: the
            client may correct its parameters and reuse the key). True keeps both (a declined card leaves a failed
            charge, and the same key must return the same error).
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
        keep: bool = False,
        extra: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.code = code
        self.param = param
        self.commit = keep
        self.extra = extra or {}

    def body(self) -> dict[str, Any]:
        error: dict[str, Any] = {"message": self.message, "type": self.kind}
        if self.code is not None:
            error["code"] = self.code
            error["doc_url"] = "https://docs.stripe.com/error-codes/" + self.code.replace("_", "-")
        if self.param is not None:
            error["param"] = self.param
        return {"error": {**error, **self.extra}}


def missing_parameter(name: str) -> StripeError:
    return StripeError(400, f"Missing required param: {name}.", code="parameter_missing", param=name)


def invalid_parameter(name: str, message: str) -> StripeError:
    return StripeError(400, message, param=name)


def resource_missing(kind: str, identifier: str, param: str = "id") -> StripeError:
    noun = {"payment_method": "PaymentMethod", "setup_intent": "setupintent"}.get(kind, kind)
    return StripeError(404, f"No such {noun}: '{identifier}'", code="resource_missing", param=param)


def unexpected_state(code: str, message: str, **extra: Any) -> StripeError:
    """A request that the object's present state forbids; like Stripe it counts as executed for its key."""
    return StripeError(400, message, code=code, keep=True, extra=extra)
