"""The administrators' list of the subscriptions of one status: one walk of an index.

The planner expects a comparison with a setting to admit one row of 200, and would sort all subscriptions of a status
rather than walk the index until it has a page of them. Of a ``COALESCE`` it expects that it admits every second row.
"""

from __future__ import annotations

from alembic import op

from db.rls import IS_ADMINISTRATOR, organization_rows

revision = "0016_subscriptions_by_status"
down_revision = "0015_refused_rows"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index("ix_subscriptions_status_created_at_id", "subscriptions", ["status", "created_at", "id"])
    op.drop_index("ix_subscriptions_status", "subscriptions")
    condition = organization_rows().replace(IS_ADMINISTRATOR, f"COALESCE({IS_ADMINISTRATOR}, false)")
    op.execute(f"ALTER POLICY subscriptions_api ON subscriptions USING ({condition})")


def downgrade() -> None:
    op.execute(f"ALTER POLICY subscriptions_api ON subscriptions USING ({organization_rows()})")
    op.create_index("ix_subscriptions_status", "subscriptions", ["status"])
    op.drop_index("ix_subscriptions_status_created_at_id", "subscriptions")
