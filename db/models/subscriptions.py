"""Subscriptions, their changes and their timeline."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import CheckConstraint, ForeignKey, Identity, Index, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column

from db.base import Base, same_organization
from workflows.rules.funding import CollectionMethod


class Subscription(Base):
    """One subscription. Written by its ``Subscription`` workflow alone.

    ``price_id`` and ``price_minor`` are what was agreed; a price rise moves them on its declared date only.
    """

    __tablename__ = "subscriptions"
    __table_args__ = (
        Index("ix_subscriptions_created_at_id", "created_at", "id"),
        Index("ix_subscriptions_status_created_at_id", "status", "created_at", "id"),
        Index("ix_subscriptions_organization_id_created_at_id", "organization_id", "created_at", "id"),
        Index(
            "ix_subscriptions_past_due",
            "organization_id",
            "past_due_since",
            postgresql_where=text("status IN ('past_due', 'suspended')"),
        ),
        Index(
            "uq_subscriptions_one_trial_per_service",
            "organization_id",
            "service_id",
            unique=True,
            postgresql_where=text("is_trial AND (trial_end IS NOT NULL OR status IN ('pending', 'provisioning'))"),
        ),
        CheckConstraint(
            "status IN ('pending', 'provisioning', 'trialing', 'active', 'past_due', 'suspended', 'paused',"
            " 'cancelled', 'terminated', 'failed', 'expired')",
            name="status",
        ),
        CheckConstraint("collection_method IN ('wallet', 'card', 'wallet_then_card')", name="collection_method"),
        CheckConstraint("currency ~ '^[A-Z]{3}$'", name="currency"),
        CheckConstraint("price_minor >= 0", name="price"),
        CheckConstraint(
            "(current_period_start IS NULL) = (current_period_end IS NULL)"
            " AND current_period_start < current_period_end",
            name="period",
        ),
        CheckConstraint("coupon_remaining_periods >= 0", name="coupon_periods"),
        UniqueConstraint("organization_id", "id"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    organization_id: Mapped[str] = mapped_column(ForeignKey("organizations.id"))
    user_id: Mapped[str]
    plan_id: Mapped[str] = mapped_column(ForeignKey("plans.id"))
    price_id: Mapped[str] = mapped_column(ForeignKey("prices.id"))
    service_id: Mapped[str] = mapped_column(index=True)
    name: Mapped[str | None]
    status: Mapped[str]
    collection_method: Mapped[str] = mapped_column(
        default=CollectionMethod.WALLET_THEN_CARD.value,
        server_default=text(f"'{CollectionMethod.WALLET_THEN_CARD.value}'"),
    )
    is_trial: Mapped[bool] = mapped_column(default=False, server_default=text("false"))
    currency: Mapped[str]
    price_minor: Mapped[int]
    coupon_code: Mapped[str | None]
    coupon_remaining_periods: Mapped[int | None]
    coupon_redeemed: Mapped[bool] = mapped_column(default=False, server_default=text("false"))
    timezone: Mapped[str]
    billing_anchor: Mapped[datetime | None]
    current_period_start: Mapped[datetime | None]
    current_period_end: Mapped[datetime | None]
    trial_end: Mapped[datetime | None]
    cancel_at_period_end: Mapped[bool] = mapped_column(default=False, server_default=text("false"))
    pending_plan_id: Mapped[str | None] = mapped_column(ForeignKey("plans.id"))
    past_due_since: Mapped[datetime | None]
    cancelled_at: Mapped[datetime | None]
    data_deletion_at: Mapped[datetime | None]
    workflow_id: Mapped[str]
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]


class SubscriptionChange(Base):
    """Who changed what, from what, to what, why, and in which workflow run."""

    __tablename__ = "subscription_changes"
    __table_args__ = (same_organization("subscription_changes", "subscription_id", "subscriptions"),)

    id: Mapped[int] = mapped_column(Identity(always=True), primary_key=True)
    organization_id: Mapped[str]
    subscription_id: Mapped[str] = mapped_column(index=True)
    occurred_at: Mapped[datetime]
    actor: Mapped[str]
    field: Mapped[str]
    before: Mapped[str | None]
    after: Mapped[str | None]
    reason: Mapped[str]
    workflow_run_id: Mapped[str]


class TimelineEvent(Base):
    """One line of a subscription's timeline. ``dedup_key`` makes a repeated activity write it once."""

    __tablename__ = "timeline_events"
    __table_args__ = (
        UniqueConstraint("subscription_id", "dedup_key"),
        same_organization("timeline_events", "subscription_id", "subscriptions"),
    )

    id: Mapped[int] = mapped_column(Identity(always=True), primary_key=True)
    organization_id: Mapped[str]
    subscription_id: Mapped[str] = mapped_column(index=True)
    occurred_at: Mapped[datetime]
    kind: Mapped[str]
    message: Mapped[str]
    reference_id: Mapped[str | None]
    dedup_key: Mapped[str]
