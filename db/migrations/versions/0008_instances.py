"""Instances and the operations on them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from db.rls import WORKER_ROLE, enable_row_level_security

revision = "0008_instances"
down_revision = "0007_payments"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "installation",
        sa.Column("singleton", sa.Boolean(), server_default=sa.text("true"), nullable=False),
        sa.Column("id", sa.Uuid(), server_default=sa.text("gen_random_uuid()"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("singleton", name=op.f("ck_installation_singleton")),
        sa.PrimaryKeyConstraint("singleton", name=op.f("pk_installation")),
    )
    op.execute("INSERT INTO installation DEFAULT VALUES")
    op.execute(f"GRANT SELECT ON installation TO {WORKER_ROLE}")
    op.create_table(
        "instances",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("organization_id", sa.Text(), nullable=False),
        sa.Column("subscription_id", sa.Text(), nullable=False),
        sa.Column("service_slug", sa.Text(), nullable=False),
        sa.Column("version", sa.Text(), nullable=False),
        sa.Column("hostname", sa.Text(), nullable=False),
        sa.Column("namespace", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), server_default=sa.text("'requested'"), nullable=False),
        sa.Column("cpu_millicores", sa.BigInteger(), nullable=False),
        sa.Column("memory_mib", sa.BigInteger(), nullable=False),
        sa.Column("storage_gib", sa.BigInteger(), nullable=False),
        sa.Column("replicas", sa.BigInteger(), server_default=sa.text("1"), nullable=False),
        sa.Column("parameters", postgresql.JSONB(), server_default=sa.text("'{}'::jsonb"), nullable=False),
        sa.Column("entitlements", postgresql.JSONB(), server_default=sa.text("'{}'::jsonb"), nullable=False),
        sa.Column("failure_reason", sa.Text(), nullable=True),
        sa.Column("conditions", postgresql.JSONB(), server_default=sa.text("'[]'::jsonb"), nullable=False),
        sa.Column("url", sa.Text(), nullable=True),
        sa.Column("saved_replicas", postgresql.JSONB(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ready_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("deleted_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "status IN ('requested', 'provisioning', 'ready', 'stopped', 'suspended', 'degraded', 'failed', 'deleting',"
            " 'deleted', 'cleanup_pending')",
            name=op.f("ck_instances_status"),
        ),
        sa.CheckConstraint(
            "cpu_millicores > 0 AND memory_mib > 0 AND storage_gib > 0 AND replicas > 0",
            name=op.f("ck_instances_positive_resources"),
        ),
        sa.ForeignKeyConstraint(
            ["organization_id", "subscription_id"],
            ["subscriptions.organization_id", "subscriptions.id"],
            name="fk_instances_subscription",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_instances")),
        sa.UniqueConstraint("namespace", name=op.f("uq_instances_namespace")),
        sa.UniqueConstraint("subscription_id", name=op.f("uq_instances_subscription_id")),
        sa.UniqueConstraint("organization_id", "id", name=op.f("uq_instances_organization_id_id")),
    )
    op.create_index(op.f("ix_instances_status"), "instances", ["status"])
    # A name is free again once nothing of its instance is left, so that a failed order can be placed again.
    op.create_index(
        "uq_instances_hostname",
        "instances",
        ["hostname"],
        unique=True,
        postgresql_where=sa.text("deleted_at IS NULL"),
    )
    op.create_index("ix_instances_organization_id_created_at_id", "instances", ["organization_id", "created_at", "id"])
    op.create_table(
        "instance_operations",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("organization_id", sa.Text(), nullable=False),
        sa.Column("instance_id", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("failure_reason", sa.Text(), nullable=True),
        sa.Column("message", sa.Text(), nullable=True),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "status IN ('pending', 'running', 'succeeded', 'failed', 'cancelled')",
            name=op.f("ck_instance_operations_status"),
        ),
        sa.ForeignKeyConstraint(
            ["organization_id", "instance_id"],
            ["instances.organization_id", "instances.id"],
            name="fk_instance_operations_instance",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_instance_operations")),
    )
    op.create_index(
        "ix_instance_operations_instance_id_created_at_id",
        "instance_operations",
        ["instance_id", "created_at", "id"],
    )
    op.create_index(
        "uq_instance_operations_one_running_per_instance",
        "instance_operations",
        ["instance_id"],
        unique=True,
        postgresql_where=sa.text("status = 'running'"),
    )
    op.create_table(
        "instance_credentials",
        sa.Column("instance_id", sa.Text(), nullable=False),
        sa.Column("organization_id", sa.Text(), nullable=False),
        sa.Column("sealed", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("handed_over_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("handed_over_to", sa.Text(), nullable=True),
        sa.CheckConstraint(
            "(sealed IS NULL) = (handed_over_at IS NOT NULL)", name=op.f("ck_instance_credentials_once")
        ),
        sa.ForeignKeyConstraint(
            ["organization_id", "instance_id"],
            ["instances.organization_id", "instances.id"],
            name="fk_instance_credentials_instance",
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("instance_id", name=op.f("pk_instance_credentials")),
    )
    for table in ("instances", "instance_operations"):
        for statement in enable_row_level_security(table):
            op.execute(statement)
    # The API marks credentials as handed over, and can neither write new ones nor move them to another instance.
    for statement in enable_row_level_security(
        "instance_credentials",
        api_privileges="SELECT, UPDATE (sealed, handed_over_at, handed_over_to)",
        worker_privileges="SELECT, INSERT, UPDATE, DELETE",
    ):
        op.execute(statement)


def downgrade() -> None:
    op.drop_table("instance_credentials")
    op.drop_table("instance_operations")
    op.drop_table("instances")
    op.drop_table("installation")
