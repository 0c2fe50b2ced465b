"""Invoices with their lines and numbers, and credit that is held for them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from db.rls import WORKER_ROLE, enable_row_level_security

revision = "0005_invoices"
down_revision = "0004_subscriptions"
branch_labels = None
depends_on = None

TENANT_TABLES = ("invoices", "invoice_lines", "holds")

# A trigger's search_path is fixed: a temporary table must not shadow a table.
TRIGGER_FUNCTION = "RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog, public, pg_temp"

# Of a finalized invoice only status, the amount due and the refunded amount change, and a date that was not set is set.
# No invoice moves to another organization or subscription.
INVOICES_IMMUTABLE = f"""
CREATE FUNCTION reject_finalized_invoice_change() {TRIGGER_FUNCTION} AS $$
BEGIN
    IF (OLD.id, OLD.organization_id, OLD.subscription_id, OLD.billing_reason, OLD.created_at)
        IS DISTINCT FROM (NEW.id, NEW.organization_id, NEW.subscription_id, NEW.billing_reason, NEW.created_at) THEN
        RAISE EXCEPTION 'invoice % keeps its owner and its creation', OLD.id USING ERRCODE = 'restrict_violation';
    END IF;
    IF (OLD.paid_at, OLD.voided_at, OLD.plan_change_id) IS DISTINCT FROM (
        CASE WHEN OLD.paid_at IS NOT NULL THEN NEW.paid_at END,
        CASE WHEN OLD.voided_at IS NOT NULL THEN NEW.voided_at END,
        CASE WHEN OLD.plan_change_id IS NOT NULL OR OLD.number IS NOT NULL THEN NEW.plan_change_id END
    ) THEN
        RAISE EXCEPTION 'invoice % keeps its dates and its plan change', OLD.id USING ERRCODE = 'restrict_violation';
    END IF;
    IF OLD.number IS NOT NULL AND (
        OLD.number, OLD.finalized_at, OLD.currency, OLD.subtotal_minor, OLD.tax_minor, OLD.total_minor,
        OLD.period_start, OLD.period_end, OLD.explanation
    ) IS DISTINCT FROM (
        NEW.number, NEW.finalized_at, NEW.currency, NEW.subtotal_minor, NEW.tax_minor, NEW.total_minor,
        NEW.period_start, NEW.period_end, NEW.explanation
    ) THEN
        RAISE EXCEPTION 'invoice % is final', OLD.number USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NEW;
END $$
"""

REJECT_INVOICE_DELETION = f"""
CREATE FUNCTION reject_finalized_invoice_deletion() {TRIGGER_FUNCTION} AS $$
BEGIN
    IF OLD.number IS NOT NULL THEN
        RAISE EXCEPTION 'invoice % is final', OLD.number USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN OLD;
END $$
"""

# The lines of an invoice are inserted with it: by the transaction that wrote the invoice, or while it is a draft. A
# line of an earlier transaction shows that the present one did not write the invoice but updated it.
REJECT_LINE_CHANGE = f"""
CREATE FUNCTION reject_finalized_line_change() {TRIGGER_FUNCTION} AS $$
BEGIN
    IF TG_OP <> 'INSERT' AND EXISTS (
        SELECT FROM invoices WHERE id IN (OLD.invoice_id, NEW.invoice_id) AND number IS NOT NULL
    ) OR TG_OP = 'INSERT' AND EXISTS (
        SELECT FROM invoices i WHERE i.id = NEW.invoice_id AND i.number IS NOT NULL
            AND (i.xmin <> pg_current_xact_id()::xid OR EXISTS (
                SELECT FROM invoice_lines l WHERE l.invoice_id = i.id AND l.xmin <> pg_current_xact_id()::xid))
    ) THEN
        RAISE EXCEPTION 'invoice % is final', COALESCE(OLD.invoice_id, NEW.invoice_id)
            USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN COALESCE(NEW, OLD);
END $$
"""

TRIGGERS = (
    "CREATE TRIGGER final BEFORE UPDATE ON invoices FOR EACH ROW EXECUTE FUNCTION reject_finalized_invoice_change()",
    "CREATE TRIGGER not_deleted BEFORE DELETE ON invoices"
    " FOR EACH ROW EXECUTE FUNCTION reject_finalized_invoice_deletion()",
    "CREATE TRIGGER final BEFORE INSERT OR UPDATE OR DELETE ON invoice_lines"
    " FOR EACH ROW EXECUTE FUNCTION reject_finalized_line_change()",
)


def upgrade() -> None:
    op.create_table(
        "invoices",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("organization_id", sa.Text(), nullable=False),
        sa.Column("subscription_id", sa.Text(), nullable=False),
        sa.Column("billing_reason", sa.Text(), nullable=False),
        sa.Column("number", sa.Text(), nullable=True),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("currency", sa.Text(), nullable=False),
        sa.Column("period_start", sa.DateTime(timezone=True), nullable=False),
        sa.Column("period_end", sa.DateTime(timezone=True), nullable=False),
        sa.Column("subtotal_minor", sa.BigInteger(), nullable=False),
        sa.Column("tax_minor", sa.BigInteger(), nullable=False),
        sa.Column("total_minor", sa.BigInteger(), nullable=False),
        sa.Column("amount_due_minor", sa.BigInteger(), nullable=False),
        sa.Column("refunded_minor", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("finalized_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("paid_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("voided_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("plan_change_id", sa.Text(), nullable=True),
        sa.Column(
            "explanation",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default=sa.text("'{}'::jsonb"),
            nullable=False,
        ),
        sa.CheckConstraint("(status = 'draft') <= (number IS NULL)", name=op.f("ck_invoices_draft_has_no_number")),
        sa.CheckConstraint(
            "status IN ('draft', 'open', 'paid', 'void', 'uncollectible')", name=op.f("ck_invoices_status")
        ),
        sa.CheckConstraint(
            "billing_reason IN ('order', 'renewal', 'trial_end', 'resumption', 'interval_change', 'plan_change')",
            name=op.f("ck_invoices_billing_reason"),
        ),
        sa.CheckConstraint("currency ~ '^[A-Z]{3}$'", name=op.f("ck_invoices_currency")),
        sa.CheckConstraint("period_start <= period_end", name=op.f("ck_invoices_period")),
        sa.CheckConstraint(
            "subtotal_minor >= 0 AND tax_minor >= 0 AND total_minor = subtotal_minor + tax_minor",
            name=op.f("ck_invoices_total"),
        ),
        sa.CheckConstraint(
            "status IN ('draft', 'void') OR (number IS NOT NULL AND finalized_at IS NOT NULL)",
            name=op.f("ck_invoices_finalized_has_number"),
        ),
        sa.CheckConstraint(
            "status <> 'paid' OR (amount_due_minor = 0 AND paid_at IS NOT NULL)",
            name=op.f("ck_invoices_paid_has_nothing_due"),
        ),
        sa.CheckConstraint(
            "total_minor >= 0 AND amount_due_minor BETWEEN 0 AND total_minor", name=op.f("ck_invoices_valid_amounts")
        ),
        sa.ForeignKeyConstraint(
            ["organization_id", "subscription_id"],
            ["subscriptions.organization_id", "subscriptions.id"],
            name="fk_invoices_subscription",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_invoices")),
        sa.UniqueConstraint("number", name=op.f("uq_invoices_number")),
        sa.UniqueConstraint("plan_change_id", name=op.f("uq_invoices_plan_change_id")),
        sa.UniqueConstraint("organization_id", "id", name=op.f("uq_invoices_organization_id_id")),
        sa.UniqueConstraint("organization_id", "id", "currency", name=op.f("uq_invoices_organization_id_id_currency")),
        sa.CheckConstraint("refunded_minor BETWEEN 0 AND total_minor", name=op.f("ck_invoices_refunded")),
    )
    op.create_index(
        "ix_invoices_organization_id_created_at_id", "invoices", ["organization_id", "created_at", "id"], unique=False
    )
    op.create_index(op.f("ix_invoices_subscription_id"), "invoices", ["subscription_id"], unique=False)
    op.create_index(
        "uq_invoices_subscription_id_period_start",
        "invoices",
        ["subscription_id", "period_start"],
        unique=True,
        postgresql_where=sa.text("billing_reason <> 'plan_change' AND status <> 'void'"),
    )
    op.create_table(
        "invoice_lines",
        sa.Column("invoice_id", sa.Text(), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("organization_id", sa.Text(), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("quantity", sa.BigInteger(), nullable=False),
        sa.Column("unit_price_minor", sa.BigInteger(), nullable=False),
        sa.Column("discount_minor", sa.BigInteger(), nullable=False),
        sa.Column("tax_minor", sa.BigInteger(), nullable=False),
        sa.Column("amount_minor", sa.BigInteger(), nullable=False),
        sa.Column("price_id", sa.Text(), nullable=True),
        sa.Column("period_start", sa.DateTime(timezone=True), nullable=False),
        sa.Column("period_end", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["organization_id", "invoice_id"],
            ["invoices.organization_id", "invoices.id"],
            name="fk_invoice_lines_invoice",
        ),
        sa.PrimaryKeyConstraint("invoice_id", "position", name=op.f("pk_invoice_lines")),
    )
    op.create_table(
        "invoice_number_sequences",
        sa.Column("issuer", sa.Text(), nullable=False),
        sa.Column("year", sa.BigInteger(), nullable=False),
        sa.Column("last_number", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("issuer", "year", name=op.f("pk_invoice_number_sequences")),
    )
    op.create_table(
        "holds",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("organization_id", sa.Text(), nullable=False),
        sa.Column("subscription_id", sa.Text(), nullable=False),
        sa.Column("dedup_key", sa.Text(), nullable=False),
        sa.Column("currency", sa.Text(), nullable=False),
        sa.Column("wallet_minor", sa.BigInteger(), nullable=False),
        sa.Column("promotional_minor", sa.BigInteger(), nullable=False),
        sa.Column("card_minor", sa.BigInteger(), nullable=False),
        sa.Column("payment_methods", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.CheckConstraint(
            "wallet_minor >= 0 AND promotional_minor >= 0 AND card_minor >= 0", name=op.f("ck_holds_valid_amounts")
        ),
        sa.CheckConstraint("status IN ('held', 'captured', 'released')", name=op.f("ck_holds_status")),
        sa.CheckConstraint("currency ~ '^[A-Z]{3}$'", name=op.f("ck_holds_currency")),
        sa.ForeignKeyConstraint(
            ["organization_id", "subscription_id"],
            ["subscriptions.organization_id", "subscriptions.id"],
            name="fk_holds_subscription",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_holds")),
        sa.UniqueConstraint("subscription_id", "dedup_key", name=op.f("uq_holds_subscription_id_dedup_key")),
    )
    op.create_index(
        "uq_holds_one_open_per_subscription",
        "holds",
        ["subscription_id"],
        unique=True,
        postgresql_where=sa.text("status = 'held'"),
    )
    for statement in (INVOICES_IMMUTABLE, REJECT_INVOICE_DELETION, REJECT_LINE_CHANGE, *TRIGGERS):
        op.execute(statement)
    for table in TENANT_TABLES:
        for statement in enable_row_level_security(table):
            op.execute(statement)
    op.execute(f"GRANT SELECT, INSERT, UPDATE ON invoice_number_sequences TO {WORKER_ROLE}")


def downgrade() -> None:
    for table in ("holds", "invoice_number_sequences", "invoice_lines", "invoices"):
        op.drop_table(table)
    for function in (
        "reject_finalized_invoice_change",
        "reject_finalized_invoice_deletion",
        "reject_finalized_line_change",
    ):
        op.execute(f"DROP FUNCTION {function}()")
