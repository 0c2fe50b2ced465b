"""When open debts were last signaled to try a payment method."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010_offered_payment_methods"
down_revision = "0009_notifications"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Without a default at first: the methods that are on file have been tried already.
    op.add_column("payment_methods", sa.Column("offered_at", sa.DateTime(timezone=True), nullable=True))
    op.alter_column("payment_methods", "offered_at", server_default=sa.text("now()"))


def downgrade() -> None:
    op.drop_column("payment_methods", "offered_at")
