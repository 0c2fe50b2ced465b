"""Subscriptions, invoices, and a ledger that the database itself keeps honest."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from db.rls import WORKER_ROLE, enable_row_level_security

revision = "0003_billing"
down_revision = "0002_catalogue"
branch_labels = None
depends_on = None

TENANT_TABLES = (
    "subscriptions",
    "subscription_changes",
    "timeline_events",
    "invoices",
    "invoice_lines",
    "holds",
    "ledger_accounts",
    "customer_balances",
    "ledger_transactions",
    "plan_change_credits",
)

# A trigger's search_path is fixed: a temporary table must not shadow a table of the ledger. SECURITY DEFINER, because
# the worker writes entries and may not write a balance.
TRIGGER_FUNCTION = "RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog, public, pg_temp"

# The row of customer_balances is locked before the sequence is drawn, so that sequence and running balance have one
# order. A BEFORE trigger also runs for a row that ON CONFLICT skips, so the key is looked up first, under the lock.
NUMBER_TRANSACTION = f"""
CREATE FUNCTION ledger_number_transaction() {TRIGGER_FUNCTION} SECURITY DEFINER AS $$
DECLARE
    known ledger_transactions%ROWTYPE;
BEGIN
    PERFORM FROM customer_balances WHERE organization_id = NEW.organization_id AND currency = NEW.currency
        FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        INSERT INTO customer_balances (organization_id, currency, balance_minor)
            VALUES (NEW.organization_id, NEW.currency, 0)
            ON CONFLICT (organization_id, currency) DO UPDATE SET balance_minor = customer_balances.balance_minor;
    END IF;
    SELECT * INTO known FROM ledger_transactions WHERE idempotency_key = NEW.idempotency_key;
    IF FOUND THEN
        IF (known.id, known.organization_id, known.kind, known.currency, known.customer_delta_minor, known.entry_count)
            IS DISTINCT FROM
            (NEW.id, NEW.organization_id, NEW.kind, NEW.currency, NEW.customer_delta_minor, NEW.entry_count)
        THEN
            RAISE EXCEPTION 'idempotency key % belongs to another ledger transaction', NEW.idempotency_key
                USING ERRCODE = 'unique_violation', CONSTRAINT = 'ledger_transactions_same_content';
        END IF;
        RETURN NULL;
    END IF;
    UPDATE customer_balances SET balance_minor = balance_minor + NEW.customer_delta_minor
        WHERE organization_id = NEW.organization_id AND currency = NEW.currency
        RETURNING balance_minor INTO NEW.balance_after_minor;
    NEW.sequence_number := nextval('ledger_transactions_sequence');
    RETURN NEW;
END $$
"""

# Balances of accounts change with the entries, inside the same statement; the CHECK on ledger_accounts refuses an
# overdraft.
UPDATE_BALANCE = f"""
CREATE FUNCTION ledger_update_balance() {TRIGGER_FUNCTION} SECURITY DEFINER AS $$
BEGIN
    IF NEW.organization_id IS NOT NULL THEN
        UPDATE ledger_accounts SET balance_minor = balance_minor + NEW.amount_minor
            WHERE id = NEW.organization_id || '/' || NEW.account || '/' || NEW.currency;
        IF NOT FOUND THEN
            INSERT INTO ledger_accounts (id, organization_id, account, currency, balance_minor)
                VALUES (NEW.organization_id || '/' || NEW.account || '/' || NEW.currency,
                        NEW.organization_id, NEW.account, NEW.currency, NEW.amount_minor)
                ON CONFLICT (id) DO UPDATE
                    SET balance_minor = ledger_accounts.balance_minor + EXCLUDED.balance_minor;
        END IF;
    END IF;
    RETURN NEW;
END $$
"""

# At commit: the entries of a transaction sum to zero, are as many as it declares (none is added later), and change the
# accounts of the customer by the amount that it declares.
CHECK_BALANCED = f"""
CREATE FUNCTION ledger_check_balanced() {TRIGGER_FUNCTION} AS $$
DECLARE
    transaction text := COALESCE(to_jsonb(NEW) ->> 'transaction_id', to_jsonb(NEW) ->> 'id');
    declared ledger_transactions%ROWTYPE;
    entries bigint;
    total numeric;
    customer numeric;
BEGIN
    SELECT * INTO declared FROM ledger_transactions WHERE id = transaction;
    SELECT count(*), COALESCE(sum(amount_minor), 0),
            COALESCE(sum(amount_minor) FILTER (WHERE account IN ('wallet', 'promotional', 'held')), 0)
        INTO entries, total, customer FROM ledger_entries WHERE transaction_id = transaction;
    IF entries <> declared.entry_count OR total <> 0 OR customer <> declared.customer_delta_minor
        OR EXISTS (SELECT FROM ledger_entries WHERE transaction_id = transaction AND (currency <> declared.currency
            OR organization_id <> declared.organization_id)) THEN
        RAISE EXCEPTION 'ledger transaction % does not balance', transaction
            USING ERRCODE = 'check_violation', CONSTRAINT = 'ledger_transaction_balanced';
    END IF;
    RETURN NULL;
END $$
"""

LEDGER_APPEND_ONLY = f"""
CREATE FUNCTION reject_ledger_modification() {TRIGGER_FUNCTION} AS $$
BEGIN
    RAISE EXCEPTION '% is append-only', TG_TABLE_NAME USING ERRCODE = 'restrict_violation';
END $$
"""

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
    "CREATE TRIGGER number_transaction BEFORE INSERT ON ledger_transactions"
    " FOR EACH ROW EXECUTE FUNCTION ledger_number_transaction()",
    "CREATE TRIGGER keep_balance BEFORE INSERT ON ledger_entries FOR EACH ROW EXECUTE FUNCTION ledger_update_balance()",
    "CREATE CONSTRAINT TRIGGER must_balance AFTER INSERT ON ledger_entries DEFERRABLE INITIALLY DEFERRED"
    " FOR EACH ROW EXECUTE FUNCTION ledger_check_balanced()",
    "CREATE CONSTRAINT TRIGGER must_balance AFTER INSERT ON ledger_transactions DEFERRABLE INITIALLY DEFERRED"
    " FOR EACH ROW EXECUTE FUNCTION ledger_check_balanced()",
    "CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON ledger_entries"
    " FOR EACH STATEMENT EXECUTE FUNCTION reject_ledger_modification()",
    "CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON ledger_transactions"
    " FOR EACH STATEMENT EXECUTE FUNCTION reject_ledger_modification()",
    "CREATE TRIGGER final BEFORE UPDATE ON invoices FOR EACH ROW EXECUTE FUNCTION reject_finalized_invoice_change()",
    "CREATE TRIGGER not_deleted BEFORE DELETE ON invoices"
    " FOR EACH ROW EXECUTE FUNCTION reject_finalized_invoice_deletion()",
    "CREATE TRIGGER final BEFORE INSERT OR UPDATE OR DELETE ON invoice_lines"
    " FOR EACH ROW EXECUTE FUNCTION reject_finalized_line_change()",
)


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
    op.create_table(
        "ledger_accounts",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("organization_id", sa.Text(), nullable=False),
        sa.Column("account", sa.Text(), nullable=False),
        sa.Column("currency", sa.Text(), nullable=False),
        sa.Column("balance_minor", sa.BigInteger(), nullable=False),
        sa.Column("lock_version", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.CheckConstraint(
            "account NOT IN ('wallet', 'promotional', 'held') OR balance_minor >= 0",
            name=op.f("ck_ledger_accounts_non_negative_balance"),
        ),
        sa.ForeignKeyConstraint(
            ["organization_id"], ["organizations.id"], name=op.f("fk_ledger_accounts_organization_id_organizations")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_ledger_accounts")),
    )
    op.create_index(op.f("ix_ledger_accounts_organization_id"), "ledger_accounts", ["organization_id"], unique=False)
    op.create_table(
        "customer_balances",
        sa.Column("organization_id", sa.Text(), nullable=False),
        sa.Column("currency", sa.Text(), nullable=False),
        sa.Column("balance_minor", sa.BigInteger(), nullable=False),
        sa.Column("lock_version", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.CheckConstraint("balance_minor >= 0", name=op.f("ck_customer_balances_non_negative_balance")),
        sa.ForeignKeyConstraint(
            ["organization_id"], ["organizations.id"], name=op.f("fk_customer_balances_organization_id_organizations")
        ),
        sa.PrimaryKeyConstraint("organization_id", "currency", name=op.f("pk_customer_balances")),
    )
    op.execute("CREATE SEQUENCE ledger_transactions_sequence")
    op.create_table(
        "ledger_transactions",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("sequence_number", sa.BigInteger(), nullable=False),
        sa.Column("organization_id", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("currency", sa.Text(), nullable=False),
        sa.Column("customer_delta_minor", sa.BigInteger(), nullable=False),
        sa.Column("balance_after_minor", sa.BigInteger(), nullable=False),
        sa.Column("entry_count", sa.BigInteger(), nullable=False),
        sa.Column("posted_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("reference_id", sa.Text(), nullable=True),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("idempotency_key", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["organization_id"], ["organizations.id"], name=op.f("fk_ledger_transactions_organization_id_organizations")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_ledger_transactions")),
        sa.UniqueConstraint("idempotency_key", name=op.f("uq_ledger_transactions_idempotency_key")),
        sa.UniqueConstraint("sequence_number", name=op.f("uq_ledger_transactions_sequence_number")),
        sa.UniqueConstraint("id", "organization_id", name=op.f("uq_ledger_transactions_id_organization_id")),
    )
    op.create_index(
        "ix_ledger_transactions_organization_id_sequence_number",
        "ledger_transactions",
        ["organization_id", "sequence_number"],
        unique=False,
    )
    op.create_table(
        "ledger_entries",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("transaction_id", sa.Text(), nullable=False),
        sa.Column("organization_id", sa.Text(), nullable=True),
        sa.Column("account", sa.Text(), nullable=False),
        sa.Column("currency", sa.Text(), nullable=False),
        sa.Column("amount_minor", sa.BigInteger(), nullable=False),
        sa.CheckConstraint(
            "CASE WHEN organization_id IS NULL"
            " THEN account IN ('revenue', 'tax_payable', 'refunds', 'write_off', 'adjustments')"
            " OR account LIKE 'clearing:_%'"
            " ELSE account IN ('wallet', 'promotional', 'debt', 'held', 'receivable') END",
            name=op.f("ck_ledger_entries_account"),
        ),
        sa.CheckConstraint("currency ~ '^[A-Z]{3}$'", name=op.f("ck_ledger_entries_currency")),
        sa.ForeignKeyConstraint(
            ["transaction_id"],
            ["ledger_transactions.id"],
            name=op.f("fk_ledger_entries_transaction_id_ledger_transactions"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_ledger_entries")),
    )
    op.create_index(op.f("ix_ledger_entries_organization_id"), "ledger_entries", ["organization_id"], unique=False)
    op.create_index(op.f("ix_ledger_entries_transaction_id"), "ledger_entries", ["transaction_id"], unique=False)
    op.create_table(
        "plan_change_credits",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("organization_id", sa.Text(), nullable=False),
        sa.Column("invoice_id", sa.Text(), nullable=False),
        sa.Column("currency", sa.Text(), nullable=False),
        sa.Column("plan_change_id", sa.Text(), nullable=False),
        sa.Column("amount_minor", sa.BigInteger(), nullable=False),
        sa.Column("ledger_transaction_id", sa.Text(), nullable=False),
        sa.Column("credited_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("amount_minor <> 0", name=op.f("ck_plan_change_credits_amount")),
        sa.ForeignKeyConstraint(
            ["organization_id", "invoice_id", "currency"],
            ["invoices.organization_id", "invoices.id", "invoices.currency"],
            name="fk_plan_change_credits_invoice",
        ),
        sa.ForeignKeyConstraint(
            ["ledger_transaction_id", "organization_id"],
            ["ledger_transactions.id", "ledger_transactions.organization_id"],
            name="fk_plan_change_credits_ledger_transaction",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_plan_change_credits")),
    )
    op.create_index("ix_plan_change_credits_invoice_id", "plan_change_credits", ["invoice_id"], unique=False)
    op.create_index("ix_plan_change_credits_plan_change_id", "plan_change_credits", ["plan_change_id"], unique=False)

    for statement in (
        NUMBER_TRANSACTION,
        UPDATE_BALANCE,
        CHECK_BALANCED,
        LEDGER_APPEND_ONLY,
        INVOICES_IMMUTABLE,
        REJECT_INVOICE_DELETION,
        REJECT_LINE_CHANGE,
        *TRIGGERS,
    ):
        op.execute(statement)
    for table in TENANT_TABLES:
        for statement in enable_row_level_security(table):
            op.execute(statement)
    for function in ("ledger_number_transaction", "ledger_update_balance"):
        op.execute(f"REVOKE EXECUTE ON FUNCTION {function}() FROM PUBLIC")
    for table in ("ledger_accounts", "customer_balances"):
        # The triggers write balances. SELECT FOR UPDATE needs the privilege on one column.
        op.execute(f"REVOKE INSERT, UPDATE ON {table} FROM {WORKER_ROLE}")
        op.execute(f"GRANT UPDATE (lock_version) ON {table} TO {WORKER_ROLE}")
    # Entries of platform accounts have no organization: the API sees only those of its organization.
    for statement in enable_row_level_security("ledger_entries"):
        op.execute(statement)
    op.execute(f"REVOKE UPDATE ON plan_change_credits FROM {WORKER_ROLE}")
    op.execute(f"GRANT SELECT, INSERT, UPDATE ON invoice_number_sequences TO {WORKER_ROLE}")


def downgrade() -> None:
    op.drop_constraint("fk_coupon_redemptions_subscription", "coupon_redemptions", type_="foreignkey")
    for table in (
        "plan_change_credits",
        "ledger_entries",
        "ledger_transactions",
        "customer_balances",
        "ledger_accounts",
        "holds",
        "invoice_number_sequences",
        "invoice_lines",
        "invoices",
        "timeline_events",
        "subscription_changes",
        "subscriptions",
    ):
        op.drop_table(table)
    op.execute("DROP SEQUENCE ledger_transactions_sequence")
    for function in (
        "ledger_number_transaction",
        "ledger_update_balance",
        "ledger_check_balanced",
        "reject_ledger_modification",
        "reject_finalized_invoice_change",
        "reject_finalized_invoice_deletion",
        "reject_finalized_line_change",
    ):
        op.execute(f"DROP FUNCTION {function}()")
