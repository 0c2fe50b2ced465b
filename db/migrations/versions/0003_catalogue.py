"""The catalogue: services, plans, prices that never change, coupons."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from db.rls import API_ROLE, IS_ADMINISTRATOR, OWNER_ROLE, WORKER_ROLE, enable_row_level_security, grant_public_read

revision = "0003_catalogue"
down_revision = "0002_audit"
branch_labels = None
depends_on = None

CATALOGUE = ("services", "plans", "prices", "coupons")

# The price that a subscription was ordered at stays readable: a new price is a new row.
PRICES_IMMUTABLE = """
CREATE FUNCTION reject_price_modification() RETURNS trigger LANGUAGE plpgsql
    SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
    RAISE EXCEPTION 'a price never changes: insert a new one' USING ERRCODE = 'restrict_violation';
END $$
"""
TRIGGERS = (
    "CREATE TRIGGER reject_price_modification BEFORE UPDATE OR DELETE ON prices"
    " FOR EACH ROW EXECUTE FUNCTION reject_price_modification()",
    "CREATE TRIGGER reject_price_truncation BEFORE TRUNCATE ON prices"
    " FOR EACH STATEMENT EXECUTE FUNCTION reject_price_modification()",
)


def catalogue_policies(table: str) -> list[str]:
    """Everybody reads; the worker and, through the API, administrators write."""
    return [
        *grant_public_read(table),
        f"GRANT INSERT, UPDATE ON {table} TO {API_ROLE}",
        f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY",
        f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY",
        f"CREATE POLICY {table}_api ON {table} FOR SELECT TO {API_ROLE} USING (true)",
        f"CREATE POLICY {table}_administrator ON {table} TO {API_ROLE} USING ({IS_ADMINISTRATOR})"
        f" WITH CHECK ({IS_ADMINISTRATOR})",
        f"CREATE POLICY {table}_worker ON {table} TO {WORKER_ROLE} USING (true) WITH CHECK (true)",
        f"CREATE POLICY {table}_owner ON {table} TO {OWNER_ROLE} USING (true) WITH CHECK (true)",
    ]


def upgrade() -> None:
    op.create_table(
        "services",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("slug", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("category", sa.Text(), nullable=False),
        sa.Column("template_directory", sa.Text(), nullable=False),
        sa.Column("version", sa.Text(), nullable=False),
        sa.Column("icon", sa.Text(), nullable=False),
        sa.Column("is_published", sa.Boolean(), server_default=sa.text("true"), nullable=False),
        sa.Column(
            "parameters_schema",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default=sa.text("'{}'::jsonb"),
            nullable=False,
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_services")),
        sa.UniqueConstraint("slug", name=op.f("uq_services_slug")),
    )
    op.create_table(
        "plans",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("service_id", sa.Text(), nullable=False),
        sa.Column("code", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("interval", sa.Text(), nullable=False),
        sa.Column("trial_days", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("cpu_millicores", sa.BigInteger(), nullable=False),
        sa.Column("memory_mib", sa.BigInteger(), nullable=False),
        sa.Column("storage_gib", sa.BigInteger(), nullable=False),
        sa.Column("replicas", sa.BigInteger(), server_default=sa.text("1"), nullable=False),
        sa.Column(
            "entitlements",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default=sa.text("'{}'::jsonb"),
            nullable=False,
        ),
        sa.Column("dunning_policy", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=True),
        sa.Column("is_public", sa.Boolean(), server_default=sa.text("true"), nullable=False),
        sa.Column("is_retired", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.CheckConstraint("\"interval\" IN ('month', 'year')", name=op.f("ck_plans_interval")),
        sa.CheckConstraint(
            "cpu_millicores > 0 AND memory_mib > 0 AND storage_gib > 0 AND replicas > 0",
            name=op.f("ck_plans_resources"),
        ),
        sa.CheckConstraint("trial_days >= 0", name=op.f("ck_plans_trial_days")),
        sa.ForeignKeyConstraint(["service_id"], ["services.id"], name=op.f("fk_plans_service_id_services")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_plans")),
        sa.UniqueConstraint("code", name=op.f("uq_plans_code")),
    )
    op.create_index(op.f("ix_plans_service_id"), "plans", ["service_id"], unique=False)
    op.create_table(
        "prices",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("plan_id", sa.Text(), nullable=False),
        sa.Column("currency", sa.Text(), nullable=False),
        sa.Column("amount_minor", sa.BigInteger(), nullable=False),
        sa.Column("effective_from", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("currency ~ '^[A-Z]{3}$'", name=op.f("ck_prices_currency")),
        sa.CheckConstraint("amount_minor >= 0", name=op.f("ck_prices_amount")),
        sa.ForeignKeyConstraint(["plan_id"], ["plans.id"], name=op.f("fk_prices_plan_id_plans")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_prices")),
        sa.UniqueConstraint(
            "plan_id", "currency", "effective_from", name=op.f("uq_prices_plan_id_currency_effective_from")
        ),
    )
    op.create_table(
        "coupons",
        sa.Column("code", sa.Text(), nullable=False),
        sa.Column("discount_type", sa.Text(), nullable=False),
        sa.Column("percent", sa.BigInteger(), nullable=True),
        sa.Column("amount_minor", sa.BigInteger(), nullable=True),
        sa.Column("currency", sa.Text(), nullable=True),
        sa.Column("duration", sa.Text(), nullable=False),
        sa.Column("duration_periods", sa.BigInteger(), nullable=True),
        sa.Column("max_redemptions", sa.BigInteger(), nullable=True),
        sa.Column("redemption_count", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("is_active", sa.Boolean(), server_default=sa.text("true"), nullable=False),
        sa.CheckConstraint(
            "(duration IN ('once', 'forever') AND duration_periods IS NULL)"
            " OR (duration = 'periods' AND duration_periods IS NOT NULL AND duration_periods > 0)",
            name=op.f("ck_coupons_duration"),
        ),
        sa.CheckConstraint(
            "(discount_type = 'percent' AND percent IS NOT NULL AND percent BETWEEN 1 AND 100"
            " AND amount_minor IS NULL AND currency IS NULL)"
            " OR (discount_type = 'fixed' AND percent IS NULL AND amount_minor IS NOT NULL AND amount_minor > 0"
            " AND currency IS NOT NULL)",
            name=op.f("ck_coupons_discount_type"),
        ),
        sa.CheckConstraint(
            "redemption_count >= 0 AND (max_redemptions IS NULL OR redemption_count <= max_redemptions)",
            name=op.f("ck_coupons_redemptions"),
        ),
        sa.PrimaryKeyConstraint("code", name=op.f("pk_coupons")),
    )
    op.create_table(
        "coupon_redemptions",
        sa.Column("subscription_id", sa.Text(), nullable=False),
        sa.Column("coupon_code", sa.Text(), nullable=False),
        sa.Column("organization_id", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.CheckConstraint("status IN ('reserved', 'redeemed', 'released')", name=op.f("ck_coupon_redemptions_status")),
        sa.ForeignKeyConstraint(
            ["coupon_code"], ["coupons.code"], name=op.f("fk_coupon_redemptions_coupon_code_coupons")
        ),
        sa.PrimaryKeyConstraint("subscription_id", name=op.f("pk_coupon_redemptions")),
    )
    op.create_index(op.f("ix_coupon_redemptions_coupon_code"), "coupon_redemptions", ["coupon_code"], unique=False)
    op.create_index(
        op.f("ix_coupon_redemptions_organization_id"), "coupon_redemptions", ["organization_id"], unique=False
    )

    for statement in (PRICES_IMMUTABLE, *TRIGGERS):
        op.execute(statement)
    for table in CATALOGUE:
        for statement in catalogue_policies(table):
            op.execute(statement)
    for statement in enable_row_level_security("coupon_redemptions"):
        op.execute(statement)


def downgrade() -> None:
    for table in ("coupon_redemptions", *reversed(CATALOGUE)):
        op.drop_table(table)
    op.execute("DROP FUNCTION reject_price_modification()")
