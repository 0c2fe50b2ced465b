"""A refund that its bank rejects after the gateway has sent it, and the refund that a webhook is about."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0018_rejected_refunds"
down_revision = "0017_unfinished_removals"
branch_labels = None
depends_on = None

# The function of 0011 with one more change of status. What went to the wallet was never sent to a bank.
REFUND_FINAL = """
CREATE OR REPLACE FUNCTION reject_refund_change() RETURNS trigger LANGUAGE plpgsql
SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
    IF (OLD.id, OLD.organization_id, OLD.payment_id, OLD.amount_minor, OLD.from_wallet_minor, OLD.currency,
            OLD.destination, OLD.idempotency_key)
        IS DISTINCT FROM
        (NEW.id, NEW.organization_id, NEW.payment_id, NEW.amount_minor, NEW.from_wallet_minor, NEW.currency,
            NEW.destination, NEW.idempotency_key)
        OR OLD.status <> 'pending' AND NEW.status <> OLD.status{except_rejected}
    THEN
        RAISE EXCEPTION 'refund % keeps its amounts and its outcome', OLD.id USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NEW;
END $$
"""
EXCEPT_REJECTED = """
            AND NOT (OLD.destination = 'source' AND OLD.status = 'succeeded' AND NEW.status = 'failed')"""


def upgrade() -> None:
    op.execute(REFUND_FINAL.replace("{except_rejected}", EXCEPT_REJECTED))
    op.add_column("webhook_events", sa.Column("refund_id", sa.Text(), nullable=True))
    op.execute(
        "CREATE TRIGGER keeps_refund BEFORE UPDATE OF refund_id ON webhook_events FOR EACH ROW"
        " WHEN (NEW.refund_id IS DISTINCT FROM OLD.refund_id)"
        " EXECUTE FUNCTION reject_change('refund_id stands as it was inserted')"
    )


def downgrade() -> None:
    op.execute("DROP TRIGGER keeps_refund ON webhook_events")
    op.drop_column("webhook_events", "refund_id")
    op.execute(REFUND_FINAL.replace("{except_rejected}", ""))
