"""Rows that no workflow writes are refused: of payments, refunds, periods, invoices, holds and ended subscriptions."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0015_refused_rows"
down_revision = "0014_requested_refunds"
branch_labels = None
depends_on = None

TRIGGER_FUNCTION = "RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog, public, pg_temp"

CHECKS = (
    (
        "payments",
        "received",
        "(captured_minor > 0) = (status IN ('succeeded', 'partially_refunded', 'refunded', 'disputed'))"
        " AND (captured_minor > 0) = (succeeded_at IS NOT NULL)",
    ),
    ("payment_methods", "expiry", "exp_month BETWEEN 1 AND 12"),
    # No number of a card fits in.
    ("payment_methods", "last4", "last4 ~ '^[0-9]{0,4}$'"),
    ("invoices", "void", "(status = 'void') = (voided_at IS NOT NULL) AND (status <> 'void' OR amount_due_minor = 0)"),
    ("invoice_lines", "amount", "amount_minor = unit_price_minor * quantity - discount_minor"),
    # Not empty from now on, but an issued invoice of an earlier release may have such a line, which nothing may change.
    ("invoice_lines", "period", "period_start <= period_end"),
    ("subscriptions", "coupon_periods", "coupon_remaining_periods >= 0"),
    ("ledger_transactions", "currency", "currency ~ '^[A-Z]{3}$'"),
    ("ledger_transactions", "entry_count", "entry_count >= 2"),
    (
        "ledger_transactions",
        "kind",
        "kind IN ('top_up', 'charge', 'refund', 'credit', 'adjustment', 'hold', 'release', 'invoice', 'void')",
    ),
)
# (table, before, after) of the checks that are called "period".
PERIODS = (
    ("invoices", "period_start <= period_end", "period_start < period_end"),
    (
        "subscriptions",
        "current_period_start <= current_period_end",
        "(current_period_start IS NULL) = (current_period_end IS NULL) AND current_period_start < current_period_end",
    ),
)

# A trigger with this function names in its first argument what it refuses, and in its condition when.
REJECT_CHANGE = f"""
CREATE FUNCTION reject_change() {TRIGGER_FUNCTION} AS $$
BEGIN
    RAISE EXCEPTION '% %: %', TG_TABLE_NAME, to_jsonb(OLD) ->> 'id', TG_ARGV[0] USING ERRCODE = 'restrict_violation';
END $$
"""

# What stands from the insert on. The triggers run for statements that name one of the columns, so that the updates of
# an order and of a renewal cost nothing more.
KEPT_COLUMNS = {
    "payments": ("purpose", "subscription_id", "invoice_id", "payment_method_id", "created_at"),
    "payment_methods": ("organization_id", "gateway", "gateway_reference", "gateway_customer_reference"),
    "refunds": ("reason", "actor", "created_at"),
    "holds": (
        "organization_id",
        "subscription_id",
        "dedup_key",
        "currency",
        "wallet_minor",
        "promotional_minor",
        "card_minor",
    ),
    "subscriptions": (
        "organization_id",
        "user_id",
        "service_id",
        "currency",
        "workflow_id",
        "created_at",
    ),
    "invoices": ("currency",),
    "coupon_redemptions": ("subscription_id", "coupon_code", "organization_id"),
    "webhook_events": ("gateway", "event_id", "event_type", "payload_sha256", "payment_id", "amount_minor", "currency"),
}

# (table, trigger, column, condition, message)
FINAL_STATES = (
    (
        "payments",
        "credited_is_final",
        "credited_to_wallet",
        "OLD.credited_to_wallet AND NOT NEW.credited_to_wallet",
        "the money is in the wallet",
    ),
    (
        "payments",
        "reference_is_final",
        "gateway_reference",
        "OLD.gateway_reference <> NEW.gateway_reference"
        " OR OLD.gateway_reference IS NOT NULL AND NEW.gateway_reference IS NULL",
        "the charge at the gateway is known",
    ),
    (
        "refunds",
        "reference_is_final",
        "gateway_reference",
        "OLD.gateway_reference <> NEW.gateway_reference",
        "the refund at the gateway is known",
    ),
    (
        "subscriptions",
        "moves_forward",
        "status",
        "OLD.status IN ('terminated', 'failed', 'expired') AND NEW.status <> OLD.status"
        " OR OLD.status = 'cancelled' AND NEW.status NOT IN ('cancelled', 'terminated')"
        " OR OLD.status <> 'pending' AND NEW.status IN ('pending', 'provisioning') AND NEW.status <> OLD.status",
        "the status does not go back",
    ),
    (
        "invoices",
        "payment_is_final",
        "status",
        "OLD.status IN ('paid', 'uncollectible') AND NEW.status IN ('draft', 'open')",
        "the invoice is not open any more",
    ),
    ("holds", "end_is_final", "status", "OLD.status <> 'held' AND NEW.status <> OLD.status", "the hold has ended"),
    (
        "coupon_redemptions",
        "end_is_final",
        "status",
        "OLD.status <> 'reserved' AND NEW.status <> OLD.status",
        "the redemption has ended",
    ),
    (
        "instance_operations",
        "end_is_final",
        "status",
        "OLD.status IN ('succeeded', 'failed', 'cancelled') AND NEW.status <> OLD.status",
        "the operation has ended",
    ),
    (
        "invoice_number_sequences",
        "no_number_twice",
        "last_number",
        "NEW.last_number < OLD.last_number",
        "its numbers are issued",
    ),
)

# The index to which 0012_started_trials returns counts these orders as trials: it could not be created on the rows that
# the newer one admits.
FORGET_UNSTARTED_TRIALS = """
UPDATE subscriptions SET is_trial = false
WHERE is_trial AND trial_end IS NULL AND status NOT IN ('pending', 'provisioning', 'failed', 'expired')
"""

APPEND_ONLY = ("subscription_changes", "timeline_events")

# The owner can change it until money has been posted in it; the other roles have no privilege to.
KEEP_CURRENCY = f"""
CREATE FUNCTION reject_currency_change() {TRIGGER_FUNCTION} AS $$
BEGIN
    IF EXISTS (SELECT FROM ledger_transactions WHERE organization_id = OLD.id)
        OR EXISTS (SELECT FROM subscriptions WHERE organization_id = OLD.id)
    THEN
        RAISE EXCEPTION 'organization % is billed in %', OLD.id, OLD.currency USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NEW;
END $$
"""

# Deferred to the commit: a refund and what its payment has refunded are written by different statements. The row of
# the payment serializes its refunds: one that does not update it does not agree with it.
CHECK_REFUNDS = f"""
CREATE FUNCTION payment_check_refunds() {TRIGGER_FUNCTION} AS $$
DECLARE
    payment text := COALESCE(to_jsonb(NEW) ->> 'payment_id', to_jsonb(NEW) ->> 'id');
    recorded bigint;
    refunded numeric;
BEGIN
    SELECT refunded_minor INTO recorded FROM payments WHERE id = payment;
    SELECT COALESCE(sum(amount_minor), 0) INTO refunded FROM refunds WHERE payment_id = payment AND status <> 'failed';
    IF refunded <> recorded THEN
        RAISE EXCEPTION 'payment % has refunded % but its refunds are %', payment, recorded, refunded
            USING ERRCODE = 'check_violation', CONSTRAINT = 'payment_refunds_agree';
    END IF;
    RETURN NULL;
END $$
"""

TRIGGERS = (
    ("organizations", "keeps_currency"),
    ("refunds", "refunds_agree"),
    ("payments", "refunds_agree"),
    ("payments", "has_no_refunds"),
)
TRIGGER_STATEMENTS = (
    "CREATE TRIGGER keeps_currency BEFORE UPDATE OF currency ON organizations FOR EACH ROW"
    " WHEN (NEW.currency <> OLD.currency) EXECUTE FUNCTION reject_currency_change()",
    "CREATE CONSTRAINT TRIGGER refunds_agree AFTER INSERT OR UPDATE OF status ON refunds DEFERRABLE INITIALLY DEFERRED"
    " FOR EACH ROW EXECUTE FUNCTION payment_check_refunds()",
    "CREATE CONSTRAINT TRIGGER refunds_agree AFTER UPDATE OF refunded_minor ON payments DEFERRABLE INITIALLY DEFERRED"
    " FOR EACH ROW WHEN (NEW.refunded_minor <> OLD.refunded_minor) EXECUTE FUNCTION payment_check_refunds()",
    "CREATE CONSTRAINT TRIGGER has_no_refunds AFTER INSERT ON payments DEFERRABLE INITIALLY DEFERRED"
    " FOR EACH ROW WHEN (NEW.refunded_minor > 0) EXECUTE FUNCTION payment_check_refunds()",
)
FUNCTIONS = ("reject_change", "reject_currency_change", "payment_check_refunds")


def change_triggers() -> list[tuple[str, str, str, str, str]]:
    """Return table, name, columns, condition and message of each trigger that refuses an update."""
    unchanging = [
        (
            table,
            "keeps_columns",
            ", ".join(columns),
            " OR ".join(f"NEW.{column} IS DISTINCT FROM OLD.{column}" for column in columns),
            f"{', '.join(columns)} stand as they were inserted",
        )
        for table, columns in KEPT_COLUMNS.items()
    ]
    return [*unchanging, *FINAL_STATES]


def upgrade() -> None:
    for table, name, condition in CHECKS:
        op.create_check_constraint(op.f(f"ck_{table}_{name}"), table, sa.text(condition))
    for table, _, condition in PERIODS:
        op.drop_constraint(op.f(f"ck_{table}_period"), table)
        op.create_check_constraint(op.f(f"ck_{table}_period"), table, sa.text(condition))
    for statement in (REJECT_CHANGE, KEEP_CURRENCY, CHECK_REFUNDS, *TRIGGER_STATEMENTS):
        op.execute(statement)
    for table, name, columns, condition, message in change_triggers():
        op.execute(
            f"CREATE TRIGGER {name} BEFORE UPDATE OF {columns} ON {table} FOR EACH ROW WHEN ({condition})"
            f" EXECUTE FUNCTION reject_change('{message}')"
        )
    for table in APPEND_ONLY:
        op.execute(
            f"CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON {table}"
            " FOR EACH STATEMENT EXECUTE FUNCTION reject_ledger_modification()"
        )


def downgrade() -> None:
    dropped = [(table, name) for table, name, *_ in change_triggers()]
    for table, name in (*TRIGGERS, *dropped, *((table, "append_only") for table in APPEND_ONLY)):
        op.execute(f"DROP TRIGGER {name} ON {table}")
    for function in FUNCTIONS:
        op.execute(f"DROP FUNCTION {function}()")
    for table, condition, _ in PERIODS:
        op.drop_constraint(op.f(f"ck_{table}_period"), table)
        op.create_check_constraint(op.f(f"ck_{table}_period"), table, sa.text(condition))
    for table, name, _ in CHECKS:
        op.drop_constraint(op.f(f"ck_{table}_{name}"), table)
    op.execute(FORGET_UNSTARTED_TRIALS)
