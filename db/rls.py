"""Row-level security as DDL, used by migrations.

``berth_api`` sees the rows of the organization in its RLS context, an administrator sees all, and without a context it
sees none. ``berth_worker`` reads and writes all organizations by a separate policy. Policies are forced, so that they
bind the owner as well.
"""

from __future__ import annotations

API_ROLE, WORKER_ROLE, OWNER_ROLE = "berth_api", "berth_worker", "berth_owner"

IS_ADMINISTRATOR = "current_setting('berth.role', true) = 'ADMINISTRATOR'"


def organization_rows(column: str = "organization_id") -> str:
    return f"{column} = NULLIF(current_setting('berth.organization', true), '') OR {IS_ADMINISTRATOR}"


def enable_row_level_security(
    table: str,
    *,
    api_privileges: str = "SELECT",
    worker_privileges: str = "SELECT, INSERT, UPDATE",
    row_condition: str | None = None,
) -> list[str]:
    """Return the statements that enable and force row-level security on ``table``.

    Args:
        api_privileges: Privileges of ``berth_api``; what a workflow owns is ``SELECT`` only.
        worker_privileges: Privileges of ``berth_worker``; empty for what only the API uses.
        row_condition: The condition of visible rows; the default is the named organization's.
    """
    condition = row_condition or organization_rows()
    return [
        f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY",
        f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY",
        f"CREATE POLICY {table}_api ON {table} TO {API_ROLE} USING ({condition}) WITH CHECK ({condition})",
        f"CREATE POLICY {table}_worker ON {table} TO {WORKER_ROLE} USING (true) WITH CHECK (true)",
        f"CREATE POLICY {table}_owner ON {table} TO {OWNER_ROLE} USING (true) WITH CHECK (true)",
        f"GRANT {api_privileges} ON {table} TO {API_ROLE}",
        *([f"GRANT {worker_privileges} ON {table} TO {WORKER_ROLE}"] if worker_privileges else []),
    ]


def grant_public_read(table: str) -> list[str]:
    """A table that belongs to no account: the API reads it, the worker writes it."""
    return [
        f"GRANT SELECT ON {table} TO {API_ROLE}",
        f"GRANT SELECT, INSERT, UPDATE ON {table} TO {WORKER_ROLE}",
    ]
