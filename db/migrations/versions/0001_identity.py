"""Applied migrations; people, organizations, sessions, idempotency records and the audit log; row-level security."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

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

# One statement sets the organization, tries to claim the key and reads the row. A key whose response is not final is
# claimed again by a request with the same body: `is_retry` says that the work of this attempt may have begun.
CLAIM = """
CREATE FUNCTION idempotency_claim_key(
    account text, at_route text, by_key text, hashed text, new_claim_id text, moment timestamptz, lease interval
) RETURNS TABLE (
    acquired boolean, is_same_request boolean, attempt bigint, is_retry boolean, response_status bigint,
    response_body text
)
LANGUAGE plpgsql SET search_path = pg_catalog, public, pg_temp AS $$
#variable_conflict use_column
BEGIN
    PERFORM set_config('berth.organization', account, true);
    INSERT INTO idempotency_records AS r (organization_id, route, key, request_hash, claim_id, claimed_until)
        VALUES (account, at_route, by_key, hashed, new_claim_id, moment + lease)
        ON CONFLICT (organization_id, route, key) DO UPDATE SET
            is_retry = r.claim_id <> '', claim_id = excluded.claim_id, claimed_until = excluded.claimed_until
        WHERE NOT r.is_final AND r.claimed_until <= moment AND r.request_hash = excluded.request_hash;
    RETURN QUERY SELECT r.claim_id = new_claim_id, r.request_hash = hashed, r.attempt, r.is_retry,
            CASE WHEN r.is_final THEN r.response_status END, CASE WHEN r.is_final THEN r.response_body END
        FROM idempotency_records r
        WHERE r.organization_id = account AND r.route = at_route AND r.key = by_key;
END $$
"""

# A response is stored, or (status null) the claim is released. The row stays: what the request started has ids that
# derive from the key, so the key is never free for another request. A refusal that passes ends the attempt: nothing was
# started, and a retry is a new attempt.
STORE_RESPONSE = """
CREATE FUNCTION idempotency_store_response(
    account text, at_route text, by_key text, held_claim_id text, status bigint, body text, final boolean,
    ends_attempt boolean
) RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
    PERFORM set_config('berth.organization', account, true);
    UPDATE idempotency_records SET
            response_status = COALESCE(status, response_status), response_body = COALESCE(body, response_body),
            is_final = final AND status IS NOT NULL, claimed_until = 'epoch',
            attempt = attempt + CASE WHEN ends_attempt THEN 1 ELSE 0 END,
            claim_id = CASE WHEN ends_attempt THEN '' ELSE claim_id END
        WHERE organization_id = account AND route = at_route AND key = by_key AND claim_id = held_claim_id
            AND NOT is_final;
END $$
"""

# Named columns: a column that is added later must not make every earlier entry look edited.
AUDIT_HASH = """
CREATE FUNCTION audit_hash(entry audit_log) RETURNS text LANGUAGE sql STABLE
SET search_path = pg_catalog, public, pg_temp SET timezone = 'UTC' AS $$
    SELECT encode(sha256(convert_to(jsonb_build_array(
        entry.id, entry.organization_id, entry.actor, entry.action, entry.object_id, entry.before, entry.after,
        entry.reason, entry.ip, entry.request_id, entry.at, entry.sequence, entry.previous_hash
    )::text, 'UTF8')), 'hex')
$$
"""

# The head's row lock puts the writers of one chain in line until they commit; other chains are not held up.
AUDIT_CHAIN = """
CREATE FUNCTION audit_append_to_chain() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
    link text := COALESCE(NEW.organization_id, 'platform');
    head audit_chain_heads;
BEGIN
    INSERT INTO audit_chain_heads (chain, sequence, hash) VALUES (link, 0, '') ON CONFLICT (chain) DO NOTHING;
    SELECT * INTO head FROM audit_chain_heads WHERE chain = link FOR UPDATE;
    NEW.sequence := head.sequence + 1;
    NEW.previous_hash := head.hash;
    NEW.hash := NULL;
    NEW.hash := audit_hash(NEW);
    UPDATE audit_chain_heads SET sequence = NEW.sequence, hash = NEW.hash WHERE chain = link;
    RETURN NEW;
END $$
"""

AUDIT_APPEND_ONLY = """
CREATE FUNCTION reject_audit_modification() RETURNS trigger LANGUAGE plpgsql
    SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
    RAISE EXCEPTION '% is append-only', TG_TABLE_NAME USING ERRCODE = 'restrict_violation';
END $$
"""

# Names every entry that is not what was written, does not follow its predecessor, or is missing at the chain's end.
AUDIT_FAULTS = """
CREATE FUNCTION audit_verify_chain() RETURNS TABLE (chain text, sequence bigint, fault text) LANGUAGE sql STABLE
SET search_path = pg_catalog, public, pg_temp AS $$
    WITH links AS (
        SELECT COALESCE(a.organization_id, 'platform') AS chain, a.sequence, a.hash, a.previous_hash,
               audit_hash(a) AS computed,
               lag(a.hash, 1, '') OVER each AS hash_before, lag(a.sequence, 1, 0::bigint) OVER each AS sequence_before
        FROM audit_log a
        WINDOW each AS (PARTITION BY COALESCE(a.organization_id, 'platform') ORDER BY a.sequence)
    )
    SELECT chain, sequence, 'edited' FROM links WHERE hash IS DISTINCT FROM computed
    UNION ALL
    SELECT chain, sequence, 'broken_link' FROM links
        WHERE previous_hash IS DISTINCT FROM hash_before OR sequence <> sequence_before + 1
    UNION ALL
    SELECT h.chain, h.sequence, 'truncated' FROM audit_chain_heads h
        WHERE NOT EXISTS (SELECT FROM links l WHERE l.chain = h.chain AND l.sequence = h.sequence AND l.hash = h.hash)
$$
"""

FUNCTIONS = {
    "auth_find_credentials(text)": SIGN_IN,
    "auth_find_refresh_token(text)": REFRESH,
    "auth_consume_one_time_token(text, text, timestamptz)": USE_TOKEN,
    "identity_create_organization(text, text, text, text, text, text, timestamptz)": CREATE_ORGANIZATION,
    "auth_delete_expired(bigint)": PURGE,
    "idempotency_claim_key(text, text, text, text, text, timestamptz, interval)": CLAIM,
    "idempotency_store_response(text, text, text, text, bigint, text, boolean, boolean)": STORE_RESPONSE,
}


def upgrade() -> None:
    op.execute(f"GRANT USAGE ON SCHEMA public TO {API_ROLE}, {WORKER_ROLE}")
    # A temporary table of a role could shadow a table in a statement without a schema.
    op.execute("DO $$ BEGIN EXECUTE format('REVOKE TEMPORARY ON DATABASE %I FROM PUBLIC', current_database()); END $$")
    create_schema_migrations()
    create_accounts()
    create_sessions()
    create_idempotency_and_audit()
    for statement in (*FUNCTIONS.values(), AUDIT_HASH, AUDIT_CHAIN, AUDIT_APPEND_ONLY, AUDIT_FAULTS):
        op.execute(statement)
    for name in FUNCTIONS:
        op.execute(f"REVOKE EXECUTE ON FUNCTION {name} FROM PUBLIC")
        op.execute(f"GRANT EXECUTE ON FUNCTION {name} TO {API_ROLE}")
    op.execute("REVOKE EXECUTE ON FUNCTION audit_append_to_chain() FROM PUBLIC")
    op.execute(
        "CREATE TRIGGER chain BEFORE INSERT ON audit_log FOR EACH ROW EXECUTE FUNCTION audit_append_to_chain()",
    )
    op.execute(
        "CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON audit_log"
        " FOR EACH STATEMENT EXECUTE FUNCTION reject_audit_modification()"
    )
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


def create_idempotency_and_audit() -> None:
    op.create_table(
        "idempotency_records",
        sa.Column("organization_id", sa.Text(), nullable=False),
        sa.Column("route", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("request_hash", sa.Text(), nullable=False),
        sa.Column("claim_id", sa.Text(), nullable=False),
        sa.Column("claimed_until", sa.DateTime(timezone=True), nullable=False),
        sa.Column("attempt", sa.BigInteger(), server_default=sa.text("1"), nullable=False),
        sa.Column("is_retry", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("response_status", sa.BigInteger(), nullable=True),
        sa.Column("response_body", sa.Text(), nullable=True),
        sa.Column("is_final", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.PrimaryKeyConstraint("organization_id", "route", "key", name=op.f("pk_idempotency_records")),
    )
    op.create_table(
        "audit_log",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("organization_id", sa.Text(), nullable=True),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("object_id", sa.Text(), nullable=True),
        sa.Column("before", postgresql.JSONB(), nullable=True),
        sa.Column("after", postgresql.JSONB(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("ip", sa.Text(), nullable=True),
        sa.Column("request_id", sa.Text(), nullable=True),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=True),
        sa.Column("previous_hash", sa.Text(), nullable=True),
        sa.Column("hash", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit_log")),
    )
    op.create_index("ix_audit_log_organization_id_id", "audit_log", ["organization_id", "id"], unique=False)
    op.create_index("ix_audit_log_actor_id", "audit_log", ["actor", "id"], unique=False)
    op.create_index("ix_audit_log_action_id", "audit_log", ["action", "id"], unique=False)
    op.create_index("ix_audit_log_object_id_id", "audit_log", ["object_id", "id"], unique=False)
    op.create_table(
        "audit_chain_heads",
        sa.Column("chain", sa.Text(), nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.Column("hash", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("chain", name=op.f("pk_audit_chain_heads")),
    )


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
        *enable_row_level_security(
            "idempotency_records", api_privileges="SELECT, INSERT, UPDATE", worker_privileges=""
        ),
        *enable_row_level_security("audit_log", api_privileges="SELECT, INSERT", worker_privileges="SELECT, INSERT"),
        # The chain's trigger alone moves the heads.
        *enable_row_level_security(
            "audit_chain_heads", worker_privileges="SELECT", row_condition=organization_rows("chain")
        ),
    ]
    for statement in statements:
        op.execute(statement)


def downgrade() -> None:
    for name in FUNCTIONS:
        op.execute(f"DROP FUNCTION {name}")
    op.execute("DROP FUNCTION audit_verify_chain()")
    op.execute("DROP TABLE audit_log CASCADE")
    for table in (
        "audit_chain_heads",
        "idempotency_records",
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
    for function in ("audit_append_to_chain()", "reject_audit_modification()"):
        op.execute(f"DROP FUNCTION {function}")
