"""A trial is used once it has started: an order that was cancelled before then does not consume it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0012_started_trials"
down_revision = "0011_final_amounts"
branch_labels = None
depends_on = None

INDEX = "uq_subscriptions_one_trial_per_service"
COLUMNS = ["organization_id", "service_id"]


def upgrade() -> None:
    op.drop_index(INDEX, "subscriptions")
    op.create_index(
        INDEX,
        "subscriptions",
        COLUMNS,
        unique=True,
        postgresql_where=sa.text("is_trial AND (trial_end IS NOT NULL OR status IN ('pending', 'provisioning'))"),
    )


def downgrade() -> None:
    op.drop_index(INDEX, "subscriptions")
    op.create_index(
        INDEX,
        "subscriptions",
        COLUMNS,
        unique=True,
        postgresql_where=sa.text("is_trial AND status NOT IN ('failed', 'expired')"),
    )
