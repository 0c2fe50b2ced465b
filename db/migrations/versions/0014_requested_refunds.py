"""When a refund was first requested, by the clock that also decides how old a payment's idempotency key is."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0014_requested_refunds"
down_revision = "0013_newest_subscriptions"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Without a default at first: the gateway may have forgotten the keys of the refunds that exist.
    op.add_column("refunds", sa.Column("gateway_requested_at", sa.DateTime(timezone=True), nullable=True))
    op.alter_column("refunds", "gateway_requested_at", server_default=sa.text("now()"))


def downgrade() -> None:
    op.drop_column("refunds", "gateway_requested_at")
