"""The order of the administrators' list of subscriptions."""

from __future__ import annotations

from alembic import op

revision = "0013_newest_subscriptions"
down_revision = "0012_started_trials"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index("ix_subscriptions_created_at_id", "subscriptions", ["created_at", "id"])


def downgrade() -> None:
    op.drop_index("ix_subscriptions_created_at_id", "subscriptions")
