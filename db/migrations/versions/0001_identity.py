"""People, organisations, sessions, idempotency records and the audit log; row-level security from the start."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from db.rls import API, IS_ADMINISTRATOR, WORKER, own_rows, protect

revision = "0001_identity"
down_revision = None
branch_labels = None
depends_on = None

OWN_USER = f"user_id = NULLIF(current_setting('berth.user', true), '') OR {IS_ADMINISTRATOR}"

# Sign-in happens before it is known for whom the transaction speaks. These functions are the only doors: each takes a
# secret or an exact address and gives back one row at most. They run as the owner, with a path that nobody can prepend.
DOOR = "LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp"

SIGN_IN = f"""
CREATE FUNCTION identity_sign_in(wanted text) RETURNS TABLE (
    user_id text, email text, name text, password_hash text, role text, email_verified_at timestamptz,
    disabled_at timestamptz, organization_id text, membership_role text, timezone text
) STABLE {DOOR} AS $$
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
CREATE FUNCTION identity_refresh(hashed text) RETURNS TABLE (
    session_id text, user_id text, organization_id text, role text, membership_role text, timezone text,
    email_verified_at timestamptz, disabled_at timestamptz, revoked_at timestamptz, session_expires_at timestamptz,
    expires_at timestamptz, used_at timestamptz
) STABLE {DOOR} AS $$
    SELECT s.id, u.id, s.organization_id, u.role, m.role, o.timezone,
           u.email_verified_at, u.disabled_at, s.revoked_at, s.expires_at, t.expires_at, t.used_at
    FROM refresh_tokens t
        JOIN sessions s ON s.id = t.session_id
        JOIN users u ON u.id = s.user_id
        JOIN organizations o ON o.id = s.organization_id
        JOIN memberships m ON m.user_id = u.id AND m.organization_id = s.organization_id
    WHERE t.token_hash = hashed
$$
"""

# Finding and using up is one statement, so that of two requests with one token a single one gets the row.
USE_TOKEN = f"""
CREATE FUNCTION identity_use_token(hashed text, wanted text, moment timestamptz) RETURNS TABLE (
    user_id text, organization_id text, role text
) VOLATILE {DOOR} AS $$
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

PURGE = f"""
CREATE FUNCTION identity_purge(moment timestamptz) RETURNS void VOLATILE {DOOR} AS $$
    DELETE FROM revoked_tokens WHERE expires_at < moment;
    DELETE FROM idempotency_records WHERE expires_at < moment;
    DELETE FROM one_time_tokens WHERE expires_at < moment - interval '7 days';
    DELETE FROM sessions WHERE expires_at < moment - interval '30 days';
$$
"""

# One round trip instead of three (name the account, try to claim, read what is there).
CLAIM = """
CREATE FUNCTION idempotency_claim(
    account text, at_route text, by_key text, hashed text, new_claim text, moment timestamptz, hold interval,
    keep interval
) RETURNS TABLE (mine boolean, same_body boolean, status bigint, body text) LANGUAGE plpgsql
SET search_path = pg_catalog, public, pg_temp AS $$
#variable_conflict use_column
BEGIN
    PERFORM set_config('berth.organization', account, true);
    INSERT INTO idempotency_records AS r
        (organization_id, route, key, body_hash, claim, claimed_until, expires_at)
        VALUES (account, at_route, by_key, hashed, new_claim, moment + hold, moment + keep)
        ON CONFLICT (organization_id, route, key) DO UPDATE SET
            body_hash = excluded.body_hash, claim = excluded.claim, claimed_until = excluded.claimed_until,
            expires_at = excluded.expires_at, status = NULL, body = NULL
        WHERE r.expires_at < moment
            OR (r.status IS NULL AND r.claimed_until < moment AND r.body_hash = excluded.body_hash);
    RETURN QUERY SELECT r.claim = new_claim, r.body_hash = hashed, r.status, r.body
        FROM idempotency_records r
        WHERE r.organization_id = account AND r.route = at_route AND r.key = by_key;
END $$
"""

# An answer is recorded, or (status null) the claim is given back so that the next request may try again.
SETTLE = """
CREATE FUNCTION idempotency_settle(
    account text, at_route text, by_key text, held_claim text, answer_status bigint, answer_body text
) RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
    PERFORM set_config('berth.organization', account, true);
    IF answer_status IS NULL THEN
        DELETE FROM idempotency_records
            WHERE organization_id = account AND route = at_route AND key = by_key AND claim = held_claim
                AND status IS NULL;
    ELSE
        UPDATE idempotency_records SET status = answer_status, body = answer_body
            WHERE organization_id = account AND route = at_route AND key = by_key AND claim = held_claim;
    END IF;
END $$
"""

AUDIT_HASH = """
CREATE FUNCTION audit_hash(entry audit_log) RETURNS text LANGUAGE sql STABLE
SET search_path = pg_catalog, public, pg_temp SET timezone = 'UTC' AS $$
    SELECT encode(sha256(convert_to((to_jsonb(entry) - 'hash')::text, 'UTF8')), 'hex')
$$
"""

# The head's row lock puts the writers of one chain in line until they commit; other chains are not held up.
AUDIT_CHAIN = """
CREATE FUNCTION audit_chain() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
    link text := COALESCE(NEW.organization_id, 'platform');
    head audit_heads;
BEGIN
    INSERT INTO audit_heads (chain, sequence, hash) VALUES (link, 0, '') ON CONFLICT (chain) DO NOTHING;
    SELECT * INTO head FROM audit_heads WHERE chain = link FOR UPDATE;
    NEW.sequence := head.sequence + 1;
    NEW.previous_hash := head.hash;
    NEW.hash := NULL;
    NEW.hash := audit_hash(NEW);
    UPDATE audit_heads SET sequence = NEW.sequence, hash = NEW.hash WHERE chain = link;
    RETURN NEW;
END $$
"""

AUDIT_FOR_EVER = """
CREATE FUNCTION audit_is_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% is append-only', TG_TABLE_NAME USING ERRCODE = 'restrict_violation';
END $$
"""

# Names every entry that is not what was written, does not follow its predecessor, or is missing at the chain's end.
AUDIT_FAULTS = """
CREATE FUNCTION audit_faults() RETURNS TABLE (chain text, sequence bigint, fault text) LANGUAGE sql STABLE
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
    SELECT chain, sequence, 'does not follow' FROM links
        WHERE previous_hash IS DISTINCT FROM hash_before OR sequence <> sequence_before + 1
    UNION ALL
    SELECT h.chain, h.sequence, 'end is missing' FROM audit_heads h
        WHERE NOT EXISTS (SELECT FROM links l WHERE l.chain = h.chain AND l.sequence = h.sequence AND l.hash = h.hash)
$$
"""

FUNCTIONS = {
    "identity_sign_in(text)": SIGN_IN,
    "identity_refresh(text)": REFRESH,
    "identity_use_token(text, text, timestamptz)": USE_TOKEN,
    "identity_purge(timestamptz)": PURGE,
    "idempotency_claim(text, text, text, text, text, timestamptz, interval, interval)": CLAIM,
    "idempotency_settle(text, text, text, text, bigint, text)": SETTLE,
}


def upgrade() -> None:
    op.execute(f"GRANT USAGE ON SCHEMA public TO {API}, {WORKER}")
    create_accounts()
    create_sessions()
    create_records()
    for statement in (*FUNCTIONS.values(), AUDIT_HASH, AUDIT_CHAIN, AUDIT_FOR_EVER, AUDIT_FAULTS):
        op.execute(statement)
    for name in FUNCTIONS:
        op.execute(f"REVOKE EXECUTE ON FUNCTION {name} FROM PUBLIC")
        op.execute(f"GRANT EXECUTE ON FUNCTION {name} TO {API}, {WORKER}")
    op.execute("REVOKE EXECUTE ON FUNCTION audit_chain() FROM PUBLIC")
    op.execute(
        "CREATE TRIGGER chain BEFORE INSERT ON audit_log FOR EACH ROW EXECUTE FUNCTION audit_chain()",
    )
    op.execute(
        "CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON audit_log"
        " FOR EACH STATEMENT EXECUTE FUNCTION audit_is_append_only()"
    )
    protect_all()


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
        "sessions",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("user_id", sa.Text(), nullable=False),
        sa.Column("organization_id", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("last_used_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("revoked_because", sa.Text(), nullable=True),
        sa.Column("ip", sa.Text(), nullable=True),
        sa.Column("user_agent", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_sessions_user_id_users")),
        sa.ForeignKeyConstraint(
            ["organization_id"], ["organizations.id"], name=op.f("fk_sessions_organization_id_organizations")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_sessions")),
    )
    op.create_index(op.f("ix_sessions_user_id"), "sessions", ["user_id"], unique=False)
    op.create_table(
        "refresh_tokens",
        sa.Column("token_hash", sa.Text(), nullable=False),
        sa.Column("session_id", sa.Text(), nullable=False),
        sa.Column("user_id", sa.Text(), nullable=False),
        sa.Column("issued_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("used_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["session_id"],
            ["sessions.id"],
            name=op.f("fk_refresh_tokens_session_id_sessions"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_refresh_tokens_user_id_users")),
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
    op.create_table(
        "revoked_tokens",
        sa.Column("session_id", sa.Text(), nullable=False),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("session_id", name=op.f("pk_revoked_tokens")),
    )
    op.create_index(op.f("ix_revoked_tokens_expires_at"), "revoked_tokens", ["expires_at"], unique=False)


def create_records() -> None:
    op.create_table(
        "idempotency_records",
        sa.Column("organization_id", sa.Text(), nullable=False),
        sa.Column("route", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("body_hash", sa.Text(), nullable=False),
        sa.Column("claim", sa.Text(), nullable=False),
        sa.Column("claimed_until", sa.DateTime(timezone=True), nullable=False),
        sa.Column("status", sa.BigInteger(), nullable=True),
        sa.Column("body", sa.Text(), nullable=True),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("organization_id", "route", "key", name=op.f("pk_idempotency_records")),
    )
    op.create_index(op.f("ix_idempotency_records_expires_at"), "idempotency_records", ["expires_at"], unique=False)
    op.create_table(
        "audit_log",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("organization_id", sa.Text(), nullable=True),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("object", sa.Text(), nullable=True),
        sa.Column("before", postgresql.JSONB(), nullable=True),
        sa.Column("after", postgresql.JSONB(), nullable=True),
        sa.Column("ip", sa.Text(), nullable=True),
        sa.Column("request_id", sa.Text(), nullable=True),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=True),
        sa.Column("previous_hash", sa.Text(), nullable=True),
        sa.Column("hash", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit_log")),
    )
    op.create_index("ix_audit_log_organization_id_id", "audit_log", ["organization_id", "id"], unique=False)
    op.create_table(
        "audit_heads",
        sa.Column("chain", sa.Text(), nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.Column("hash", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("chain", name=op.f("pk_audit_heads")),
    )


def protect_all() -> None:
    """Privileges by column: no request, whatever its body, makes the API write a role or a currency."""
    member = f"{own_rows()} OR user_id = NULLIF(current_setting('berth.user', true), '')"
    own_id = f"id = NULLIF(current_setting('berth.user', true), '') OR {IS_ADMINISTRATOR}"
    statements = [
        *protect(
            "organizations",
            api_may="SELECT, INSERT, UPDATE (name, country, timezone, updated_at)",
            rows=own_rows("id"),
        ),
        *protect(
            "users",
            api_may="SELECT, INSERT (id, email, name, password_hash, password_changed_at, created_at, updated_at),"
            " UPDATE (name, password_hash, email_verified_at, password_changed_at, disabled_at, updated_at)",
            rows=own_id,
        ),
        *protect("memberships", api_may="SELECT, INSERT", rows=member),
        *protect("sessions", api_may="SELECT, INSERT, UPDATE", rows=OWN_USER),
        *protect("refresh_tokens", api_may="SELECT, INSERT, UPDATE (used_at)", rows=OWN_USER),
        *protect("one_time_tokens", api_may="SELECT, INSERT, UPDATE (used_at)", rows=OWN_USER),
        # Every API process reads every revocation: an opaque session id and nothing else.
        *protect("revoked_tokens", api_may="SELECT, INSERT", rows="true"),
        *protect("idempotency_records", api_may="SELECT, INSERT, UPDATE, DELETE"),
        *protect("audit_log", api_may="SELECT, INSERT"),
        # The chain's trigger alone moves the heads.
        *protect("audit_heads", api_may="SELECT", rows=own_rows("chain")),
        f"REVOKE INSERT, UPDATE, DELETE ON audit_heads FROM {WORKER}",
        f"REVOKE UPDATE, DELETE ON audit_log FROM {WORKER}",
    ]
    for statement in statements:
        op.execute(statement)


def downgrade() -> None:
    for name in FUNCTIONS:
        op.execute(f"DROP FUNCTION {name}")
    op.execute("DROP FUNCTION audit_faults()")
    op.execute("DROP TABLE audit_log CASCADE")
    for table in (
        "audit_heads",
        "idempotency_records",
        "revoked_tokens",
        "one_time_tokens",
        "refresh_tokens",
        "sessions",
        "memberships",
        "users",
        "organizations",
    ):
        op.drop_table(table)
    for function in ("audit_chain()", "audit_is_append_only()"):
        op.execute(f"DROP FUNCTION {function}")
