"""When the gateway forgot a removed card: a removal whose workflow was lost before that is found and finished."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0017_unfinished_removals"
down_revision = "0016_subscriptions_by_status"
branch_labels = None
depends_on = None

# Nothing says which of these the gateway has not forgotten. To finish them all would report each as a lost workflow.
FINISH_EARLIER_REMOVALS = "UPDATE payment_methods SET gateway_detached_at = detached_at WHERE detached_at IS NOT NULL"


def upgrade() -> None:
    op.add_column("payment_methods", sa.Column("gateway_detached_at", sa.DateTime(timezone=True), nullable=True))
    op.execute(FINISH_EARLIER_REMOVALS)
    op.create_check_constraint(
        op.f("ck_payment_methods_detached"), "payment_methods", "gateway_detached_at IS NULL OR detached_at IS NOT NULL"
    )
    op.create_index(
        "ix_payment_methods_unfinished_removals",
        "payment_methods",
        ["id"],
        postgresql_where=sa.text("detached_at IS NOT NULL AND gateway_detached_at IS NULL"),
    )


def downgrade() -> None:
    op.drop_index("ix_payment_methods_unfinished_removals", "payment_methods")
    op.drop_constraint(op.f("ck_payment_methods_detached"), "payment_methods")
    op.drop_column("payment_methods", "gateway_detached_at")
