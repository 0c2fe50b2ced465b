"""Row-level security as DDL, used by migrations.

``berth_api`` sees the rows of the organisation that its transaction named, an administrator's transaction sees all,
and an unset name sees none. ``berth_worker`` acts across accounts by a policy of its own. Policies are FORCEd, so the
owner is bound as well.
"""

from __future__ import annotations

API, WORKER, OWNER = "berth_api", "berth_worker", "berth_owner"

IS_ADMINISTRATOR = "current_setting('berth.role', true) = 'ADMINISTRATOR'"


def own_rows(column: str = "organization_id") -> str:
    return f"{column} = NULLIF(current_setting('berth.organization', true), '') OR {IS_ADMINISTRATOR}"


def protect(table: str, *, api_may: str = "SELECT", rows: str | None = None) -> list[str]:
    """Return the statements that enable and force row-level security on ``table``.

    Args:
        api_may: Privileges of ``berth_api``; what a workflow owns is ``SELECT`` only.
        rows: The condition of visible rows; the default is the named organisation's.
    """
    condition = rows or own_rows()
    return [
        f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY",
        f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY",
        f"CREATE POLICY {table}_api ON {table} TO {API} USING ({condition}) WITH CHECK ({condition})",
        f"CREATE POLICY {table}_worker ON {table} TO {WORKER} USING (true) WITH CHECK (true)",
        f"CREATE POLICY {table}_owner ON {table} TO {OWNER} USING (true) WITH CHECK (true)",
        f"GRANT {api_may} ON {table} TO {API}",
        f"GRANT SELECT, INSERT, UPDATE, DELETE ON {table} TO {WORKER}",
    ]


def public_read(table: str) -> list[str]:
    """A table that belongs to no account: the API reads it, the worker writes it."""
    return [
        f"GRANT SELECT ON {table} TO {API}",
        f"GRANT SELECT, INSERT, UPDATE, DELETE ON {table} TO {WORKER}",
    ]
