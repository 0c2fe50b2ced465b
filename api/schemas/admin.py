"""What administrators send and see."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AwareDatetime, Field, field_validator, model_validator

from api.response_envelope import Amount, Instant, RequestModel, ResponseModel
from api.schemas.currencies import CurrencyField
from api.schemas.identity import Name
from api.schemas.subscriptions import SubscriptionOut
from db.models.payments import Refund
from workflows import names
from workflows.ports.refunds import RefundDestination
from workflows.rules.currencies import MAX_AMOUNT_MINOR
from workflows.rules.periods import Interval
from workflows.rules.pricing import CouponDuration, CouponKind

Id = Annotated[str, Field(min_length=1, max_length=100)]
Slug = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,48}[a-z0-9])?$", examples=["small-monthly"])]
Reason = Annotated[str, Field(min_length=1, max_length=500)]


class AdjustmentIn(RequestModel):
    """A correction of a wallet: positive adds, negative takes."""

    organization_id: Id
    amount_minor: int = Field(ge=-MAX_AMOUNT_MINOR, le=MAX_AMOUNT_MINOR, strict=True, examples=[1000])
    currency: CurrencyField
    reason: Reason

    @field_validator("amount_minor")
    @classmethod
    def _reject_zero(cls, value: int) -> int:
        if value == 0:
            raise ValueError("`amount_minor` must not be 0.")
        return value


class RefundIn(RequestModel):
    """Without ``amount_minor``: all that is left."""

    payment_id: Id
    amount_minor: int | None = Field(default=None, gt=0, le=MAX_AMOUNT_MINOR, strict=True)
    to: RefundDestination
    reason: Reason


class RefundOut(ResponseModel):
    """``status`` is ``pending`` until the gateway has decided, then ``succeeded`` or ``failed`` (``failure_code``)."""

    id: str
    payment_id: str
    status: str
    amount: Amount
    to: str
    reason: str
    failure_code: str | None
    workflow_id: str


def refund_out(row: Refund) -> RefundOut:
    return RefundOut(
        id=row.id,
        payment_id=row.payment_id,
        status=row.status,
        amount=Amount(amount_minor=row.amount_minor, currency=row.currency),
        to=row.destination,
        reason=row.reason,
        failure_code=row.failure_code,
        workflow_id=names.refund_workflow_id(row.id),
    )


class PriceIn(RequestModel):
    """From ``effective_from`` on; absent: from now on. Existing subscribers keep the price that they agreed to."""

    amount_minor: int = Field(ge=0, le=MAX_AMOUNT_MINOR, strict=True)
    currency: CurrencyField
    effective_from: AwareDatetime | None = None


class PriceOut(ResponseModel):
    id: str
    plan_id: str
    amount_minor: int
    currency: str
    effective_from: Instant


class ServiceIn(RequestModel):
    """``template`` is the folder of ``templates/services`` that its instances are made from."""

    slug: Slug
    name: Name
    description: str = Field(max_length=2000)
    category: Slug
    template: Slug
    version: str = Field(min_length=1, max_length=50)
    icon: str = Field(default="box", min_length=1, max_length=100)
    published: bool = False
    parameters_schema: dict[str, Any] = Field(default_factory=dict)


class DunningPolicyIn(RequestModel):
    """Overrides of the default calendar, in days from the first failure (retention: from the cancellation)."""

    retry_days: list[Annotated[int, Field(ge=1, le=90)]] | None = Field(default=None, max_length=10)
    cancel_day: int | None = Field(default=None, ge=1, le=180)
    retention_days: int | None = Field(default=None, ge=0, le=365)

    @model_validator(mode="after")
    def _validate_schedule(self) -> DunningPolicyIn:
        days = self.retry_days or []
        if days != sorted(set(days)):
            raise ValueError("`retry_days` must be strictly ascending.")
        if days and self.cancel_day is not None and self.cancel_day <= days[-1]:
            raise ValueError("`cancel_day` must be later than the last retry day.")
        return self


class PlanIn(RequestModel):
    service: Slug
    code: Slug
    name: Name
    interval: Interval
    trial_days: int = Field(default=0, ge=0, le=365)
    cpu_millicores: int = Field(gt=0, le=1_000_000)
    memory_mib: int = Field(gt=0, le=10_000_000)
    storage_gib: int = Field(gt=0, le=1_000_000)
    replicas: int = Field(default=1, gt=0, le=100)
    entitlements: dict[str, Any] = Field(default_factory=dict)
    dunning: DunningPolicyIn | None = None
    public: bool = True
    retired: bool = False
    prices: list[PriceIn] = Field(min_length=1, max_length=20)

    @field_validator("prices")
    @classmethod
    def _one_per_currency(cls, value: list[PriceIn]) -> list[PriceIn]:
        if len({price.currency for price in value}) != len(value):
            raise ValueError("Duplicate currency: send one price per currency.")
        return value


class CouponIn(RequestModel):
    code: str = Field(pattern=r"^[A-Z0-9][A-Z0-9_-]{2,49}$", examples=["WELCOME10"])
    kind: CouponKind
    percent: int | None = Field(default=None, ge=1, le=100)
    amount_minor: int | None = Field(default=None, gt=0, le=MAX_AMOUNT_MINOR, strict=True)
    currency: CurrencyField | None = None
    duration: CouponDuration
    periods: int | None = Field(default=None, ge=1, le=120)
    max_redemptions: int | None = Field(default=None, ge=1, le=1_000_000_000)
    expires_at: AwareDatetime | None = None

    @model_validator(mode="after")
    def _require_consistent_discount(self) -> CouponIn:
        percent, fixed = self.percent is not None, self.amount_minor is not None and self.currency is not None
        if (self.kind is CouponKind.PERCENT) != percent or (self.kind is CouponKind.FIXED) != fixed:
            raise ValueError(
                "A percent coupon requires `percent`; a fixed coupon requires `amount_minor` and `currency`."
            )
        if (self.duration is CouponDuration.PERIODS) != (self.periods is not None):
            raise ValueError("`periods` is required for, and only allowed with, `duration: periods`.")
        return self


class AdminUserOut(ResponseModel):
    id: str
    email: str
    name: str
    role: str
    email_verified_at: Instant | None
    disabled_at: Instant | None
    created_at: Instant


class AdminOrganizationOut(ResponseModel):
    id: str
    name: str
    currency: str
    country: str | None
    timezone: str
    created_at: Instant


class AdminSubscriptionOut(SubscriptionOut):
    organization_id: str


class AuditEntryOut(ResponseModel):
    id: int
    organization_id: str | None
    actor: str
    action: str
    object: str | None = Field(validation_alias="object_id")
    before: dict[str, Any] | None
    after: dict[str, Any] | None
    reason: str | None
    ip: str | None
    request_id: str | None
    at: Instant
