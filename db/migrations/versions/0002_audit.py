"""Responses stored per idempotency key, and the audit log."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from db.rls import API_ROLE, enable_row_level_security, organization_rows

revision = "0002_audit"
down_revision = "0001_identity"
branch_labels = None
depends_on = None

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
    "idempotency_claim_key(text, text, text, text, text, timestamptz, interval)": CLAIM,
    "idempotency_store_response(text, text, text, text, bigint, text, boolean, boolean)": STORE_RESPONSE,
}


def upgrade() -> None:
    create_tables()
    for name, statement in FUNCTIONS.items():
        op.execute(statement)
        op.execute(f"REVOKE EXECUTE ON FUNCTION {name} FROM PUBLIC")
        op.execute(f"GRANT EXECUTE ON FUNCTION {name} TO {API_ROLE}")
    for statement in (AUDIT_HASH, AUDIT_CHAIN, AUDIT_APPEND_ONLY, AUDIT_FAULTS):
        op.execute(statement)
    op.execute("REVOKE EXECUTE ON FUNCTION audit_append_to_chain() FROM PUBLIC")
    op.execute("CREATE TRIGGER chain BEFORE INSERT ON audit_log FOR EACH ROW EXECUTE FUNCTION audit_append_to_chain()")
    op.execute(
        "CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON audit_log"
        " FOR EACH STATEMENT EXECUTE FUNCTION reject_audit_modification()"
    )
    for statement in (
        *enable_row_level_security(
            "idempotency_records", api_privileges="SELECT, INSERT, UPDATE", worker_privileges=""
        ),
        *enable_row_level_security("audit_log", api_privileges="SELECT, INSERT", worker_privileges="SELECT, INSERT"),
        # The chain's trigger alone moves the heads.
        *enable_row_level_security(
            "audit_chain_heads", worker_privileges="SELECT", row_condition=organization_rows("chain")
        ),
    ):
        op.execute(statement)


def create_tables() -> None:
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


def downgrade() -> None:
    for name in FUNCTIONS:
        op.execute(f"DROP FUNCTION {name}")
    op.execute("DROP FUNCTION audit_verify_chain()")
    op.execute("DROP TABLE audit_log CASCADE")
    op.drop_table("audit_chain_heads")
    op.drop_table("idempotency_records")
    for function in ("audit_append_to_chain()", "reject_audit_modification()"):
        op.execute(f"DROP FUNCTION {function}")
