"""The one exception of the rules, and the codes that it carries."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType


class ErrorCode(StrEnum):
    """Stable machine-readable reasons. They are part of the public API and the ``type`` of an ``ApplicationError``."""

    VALIDATION_ERROR = "VALIDATION_ERROR"
    NOT_FOUND = "NOT_FOUND"
    CONFLICT = "CONFLICT"
    ILLEGAL_MOVE = "ILLEGAL_MOVE"
    INSUFFICIENT_FUNDS = "INSUFFICIENT_FUNDS"
    PAYMENT_DECLINED = "PAYMENT_DECLINED"
    PAYMENT_METHOD_IN_USE = "PAYMENT_METHOD_IN_USE"
    EMAIL_NOT_VERIFIED = "EMAIL_NOT_VERIFIED"
    PLAN_UNAVAILABLE = "PLAN_UNAVAILABLE"
    COUPON_INVALID = "COUPON_INVALID"
    TRIAL_ALREADY_USED = "TRIAL_ALREADY_USED"
    DUPLICATE_SUBSCRIPTION = "DUPLICATE_SUBSCRIPTION"
    CURRENCY_MISMATCH = "CURRENCY_MISMATCH"
    AMOUNT_TOO_SMALL = "AMOUNT_TOO_SMALL"
    REFUND_EXCEEDS_PAYMENT = "REFUND_EXCEEDS_PAYMENT"
    PROVISIONING_FAILED = "PROVISIONING_FAILED"
    CLEANUP_PENDING = "CLEANUP_PENDING"
    RESIZE_FAILED = "RESIZE_FAILED"


_NO_DETAILS: Mapping[str, str] = MappingProxyType({})

RETRYABLE: Mapping[str, str] = MappingProxyType({"retryable": "true"})
"""Details of a refusal that passes, for instance while another command is in progress: the same request may succeed."""


class RuleViolation(Exception):
    """A business rule refused the request and nothing was changed.

    Attributes:
        code: Stable reason, part of the public API.
        message: One sentence for a person.
        details: Further machine-readable facts; amounts are integers in minor units, other values strings.
    """

    def __init__(self, code: ErrorCode, message: str, details: Mapping[str, str | int] = _NO_DETAILS) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.details = details

    @property
    def is_retryable(self) -> bool:
        """Whether the same request may succeed later, with nothing else changed by the caller."""
        return self.details.items() >= RETRYABLE.items()
