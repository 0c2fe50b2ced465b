"""What is sold: services, their plans, prices that never change, and coupons."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import CheckConstraint, ForeignKey, UniqueConstraint, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column, relationship

from db.base import Base, same_organization


class Service(Base):
    """An application that can be ordered. ``id`` derives from ``slug``, so that seeding again finds the same row.

    ``template`` names the folder under ``templates/services`` that its instances are rendered from;
    ``parameters_schema`` is the JSON Schema of what an order may say about its instance.
    """

    __tablename__ = "services"

    id: Mapped[str] = mapped_column(primary_key=True)
    slug: Mapped[str] = mapped_column(unique=True)
    name: Mapped[str]
    description: Mapped[str]
    category: Mapped[str]
    template_directory: Mapped[str]
    version: Mapped[str]
    icon: Mapped[str]
    is_published: Mapped[bool] = mapped_column(default=True, server_default=text("true"))
    parameters_schema: Mapped[dict[str, Any]] = mapped_column(JSONB, server_default=text("'{}'::jsonb"))
    plans: Mapped[list[Plan]] = relationship(lazy="raise", viewonly=True, back_populates="service")


class Plan(Base):
    """What a service costs to run in one size. ``id`` derives from ``code``.

    ``public`` plans are listed; ``retired`` ones keep their subscribers and take no new ones. ``dunning`` overrides
    the default calendar: ``{"retry_days": [1, 3], "cancel_day": 14, "retention_days": 30}``, each key optional.
    """

    __tablename__ = "plans"
    __table_args__ = (
        CheckConstraint("\"interval\" IN ('month', 'year')", name="interval"),
        CheckConstraint("trial_days >= 0", name="trial_days"),
        CheckConstraint("cpu_millicores > 0 AND memory_mib > 0 AND storage_gib > 0 AND replicas > 0", name="resources"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    service_id: Mapped[str] = mapped_column(ForeignKey("services.id"), index=True)
    code: Mapped[str] = mapped_column(unique=True)
    name: Mapped[str]
    interval: Mapped[str]
    trial_days: Mapped[int] = mapped_column(default=0, server_default=text("0"))
    cpu_millicores: Mapped[int]
    memory_mib: Mapped[int]
    storage_gib: Mapped[int]
    replicas: Mapped[int] = mapped_column(default=1, server_default=text("1"))
    entitlements: Mapped[dict[str, Any]] = mapped_column(JSONB, server_default=text("'{}'::jsonb"))
    dunning_policy: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    is_public: Mapped[bool] = mapped_column(default=True, server_default=text("true"))
    is_retired: Mapped[bool] = mapped_column(default=False, server_default=text("false"))
    service: Mapped[Service] = relationship(lazy="raise", viewonly=True, back_populates="plans")
    prices: Mapped[list[Price]] = relationship(
        lazy="raise", viewonly=True, order_by="(Price.currency, Price.effective_from)"
    )


class Price(Base):
    """What one interval of a plan costs from an instant on. Never updated, never deleted: a change is a new row."""

    __tablename__ = "prices"
    __table_args__ = (
        UniqueConstraint("plan_id", "currency", "effective_from"),
        CheckConstraint("amount_minor >= 0", name="amount"),
        CheckConstraint("currency ~ '^[A-Z]{3}$'", name="currency"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    plan_id: Mapped[str] = mapped_column(ForeignKey("plans.id"))
    currency: Mapped[str]
    amount_minor: Mapped[int]
    effective_from: Mapped[datetime]


class Coupon(Base):
    """A reduction. ``redeemed`` counts reserved and used redemptions; ``periods`` belongs to duration ``periods``."""

    __tablename__ = "coupons"
    __table_args__ = (
        CheckConstraint(
            "(discount_type = 'percent' AND percent IS NOT NULL AND percent BETWEEN 1 AND 100"
            " AND amount_minor IS NULL AND currency IS NULL)"
            " OR (discount_type = 'fixed' AND percent IS NULL AND amount_minor IS NOT NULL AND amount_minor > 0"
            " AND currency IS NOT NULL)",
            name="discount_type",
        ),
        CheckConstraint(
            "(duration IN ('once', 'forever') AND duration_periods IS NULL)"
            " OR (duration = 'periods' AND duration_periods IS NOT NULL AND duration_periods > 0)",
            name="duration",
        ),
        CheckConstraint(
            "redemption_count >= 0 AND (max_redemptions IS NULL OR redemption_count <= max_redemptions)",
            name="redemptions",
        ),
    )

    code: Mapped[str] = mapped_column(primary_key=True)
    discount_type: Mapped[str]
    percent: Mapped[int | None]
    amount_minor: Mapped[int | None]
    currency: Mapped[str | None]
    duration: Mapped[str]
    duration_periods: Mapped[int | None]
    max_redemptions: Mapped[int | None]
    redemption_count: Mapped[int] = mapped_column(default=0, server_default=text("0"))
    expires_at: Mapped[datetime | None]
    is_active: Mapped[bool] = mapped_column(default=True, server_default=text("true"))


class CouponRedemption(Base):
    """One subscription's use of a coupon: ``reserved`` with the order, then ``redeemed`` or ``released`` once."""

    __tablename__ = "coupon_redemptions"
    __table_args__ = (
        CheckConstraint("status IN ('reserved', 'redeemed', 'released')", name="status"),
        same_organization(
            "coupon_redemptions", "subscription_id", "subscriptions", deferrable=True, initially="DEFERRED"
        ),
    )

    subscription_id: Mapped[str] = mapped_column(primary_key=True)
    coupon_code: Mapped[str] = mapped_column(ForeignKey("coupons.code"), index=True)
    organization_id: Mapped[str] = mapped_column(index=True)
    status: Mapped[str]
