"""Subscriptions, their changes, and their timeline."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from db.rls import enable_row_level_security

revision = "0004_subscriptions"
down_revision = "0003_catalogue"
branch_labels = None
depends_on = None

TENANT_TABLES = ("subscriptions", "subscription_changes", "timeline_events")


def upgrade() -> None:
    op.create_table(
        "subscriptions",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("organization_id", sa.Text(), nullable=False),
        sa.Column("user_id", sa.Text(), nullable=False),
        sa.Column("plan_id", sa.Text(), nullable=False),
        sa.Column("price_id", sa.Text(), nullable=False),
        sa.Column("service_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=True),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("collection_method", sa.Text(), server_default=sa.text("'wallet_then_card'"), nullable=False),
        sa.Column("is_trial", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("currency", sa.Text(), nullable=False),
        sa.Column("price_minor", sa.BigInteger(), nullable=False),
        sa.Column("coupon_code", sa.Text(), nullable=True),
        sa.Column("coupon_remaining_periods", sa.BigInteger(), nullable=True),
        sa.Column("coupon_redeemed", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("timezone", sa.Text(), nullable=False),
        sa.Column("billing_anchor", sa.DateTime(timezone=True), nullable=True),
        sa.Column("current_period_start", sa.DateTime(timezone=True), nullable=True),
        sa.Column("current_period_end", sa.DateTime(timezone=True), nullable=True),
        sa.Column("trial_end", sa.DateTime(timezone=True), nullable=True),
        sa.Column("cancel_at_period_end", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("pending_plan_id", sa.Text(), nullable=True),
        sa.Column("past_due_since", sa.DateTime(timezone=True), nullable=True),
        sa.Column("cancelled_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("data_deletion_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("workflow_id", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint(
            "status IN ('pending', 'provisioning', 'trialing', 'active', 'past_due', 'suspended', 'paused',"
            " 'cancelled', 'terminated', 'failed', 'expired')",
            name=op.f("ck_subscriptions_status"),
        ),
        sa.CheckConstraint(
            "collection_method IN ('wallet', 'card', 'wallet_then_card')",
            name=op.f("ck_subscriptions_collection_method"),
        ),
        sa.CheckConstraint("currency ~ '^[A-Z]{3}$'", name=op.f("ck_subscriptions_currency")),
        sa.CheckConstraint("price_minor >= 0", name=op.f("ck_subscriptions_price")),
        sa.CheckConstraint("current_period_start <= current_period_end", name=op.f("ck_subscriptions_period")),
        sa.ForeignKeyConstraint(
            ["organization_id"], ["organizations.id"], name=op.f("fk_subscriptions_organization_id_organizations")
        ),
        sa.ForeignKeyConstraint(["pending_plan_id"], ["plans.id"], name=op.f("fk_subscriptions_pending_plan_id_plans")),
        sa.ForeignKeyConstraint(["plan_id"], ["plans.id"], name=op.f("fk_subscriptions_plan_id_plans")),
        sa.ForeignKeyConstraint(["price_id"], ["prices.id"], name=op.f("fk_subscriptions_price_id_prices")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_subscriptions")),
        sa.UniqueConstraint("organization_id", "id", name=op.f("uq_subscriptions_organization_id_id")),
    )
    # The coupon of an order is reserved before its subscription is inserted.
    op.create_foreign_key(
        "fk_coupon_redemptions_subscription",
        "coupon_redemptions",
        "subscriptions",
        ["organization_id", "subscription_id"],
        ["organization_id", "id"],
        deferrable=True,
        initially="DEFERRED",
    )
    op.create_index(
        "ix_subscriptions_past_due",
        "subscriptions",
        ["organization_id", "past_due_since"],
        unique=False,
        postgresql_where=sa.text("status IN ('past_due', 'suspended')"),
    )
    op.create_index(
        "ix_subscriptions_organization_id_created_at_id",
        "subscriptions",
        ["organization_id", "created_at", "id"],
        unique=False,
    )
    op.create_index(op.f("ix_subscriptions_service_id"), "subscriptions", ["service_id"], unique=False)
    op.create_index(op.f("ix_subscriptions_status"), "subscriptions", ["status"], unique=False)
    op.create_index(
        "uq_subscriptions_one_trial_per_service",
        "subscriptions",
        ["organization_id", "service_id"],
        unique=True,
        postgresql_where=sa.text("is_trial AND status NOT IN ('failed', 'expired')"),
    )
    op.create_table(
        "subscription_changes",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("organization_id", sa.Text(), nullable=False),
        sa.Column("subscription_id", sa.Text(), nullable=False),
        sa.Column("occurred_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("field", sa.Text(), nullable=False),
        sa.Column("before", sa.Text(), nullable=True),
        sa.Column("after", sa.Text(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("workflow_run_id", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["organization_id", "subscription_id"],
            ["subscriptions.organization_id", "subscriptions.id"],
            name="fk_subscription_changes_subscription",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_subscription_changes")),
    )
    op.create_index(
        op.f("ix_subscription_changes_subscription_id"), "subscription_changes", ["subscription_id"], unique=False
    )
    op.create_table(
        "timeline_events",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("organization_id", sa.Text(), nullable=False),
        sa.Column("subscription_id", sa.Text(), nullable=False),
        sa.Column("occurred_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("reference_id", sa.Text(), nullable=True),
        sa.Column("dedup_key", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["organization_id", "subscription_id"],
            ["subscriptions.organization_id", "subscriptions.id"],
            name="fk_timeline_events_subscription",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_timeline_events")),
        sa.UniqueConstraint("subscription_id", "dedup_key", name=op.f("uq_timeline_events_subscription_id_dedup_key")),
    )
    op.create_index(op.f("ix_timeline_events_subscription_id"), "timeline_events", ["subscription_id"], unique=False)
    for table in TENANT_TABLES:
        for statement in enable_row_level_security(table):
            op.execute(statement)


def downgrade() -> None:
    op.drop_constraint("fk_coupon_redemptions_subscription", "coupon_redemptions", type_="foreignkey")
    for table in reversed(TENANT_TABLES):
        op.drop_table(table)
