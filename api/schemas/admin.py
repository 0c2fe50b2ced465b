"""What administrators send and see."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AwareDatetime, Field, field_validator, model_validator

from api.envelope import Amount, Body, Instant, Schema
from api.schemas.billing import Currency
from api.schemas.identity import Name
from api.schemas.subscriptions import SubscriptionOut
from workflows.ports.payments import RefundTo
from workflows.rules.currencies import LARGEST, MINIMUM_CHARGE
from workflows.rules.periods import Interval
from workflows.rules.pricing import CouponDuration, CouponKind

Id = Annotated[str, Field(min_length=1, max_length=100)]
Slug = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,48}[a-z0-9])?$", examples=["small-monthly"])]
Reason = Annotated[str, Field(min_length=1, max_length=500)]


class AdjustmentIn(Body):
    """A correction of a wallet: positive adds, negative takes."""

    organization_id: Id
    amount_minor: int = Field(ge=-LARGEST, le=LARGEST, strict=True, examples=[1000])
    currency: str = Currency
    reason: Reason

    @field_validator("amount_minor")
    @classmethod
    def _something(cls, value: int) -> int:
        if value == 0:
            raise ValueError("An adjustment of nothing is none.")
        return value


class RefundIn(Body):
    """Without ``amount_minor``: all that is left."""

    payment_id: Id
    amount_minor: int | None = Field(default=None, gt=0, le=LARGEST, strict=True)
    to: RefundTo
    reason: Reason


class RefundOut(Schema):
    id: str
    payment_id: str
    status: str
    amount: Amount
    to: str
    reason: str
    workflow_id: str


class PriceIn(Body):
    """From ``effective_from`` on; absent: from now on. Existing subscribers keep the price that they agreed to."""

    amount_minor: int = Field(ge=0, le=LARGEST, strict=True)
    currency: str = Currency
    effective_from: AwareDatetime | None = None

    @field_validator("currency")
    @classmethod
    def _taken(cls, value: str) -> str:
        if value not in MINIMUM_CHARGE:
            raise ValueError("This currency is not taken.")
        return value


class PriceOut(Schema):
    id: str
    plan_id: str
    amount_minor: int
    currency: str
    effective_from: Instant


class ServiceIn(Body):
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


class Dunning(Body):
    """Overrides of the default calendar, in days from the first failure (retention: from the cancellation)."""

    retry_days: list[Annotated[int, Field(ge=1, le=90)]] | None = Field(default=None, max_length=10)
    cancel_day: int | None = Field(default=None, ge=1, le=180)
    retention_days: int | None = Field(default=None, ge=0, le=365)

    @model_validator(mode="after")
    def _in_order(self) -> Dunning:
        days = self.retry_days or []
        if days != sorted(set(days)):
            raise ValueError("Retries are on ascending days.")
        if days and self.cancel_day is not None and self.cancel_day <= days[-1]:
            raise ValueError("The cancellation comes after the last retry.")
        return self


class PlanIn(Body):
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
    dunning: Dunning | None = None
    public: bool = True
    retired: bool = False
    prices: list[PriceIn] = Field(min_length=1, max_length=20)

    @field_validator("prices")
    @classmethod
    def _one_per_currency(cls, value: list[PriceIn]) -> list[PriceIn]:
        if len({price.currency for price in value}) != len(value):
            raise ValueError("One price per currency.")
        return value


class CouponIn(Body):
    code: str = Field(pattern=r"^[A-Z0-9][A-Z0-9_-]{2,49}$", examples=["WELCOME10"])
    kind: CouponKind
    percent: int | None = Field(default=None, ge=1, le=100)
    amount_minor: int | None = Field(default=None, gt=0, le=LARGEST, strict=True)
    currency: Annotated[str, Currency] | None = None
    duration: CouponDuration
    periods: int | None = Field(default=None, ge=1, le=120)
    max_redemptions: int | None = Field(default=None, ge=1, le=1_000_000_000)
    expires_at: AwareDatetime | None = None

    @model_validator(mode="after")
    def _says_what_it_reduces(self) -> CouponIn:
        percent, fixed = self.percent is not None, self.amount_minor is not None and self.currency is not None
        if (self.kind is CouponKind.PERCENT) != percent or (self.kind is CouponKind.FIXED) != fixed:
            raise ValueError("A percent coupon has `percent`, a fixed one `amount_minor` and `currency`.")
        if (self.duration is CouponDuration.PERIODS) != (self.periods is not None):
            raise ValueError("`periods` belongs to the duration `periods`.")
        return self


class UserRow(Schema):
    id: str
    email: str
    name: str
    role: str
    email_verified_at: Instant | None
    disabled_at: Instant | None
    created_at: Instant


class OrganizationRow(Schema):
    id: str
    name: str
    currency: str
    country: str | None
    timezone: str
    created_at: Instant


class SubscriptionRowOut(SubscriptionOut):
    organization_id: str


class AuditRow(Schema):
    id: int
    organization_id: str | None
    actor: str
    action: str
    object: str | None
    before: dict[str, Any] | None
    after: dict[str, Any] | None
    ip: str | None
    request_id: str | None
    at: Instant
