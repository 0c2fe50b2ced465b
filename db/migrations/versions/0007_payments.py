"""Payments, cards on file, refunds, and the inbox of gateways' webhooks."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from db.rls import API_ROLE, IS_ADMINISTRATOR, WORKER_ROLE, enable_row_level_security

revision = "0007_payments"
down_revision = "0006_ledger"
branch_labels = None
depends_on = None

# The gateways' inbox belongs to no account: only the route that has checked a signature speaks as one of them.
GATEWAY_ROWS = f"current_setting('berth.role', true) = 'GATEWAY' OR {IS_ADMINISTRATOR}"

TENANT_TABLES = ("payment_methods", "gateway_customers", "payments", "refunds", "invoice_allocations")

# Deferred to the commit: an invoice and its allocations are written by different statements of one transaction.
CHECK_ALLOCATIONS = """
CREATE FUNCTION invoice_check_allocations() RETURNS trigger LANGUAGE plpgsql
    SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
    invoice public.invoices%ROWTYPE;
    allocated numeric;
    received numeric;
BEGIN
    SELECT * INTO invoice FROM public.invoices
        WHERE id = COALESCE(to_jsonb(NEW) ->> 'invoice_id', to_jsonb(NEW) ->> 'id');
    SELECT COALESCE(sum(amount_minor), 0) INTO allocated
        FROM public.invoice_allocations WHERE invoice_id = invoice.id;
    received := CASE WHEN invoice.status IN ('draft', 'void') THEN 0
        ELSE invoice.total_minor - invoice.amount_due_minor - invoice.refunded_minor END;
    IF allocated <> received OR EXISTS (
        SELECT FROM public.invoice_allocations WHERE invoice_id = invoice.id
        GROUP BY COALESCE(reverses_id, id) HAVING sum(amount_minor) < 0
    ) THEN
        RAISE EXCEPTION 'invoice % (%) received % but its allocations are %',
            invoice.id, invoice.status, received, allocated
            USING ERRCODE = 'check_violation', CONSTRAINT = 'invoice_allocations_agree';
    END IF;
    RETURN NULL;
END $$
"""

# Deferred to the commit, where the advisory lock is the last one that the transaction waits for: of two transactions
# that allocate one payment, the second sees what the first has committed.
CHECK_PAYMENT_ALLOCATIONS = """
CREATE FUNCTION payment_check_allocations() RETURNS trigger LANGUAGE plpgsql
    SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
    payment text := COALESCE(to_jsonb(NEW) ->> 'payment_id', to_jsonb(NEW) ->> 'id');
    captured bigint;
    allocated numeric;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended('payment_allocations/' || payment, 0));
    SELECT captured_minor INTO captured FROM public.payments WHERE id = payment;
    SELECT COALESCE(sum(amount_minor), 0) INTO allocated FROM public.invoice_allocations WHERE payment_id = payment;
    IF allocated > captured THEN
        RAISE EXCEPTION 'payment % captured % but its allocations are %', payment, captured, allocated
            USING ERRCODE = 'check_violation', CONSTRAINT = 'payment_covers_allocations';
    END IF;
    RETURN NULL;
END $$
"""

APPEND_ONLY_ALLOCATIONS = """
CREATE FUNCTION reject_allocation_change() RETURNS trigger LANGUAGE plpgsql
    SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
    RAISE EXCEPTION 'invoice_allocations is append-only' USING ERRCODE = 'restrict_violation';
END $$
"""

TRIGGERS = (
    "CREATE CONSTRAINT TRIGGER allocations_agree AFTER INSERT OR UPDATE ON invoices DEFERRABLE INITIALLY DEFERRED"
    " FOR EACH ROW EXECUTE FUNCTION invoice_check_allocations()",
    "CREATE CONSTRAINT TRIGGER allocations_agree AFTER INSERT ON invoice_allocations DEFERRABLE INITIALLY DEFERRED"
    " FOR EACH ROW EXECUTE FUNCTION invoice_check_allocations()",
    "CREATE CONSTRAINT TRIGGER payment_covers AFTER INSERT ON invoice_allocations DEFERRABLE INITIALLY DEFERRED"
    " FOR EACH ROW WHEN (NEW.payment_id IS NOT NULL) EXECUTE FUNCTION payment_check_allocations()",
    "CREATE CONSTRAINT TRIGGER covers_allocations AFTER UPDATE ON payments DEFERRABLE INITIALLY DEFERRED"
    " FOR EACH ROW WHEN (NEW.captured_minor < OLD.captured_minor) EXECUTE FUNCTION payment_check_allocations()",
    "CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON invoice_allocations"
    " FOR EACH STATEMENT EXECUTE FUNCTION reject_allocation_change()",
)


def upgrade() -> None:
    op.create_table(
        "payment_methods",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("organization_id", sa.Text(), nullable=False),
        sa.Column("gateway", sa.Text(), nullable=False),
        sa.Column("gateway_reference", sa.Text(), nullable=False),
        sa.Column("gateway_customer_reference", sa.Text(), nullable=False),
        sa.Column("brand", sa.Text(), nullable=False),
        sa.Column("last4", sa.Text(), nullable=False),
        sa.Column("exp_month", sa.BigInteger(), nullable=True),
        sa.Column("exp_year", sa.BigInteger(), nullable=True),
        sa.Column("fingerprint", sa.Text(), nullable=True),
        sa.Column("is_default", sa.Boolean(), nullable=False),
        sa.Column("charge_order", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("detached_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["organization_id"], ["organizations.id"], name=op.f("fk_payment_methods_organization_id_organizations")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_payment_methods")),
        sa.UniqueConstraint("gateway", "gateway_reference", name=op.f("uq_payment_methods_gateway_gateway_reference")),
        sa.UniqueConstraint("organization_id", "id", name=op.f("uq_payment_methods_organization_id_id")),
    )
    op.create_index(
        "ix_payment_methods_organization_id_charge_order",
        "payment_methods",
        ["organization_id", "charge_order"],
        unique=False,
    )
    op.create_index(
        "uq_payment_methods_one_default",
        "payment_methods",
        ["organization_id"],
        unique=True,
        postgresql_where=sa.text("is_default AND detached_at IS NULL"),
    )
    op.create_table(
        "gateway_customers",
        sa.Column("organization_id", sa.Text(), nullable=False),
        sa.Column("gateway", sa.Text(), nullable=False),
        sa.Column("gateway_reference", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["organization_id"], ["organizations.id"], name=op.f("fk_gateway_customers_organization_id_organizations")
        ),
        sa.PrimaryKeyConstraint("organization_id", "gateway", name=op.f("pk_gateway_customers")),
        sa.UniqueConstraint(
            "gateway", "gateway_reference", name=op.f("uq_gateway_customers_gateway_gateway_reference")
        ),
    )
    op.create_table(
        "payments",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("organization_id", sa.Text(), nullable=False),
        sa.Column("subscription_id", sa.Text(), nullable=True),
        sa.Column("invoice_id", sa.Text(), nullable=True),
        sa.Column("purpose", sa.Text(), nullable=False),
        sa.Column("gateway", sa.Text(), nullable=False),
        sa.Column("gateway_reference", sa.Text(), nullable=True),
        sa.Column("payment_method_id", sa.Text(), nullable=True),
        sa.Column("amount_minor", sa.BigInteger(), nullable=False),
        sa.Column("currency", sa.Text(), nullable=False),
        sa.Column("captured_minor", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("refunded_minor", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("decline_code", sa.Text(), nullable=True),
        sa.Column("redirect_url", sa.Text(), nullable=True),
        sa.Column("idempotency_key", sa.Text(), nullable=False),
        sa.Column("gateway_requested_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("workflow_id", sa.Text(), nullable=False),
        sa.Column("closing_run_id", sa.Text(), nullable=True),
        sa.Column("credited_to_wallet", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("succeeded_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("purpose IN ('top_up', 'order', 'invoice')", name=op.f("ck_payments_purpose")),
        sa.CheckConstraint(
            "status IN ('created', 'pending', 'unknown', 'authorized', 'succeeded',"
            " 'failed', 'expired', 'cancelled', 'partially_refunded', 'refunded', 'disputed')",
            name=op.f("ck_payments_status"),
        ),
        sa.CheckConstraint("amount_minor > 0", name=op.f("ck_payments_amount")),
        sa.CheckConstraint(
            "captured_minor IN (0, amount_minor) AND refunded_minor BETWEEN 0 AND captured_minor",
            name=op.f("ck_payments_valid_captured_and_refunded"),
        ),
        sa.ForeignKeyConstraint(
            ["organization_id"], ["organizations.id"], name=op.f("fk_payments_organization_id_organizations")
        ),
        sa.ForeignKeyConstraint(
            ["organization_id", "payment_method_id"],
            ["payment_methods.organization_id", "payment_methods.id"],
            name="fk_payments_payment_method",
        ),
        sa.ForeignKeyConstraint(
            ["organization_id", "invoice_id", "currency"],
            ["invoices.organization_id", "invoices.id", "invoices.currency"],
            name="fk_payments_invoice",
        ),
        sa.ForeignKeyConstraint(
            ["organization_id", "subscription_id"],
            ["subscriptions.organization_id", "subscriptions.id"],
            name="fk_payments_subscription",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_payments")),
        sa.UniqueConstraint("gateway", "gateway_reference", name=op.f("uq_payments_gateway_gateway_reference")),
        sa.UniqueConstraint("idempotency_key", name=op.f("uq_payments_idempotency_key")),
        sa.UniqueConstraint("organization_id", "id", "currency", name=op.f("uq_payments_organization_id_id_currency")),
    )
    op.create_index(op.f("ix_payments_invoice_id"), "payments", ["invoice_id"], unique=False)
    op.create_index(
        "ix_payments_organization_id_created_at_id", "payments", ["organization_id", "created_at", "id"], unique=False
    )
    op.create_index(op.f("ix_payments_status"), "payments", ["status"], unique=False)
    op.create_index(op.f("ix_payments_subscription_id"), "payments", ["subscription_id"], unique=False)
    op.create_index(
        "uq_payments_one_in_flight_per_invoice",
        "payments",
        ["invoice_id"],
        unique=True,
        postgresql_where=sa.text(
            "invoice_id IS NOT NULL AND status IN ('created', 'pending', 'unknown', 'authorized')"
        ),
    )
    op.create_table(
        "refunds",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("organization_id", sa.Text(), nullable=False),
        sa.Column("payment_id", sa.Text(), nullable=False),
        sa.Column("amount_minor", sa.BigInteger(), nullable=False),
        sa.Column("from_wallet_minor", sa.BigInteger(), nullable=False),
        sa.Column("currency", sa.Text(), nullable=False),
        sa.Column("destination", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("request_id", sa.Text(), nullable=True),
        sa.Column("failure_code", sa.Text(), nullable=True),
        sa.Column("gateway_reference", sa.Text(), nullable=True),
        sa.Column("idempotency_key", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("status IN ('pending', 'succeeded', 'failed')", name=op.f("ck_refunds_status")),
        sa.CheckConstraint("destination IN ('source', 'wallet')", name=op.f("ck_refunds_destination")),
        sa.CheckConstraint("amount_minor > 0", name=op.f("ck_refunds_amount")),
        sa.CheckConstraint("from_wallet_minor BETWEEN 0 AND amount_minor", name=op.f("ck_refunds_from_wallet")),
        sa.ForeignKeyConstraint(
            ["organization_id", "payment_id", "currency"],
            ["payments.organization_id", "payments.id", "payments.currency"],
            name="fk_refunds_payment",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_refunds")),
        sa.UniqueConstraint("gateway_reference", name=op.f("uq_refunds_gateway_reference")),
        sa.UniqueConstraint("idempotency_key", name=op.f("uq_refunds_idempotency_key")),
    )
    op.create_index(op.f("ix_refunds_organization_id"), "refunds", ["organization_id"], unique=False)
    op.create_index(op.f("ix_refunds_payment_id"), "refunds", ["payment_id"], unique=False)
    op.create_table(
        "webhook_events",
        sa.Column("gateway", sa.Text(), nullable=False),
        sa.Column("event_id", sa.Text(), nullable=False),
        sa.Column("event_type", sa.Text(), nullable=False),
        sa.Column("payment_id", sa.Text(), nullable=True),
        sa.Column("gateway_reference", sa.Text(), nullable=True),
        sa.Column("payment_status", sa.Text(), nullable=True),
        sa.Column("amount_minor", sa.BigInteger(), nullable=True),
        sa.Column("currency", sa.Text(), nullable=True),
        sa.Column("decline_code", sa.Text(), nullable=True),
        sa.Column("payload_sha256", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("mismatch_reason", sa.Text(), nullable=True),
        sa.Column("received_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("delivered_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "status IN ('received', 'delivered', 'ignored', 'mismatch')", name=op.f("ck_webhook_events_status")
        ),
        sa.PrimaryKeyConstraint("gateway", "event_id", name=op.f("pk_webhook_events")),
    )
    op.create_index(op.f("ix_webhook_events_payment_id"), "webhook_events", ["payment_id"], unique=False)
    op.create_index(
        "ix_webhook_events_undelivered",
        "webhook_events",
        ["received_at"],
        unique=False,
        postgresql_where=sa.text("status = 'received'"),
    )
    op.create_table(
        "invoice_allocations",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("organization_id", sa.Text(), nullable=False),
        sa.Column("invoice_id", sa.Text(), nullable=False),
        sa.Column("currency", sa.Text(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("payment_id", sa.Text(), nullable=True),
        sa.Column("credit_note_id", sa.Text(), nullable=True),
        sa.Column("amount_minor", sa.BigInteger(), nullable=False),
        sa.Column("reverses_id", sa.Text(), nullable=True),
        sa.Column("ledger_transaction_id", sa.Text(), nullable=False),
        sa.Column("allocated_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint(
            "source IN ('promotional', 'wallet', 'payment', 'credit_note', 'debt')",
            name=op.f("ck_invoice_allocations_source"),
        ),
        sa.CheckConstraint(
            "(source = 'payment') = (payment_id IS NOT NULL)", name=op.f("ck_invoice_allocations_payment_of_source")
        ),
        sa.CheckConstraint(
            "(source = 'credit_note') = (credit_note_id IS NOT NULL)",
            name=op.f("ck_invoice_allocations_credit_note_of_source"),
        ),
        sa.CheckConstraint("amount_minor <> 0", name=op.f("ck_invoice_allocations_amount")),
        sa.CheckConstraint(
            "(amount_minor < 0) = (reverses_id IS NOT NULL)", name=op.f("ck_invoice_allocations_reversal_is_negative")
        ),
        sa.ForeignKeyConstraint(
            ["organization_id", "invoice_id", "currency"],
            ["invoices.organization_id", "invoices.id", "invoices.currency"],
            name="fk_invoice_allocations_invoice",
        ),
        sa.ForeignKeyConstraint(
            ["organization_id", "payment_id", "currency"],
            ["payments.organization_id", "payments.id", "payments.currency"],
            name="fk_invoice_allocations_payment",
        ),
        sa.ForeignKeyConstraint(
            ["reverses_id", "invoice_id", "source"],
            ["invoice_allocations.id", "invoice_allocations.invoice_id", "invoice_allocations.source"],
            name="fk_invoice_allocations_reverses",
        ),
        sa.ForeignKeyConstraint(
            ["ledger_transaction_id", "organization_id"],
            ["ledger_transactions.id", "ledger_transactions.organization_id"],
            name="fk_invoice_allocations_ledger_transaction",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_invoice_allocations")),
        sa.UniqueConstraint("id", "invoice_id", "source", name=op.f("uq_invoice_allocations_id_invoice_id_source")),
    )
    op.create_index("ix_invoice_allocations_invoice_id", "invoice_allocations", ["invoice_id"], unique=False)
    op.create_index(
        "ix_invoice_allocations_payment_id",
        "invoice_allocations",
        ["payment_id"],
        unique=False,
        postgresql_where=sa.text("payment_id IS NOT NULL"),
    )
    op.create_index(
        "ix_invoice_allocations_reverses_id",
        "invoice_allocations",
        ["reverses_id"],
        unique=False,
        postgresql_where=sa.text("reverses_id IS NOT NULL"),
    )
    op.create_index(
        "ix_invoice_allocations_ledger_transaction_id", "invoice_allocations", ["ledger_transaction_id"], unique=False
    )
    op.create_index(
        "ix_invoice_allocations_debt",
        "invoice_allocations",
        ["organization_id", "currency"],
        unique=False,
        postgresql_where=sa.text("source = 'debt'"),
    )

    for statement in (CHECK_ALLOCATIONS, CHECK_PAYMENT_ALLOCATIONS, APPEND_ONLY_ALLOCATIONS, *TRIGGERS):
        op.execute(statement)
    for table in TENANT_TABLES:
        for statement in enable_row_level_security(table):
            op.execute(statement)
    op.execute(f"REVOKE UPDATE ON invoice_allocations FROM {WORKER_ROLE}")
    # Which card is charged first is its owner's preference; everything else about a card is its workflows'.
    op.execute(f"GRANT UPDATE (is_default) ON payment_methods TO {API_ROLE}")
    # A webhook belongs to a gateway, not to an organization: the API inserts it under the role GATEWAY.
    for statement in enable_row_level_security(
        "webhook_events", api_privileges="SELECT, INSERT, UPDATE", row_condition=GATEWAY_ROWS
    ):
        op.execute(statement)


def downgrade() -> None:
    op.execute("DROP TRIGGER allocations_agree ON invoices")
    for table in (
        "invoice_allocations",
        "webhook_events",
        "refunds",
        "payments",
        "gateway_customers",
        "payment_methods",
    ):
        op.drop_table(table)
    for function in ("invoice_check_allocations", "payment_check_allocations", "reject_allocation_change"):
        op.execute(f"DROP FUNCTION {function}()")
