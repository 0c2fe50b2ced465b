"""What never changes of a payment and a refund, and that a void invoice stays void."""

from __future__ import annotations

from alembic import op

revision = "0011_final_amounts"
down_revision = "0010_offered_payment_methods"
branch_labels = None
depends_on = None

TRIGGER_FUNCTION = "RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog, public, pg_temp"

# The ledger has what was captured: it is neither taken back nor moved to another organization.
PAYMENT_AMOUNTS_FINAL = f"""
CREATE FUNCTION reject_payment_change() {TRIGGER_FUNCTION} AS $$
BEGIN
    IF (OLD.id, OLD.organization_id, OLD.gateway, OLD.amount_minor, OLD.currency, OLD.idempotency_key)
        IS DISTINCT FROM
        (NEW.id, NEW.organization_id, NEW.gateway, NEW.amount_minor, NEW.currency, NEW.idempotency_key)
        OR NEW.captured_minor < OLD.captured_minor
    THEN
        RAISE EXCEPTION 'payment % keeps its owner and its amounts', OLD.id USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NEW;
END $$
"""

REFUND_AMOUNTS_FINAL = f"""
CREATE FUNCTION reject_refund_change() {TRIGGER_FUNCTION} AS $$
BEGIN
    IF (OLD.id, OLD.organization_id, OLD.payment_id, OLD.amount_minor, OLD.from_wallet_minor, OLD.currency,
            OLD.destination, OLD.idempotency_key)
        IS DISTINCT FROM
        (NEW.id, NEW.organization_id, NEW.payment_id, NEW.amount_minor, NEW.from_wallet_minor, NEW.currency,
            NEW.destination, NEW.idempotency_key)
        OR OLD.status <> 'pending' AND NEW.status <> OLD.status
    THEN
        RAISE EXCEPTION 'refund % keeps its amounts and its outcome', OLD.id USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NEW;
END $$
"""

VOID_INVOICE_FINAL = f"""
CREATE FUNCTION reject_void_invoice_change() {TRIGGER_FUNCTION} AS $$
BEGIN
    RAISE EXCEPTION 'invoice % is void', OLD.id USING ERRCODE = 'restrict_violation';
END $$
"""

TRIGGERS = (
    "CREATE TRIGGER final BEFORE UPDATE ON payments FOR EACH ROW EXECUTE FUNCTION reject_payment_change()",
    "CREATE TRIGGER final BEFORE UPDATE ON refunds FOR EACH ROW EXECUTE FUNCTION reject_refund_change()",
    "CREATE TRIGGER void_is_final BEFORE UPDATE ON invoices FOR EACH ROW"
    " WHEN (OLD.status = 'void' AND NEW.status <> 'void') EXECUTE FUNCTION reject_void_invoice_change()",
)


def upgrade() -> None:
    for statement in (PAYMENT_AMOUNTS_FINAL, REFUND_AMOUNTS_FINAL, VOID_INVOICE_FINAL, *TRIGGERS):
        op.execute(statement)


def downgrade() -> None:
    for trigger, table in (("final", "payments"), ("final", "refunds"), ("void_is_final", "invoices")):
        op.execute(f"DROP TRIGGER {trigger} ON {table}")
    for function in ("reject_payment_change", "reject_refund_change", "reject_void_invoice_change"):
        op.execute(f"DROP FUNCTION {function}()")
