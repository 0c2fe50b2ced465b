"""When a backup became the default because the default before it was removed."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0019_promoted_payment_methods"
down_revision = "0018_rejected_refunds"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("payment_methods", sa.Column("promoted_at", sa.DateTime(timezone=True), nullable=True))


def downgrade() -> None:
    op.drop_column("payment_methods", "promoted_at")
