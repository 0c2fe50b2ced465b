"""A ledger that the database itself keeps balanced, and the credit that plan changes gave."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from db.rls import WORKER_ROLE, enable_row_level_security

revision = "0006_ledger"
down_revision = "0005_invoices"
branch_labels = None
depends_on = None

TENANT_TABLES = (
    "ledger_accounts",
    "customer_balances",
    "ledger_transactions",
    # Entries of platform accounts have no organization: the API sees only those of its organization.
    "ledger_entries",
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
)


def upgrade() -> None:
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
    op.execute(f"REVOKE UPDATE ON plan_change_credits FROM {WORKER_ROLE}")


def downgrade() -> None:
    for table in (
        "plan_change_credits",
        "ledger_entries",
        "ledger_transactions",
        "customer_balances",
        "ledger_accounts",
    ):
        op.drop_table(table)
    op.execute("DROP SEQUENCE ledger_transactions_sequence")
    for function in (
        "ledger_number_transaction",
        "ledger_update_balance",
        "ledger_check_balanced",
        "reject_ledger_modification",
    ):
        op.execute(f"DROP FUNCTION {function}()")
