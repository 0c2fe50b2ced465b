"""Applied migrations; people, organizations and their sessions; row-level security from the start."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from db.rls import API_ROLE, IS_ADMINISTRATOR, WORKER_ROLE, enable_row_level_security, organization_rows

revision = "0001_identity"
down_revision = None
branch_labels = None
depends_on = None

USER_ROWS = f"user_id = NULLIF(current_setting('berth.user', true), '') OR {IS_ADMINISTRATOR}"

# At sign-in the transaction has no user yet. Only these functions read past row-level security: each takes a secret or
# an exact address and returns one row at most. They run as the owner, with a fixed search_path.
SECURITY_DEFINER_FUNCTION = "LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp"

SIGN_IN = f"""
CREATE FUNCTION auth_find_credentials(wanted text) RETURNS TABLE (
    user_id text, email text, name text, password_hash text, role text, email_verified_at timestamptz,
    disabled_at timestamptz, organization_id text, membership_role text, timezone text
) STABLE {SECURITY_DEFINER_FUNCTION} AS $$
    SELECT u.id, u.email, u.name, u.password_hash, u.role, u.email_verified_at, u.disabled_at,
           m.organization_id, m.role, o.timezone
    FROM users u
        JOIN memberships m ON m.user_id = u.id
        JOIN organizations o ON o.id = m.organization_id
    WHERE lower(u.email) = lower(wanted)
    ORDER BY m.created_at, m.organization_id
    LIMIT 1
$$
"""

REFRESH = f"""
CREATE FUNCTION auth_find_refresh_token(hashed text) RETURNS TABLE (
    session_id text, user_id text, organization_id text, role text, membership_role text, timezone text,
    email_verified_at timestamptz, disabled_at timestamptz, revoked_at timestamptz, session_expires_at timestamptz,
    expires_at timestamptz, used_at timestamptz
) STABLE {SECURITY_DEFINER_FUNCTION} AS $$
    SELECT s.id, u.id, s.organization_id, u.role, m.role, o.timezone,
           u.email_verified_at, u.disabled_at, s.revoked_at, s.expires_at, t.expires_at, t.used_at
    FROM refresh_tokens t
        JOIN user_sessions s ON s.id = t.session_id
        JOIN users u ON u.id = s.user_id
        JOIN organizations o ON o.id = s.organization_id
        JOIN memberships m ON m.user_id = u.id AND m.organization_id = s.organization_id
    WHERE t.token_hash = hashed
$$
"""

# Finding and using up is one statement, so that of two requests with one token a single one gets the row.
USE_TOKEN = f"""
CREATE FUNCTION auth_consume_one_time_token(hashed text, wanted text, moment timestamptz) RETURNS TABLE (
    user_id text, organization_id text, role text
) VOLATILE {SECURITY_DEFINER_FUNCTION} AS $$
    WITH used AS (
        UPDATE one_time_tokens SET used_at = moment
        WHERE token_hash = hashed AND purpose = wanted AND used_at IS NULL AND expires_at > moment
        RETURNING user_id
    )
    SELECT u.id, m.organization_id, u.role
    FROM used JOIN users u ON u.id = used.user_id JOIN memberships m ON m.user_id = u.id
    WHERE u.disabled_at IS NULL
    ORDER BY m.created_at, m.organization_id
    LIMIT 1
$$
"""

# The only way in which the API's role writes a membership: of an organization that this statement itself creates, for
# the user of the transaction. A known organization id fails on its primary key, so registering cannot join it.
CREATE_ORGANIZATION = """
CREATE FUNCTION identity_create_organization(
    new_id text, owner_id text, new_name text, new_currency text, new_country text, new_timezone text,
    moment timestamptz
) RETURNS void LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
    IF owner_id IS DISTINCT FROM NULLIF(current_setting('berth.user', true), '') THEN
        RAISE EXCEPTION 'the owner of a new organization is the user of the transaction'
            USING ERRCODE = 'insufficient_privilege';
    END IF;
    INSERT INTO organizations (id, name, currency, country, timezone, created_at, updated_at)
        VALUES (new_id, new_name, new_currency, new_country, new_timezone, moment, moment);
    INSERT INTO memberships (organization_id, user_id, role, created_at)
        VALUES (new_id, owner_id, 'owner', moment);
END $$
"""

# The API's role may call it: by the database's clock, so that no caller deletes what has not expired, and a few rows at
# a time, so that no call holds many locks.
PURGE = f"""
CREATE FUNCTION auth_delete_expired(batch_size bigint) RETURNS bigint VOLATILE {SECURITY_DEFINER_FUNCTION} AS $$
    WITH revocations AS (
        DELETE FROM revoked_sessions WHERE session_id IN (
            SELECT session_id FROM revoked_sessions WHERE expires_at < now()
            ORDER BY expires_at LIMIT least(batch_size, 1000) FOR UPDATE SKIP LOCKED)
        RETURNING 1
    ), tokens AS (
        DELETE FROM one_time_tokens WHERE token_hash IN (
            SELECT token_hash FROM one_time_tokens WHERE expires_at < now() - interval '7 days'
            ORDER BY expires_at LIMIT least(batch_size, 1000) FOR UPDATE SKIP LOCKED)
        RETURNING 1
    ), sessions AS (
        DELETE FROM user_sessions WHERE id IN (
            SELECT id FROM user_sessions WHERE expires_at < now() - interval '30 days'
            ORDER BY expires_at LIMIT least(batch_size, 1000) FOR UPDATE SKIP LOCKED)
        RETURNING 1
    )
    SELECT greatest(
        (SELECT count(*) FROM revocations), (SELECT count(*) FROM tokens), (SELECT count(*) FROM sessions)
    )
$$
"""

FUNCTIONS = {
    "auth_find_credentials(text)": SIGN_IN,
    "auth_find_refresh_token(text)": REFRESH,
    "auth_consume_one_time_token(text, text, timestamptz)": USE_TOKEN,
    "identity_create_organization(text, text, text, text, text, text, timestamptz)": CREATE_ORGANIZATION,
    "auth_delete_expired(bigint)": PURGE,
}


def upgrade() -> None:
    op.execute(f"GRANT USAGE ON SCHEMA public TO {API_ROLE}, {WORKER_ROLE}")
    # A temporary table of a role could shadow a table in a statement without a schema.
    op.execute("DO $$ BEGIN EXECUTE format('REVOKE TEMPORARY ON DATABASE %I FROM PUBLIC', current_database()); END $$")
    create_schema_migrations()
    create_accounts()
    create_sessions()
    for name, statement in FUNCTIONS.items():
        op.execute(statement)
        op.execute(f"REVOKE EXECUTE ON FUNCTION {name} FROM PUBLIC")
        op.execute(f"GRANT EXECUTE ON FUNCTION {name} TO {API_ROLE}")
    apply_row_level_security()


def create_schema_migrations() -> None:
    op.create_table(
        "schema_migrations",
        sa.Column("revision", sa.Text(), nullable=False),
        sa.Column("checksum", sa.Text(), nullable=False),
        sa.Column("applied_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("revision", name=op.f("pk_schema_migrations")),
    )
    op.execute(f"GRANT SELECT ON schema_migrations TO {API_ROLE}, {WORKER_ROLE}")


def create_accounts() -> None:
    op.create_table(
        "organizations",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("currency", sa.Text(), nullable=False),
        sa.Column("country", sa.Text(), nullable=True),
        sa.Column("timezone", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_organizations")),
    )
    op.create_table(
        "users",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("email", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("password_hash", sa.Text(), nullable=False),
        sa.Column("role", sa.Text(), server_default=sa.text("'USER'"), nullable=False),
        sa.Column("email_verified_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("password_changed_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("disabled_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint(
            "role IN ('USER', 'ADMINISTRATOR', 'NODE_OPERATOR', 'DASHBOARD_OPERATOR')", name=op.f("ck_users_role")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_users")),
    )
    op.create_index("uq_users_email_lower", "users", [sa.text("lower(email)")], unique=True)
    op.create_index("ix_users_created_at_id", "users", ["created_at", "id"], unique=False)
    op.create_table(
        "memberships",
        sa.Column("organization_id", sa.Text(), nullable=False),
        sa.Column("user_id", sa.Text(), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("role IN ('owner', 'admin', 'billing', 'member')", name=op.f("ck_memberships_role")),
        sa.ForeignKeyConstraint(
            ["organization_id"], ["organizations.id"], name=op.f("fk_memberships_organization_id_organizations")
        ),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_memberships_user_id_users")),
        sa.PrimaryKeyConstraint("organization_id", "user_id", name=op.f("pk_memberships")),
    )
    op.create_index(op.f("ix_memberships_user_id"), "memberships", ["user_id"], unique=False)


def create_sessions() -> None:
    op.create_table(
        "user_sessions",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("user_id", sa.Text(), nullable=False),
        sa.Column("organization_id", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("last_used_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("revocation_reason", sa.Text(), nullable=True),
        sa.Column("ip", sa.Text(), nullable=True),
        sa.Column("user_agent", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_user_sessions_user_id_users")),
        sa.ForeignKeyConstraint(
            ["organization_id"], ["organizations.id"], name=op.f("fk_user_sessions_organization_id_organizations")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_user_sessions")),
        sa.UniqueConstraint("id", "user_id", name=op.f("uq_user_sessions_id_user_id")),
    )
    op.create_index(op.f("ix_user_sessions_user_id"), "user_sessions", ["user_id"], unique=False)
    op.create_index(op.f("ix_user_sessions_expires_at"), "user_sessions", ["expires_at"], unique=False)
    op.create_table(
        "refresh_tokens",
        sa.Column("token_hash", sa.Text(), nullable=False),
        sa.Column("session_id", sa.Text(), nullable=False),
        sa.Column("user_id", sa.Text(), nullable=False),
        sa.Column("issued_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("used_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["session_id", "user_id"],
            ["user_sessions.id", "user_sessions.user_id"],
            name="fk_refresh_tokens_session",
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("token_hash", name=op.f("pk_refresh_tokens")),
    )
    op.create_index(op.f("ix_refresh_tokens_session_id"), "refresh_tokens", ["session_id"], unique=False)
    op.create_table(
        "one_time_tokens",
        sa.Column("token_hash", sa.Text(), nullable=False),
        sa.Column("user_id", sa.Text(), nullable=False),
        sa.Column("purpose", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("used_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_one_time_tokens_user_id_users")),
        sa.PrimaryKeyConstraint("token_hash", name=op.f("pk_one_time_tokens")),
    )
    op.create_index(op.f("ix_one_time_tokens_user_id"), "one_time_tokens", ["user_id"], unique=False)
    op.create_index(op.f("ix_one_time_tokens_expires_at"), "one_time_tokens", ["expires_at"], unique=False)
    op.create_table(
        "revoked_sessions",
        sa.Column("session_id", sa.Text(), nullable=False),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("session_id", name=op.f("pk_revoked_sessions")),
    )
    op.create_index(op.f("ix_revoked_sessions_expires_at"), "revoked_sessions", ["expires_at"], unique=False)


def apply_row_level_security() -> None:
    """Privileges by column: no request, whatever its body, makes the API write a role or a currency."""
    member = f"{organization_rows()} OR user_id = NULLIF(current_setting('berth.user', true), '')"
    own_id = f"id = NULLIF(current_setting('berth.user', true), '') OR {IS_ADMINISTRATOR}"
    statements = [
        *enable_row_level_security(
            "organizations",
            api_privileges="SELECT, UPDATE (name, country, timezone, updated_at)",
            worker_privileges="SELECT",
            row_condition=organization_rows("id"),
        ),
        *enable_row_level_security(
            "users",
            api_privileges="SELECT, INSERT (id, email, name, password_hash, password_changed_at, created_at,"
            " updated_at), UPDATE (name, password_hash, email_verified_at, password_changed_at, updated_at)",
            worker_privileges="SELECT",
            row_condition=own_id,
        ),
        *enable_row_level_security("memberships", worker_privileges="SELECT", row_condition=member),
        # How users sign in, and what the API answered them, is nothing to the worker.
        *enable_row_level_security(
            "user_sessions",
            api_privileges="SELECT, INSERT, UPDATE",
            worker_privileges="",
            row_condition=USER_ROWS,
        ),
        *enable_row_level_security(
            "refresh_tokens",
            api_privileges="SELECT, INSERT, UPDATE (used_at)",
            worker_privileges="",
            row_condition=USER_ROWS,
        ),
        *enable_row_level_security(
            "one_time_tokens",
            api_privileges="SELECT, INSERT, UPDATE (used_at)",
            worker_privileges="",
            row_condition=USER_ROWS,
        ),
        # Every API process reads every revocation: an opaque session id and nothing else.
        *enable_row_level_security(
            "revoked_sessions", api_privileges="SELECT, INSERT", worker_privileges="", row_condition="true"
        ),
    ]
    for statement in statements:
        op.execute(statement)


def downgrade() -> None:
    for name in FUNCTIONS:
        op.execute(f"DROP FUNCTION {name}")
    for table in (
        "revoked_sessions",
        "one_time_tokens",
        "refresh_tokens",
        "user_sessions",
        "memberships",
        "users",
        "organizations",
        "schema_migrations",
    ):
        op.drop_table(table)
