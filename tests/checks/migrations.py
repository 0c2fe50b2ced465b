"""Check that the migrations, run on an empty PostgreSQL, create exactly what the models describe.

Alembic compares tables, columns and keys. What it does not compare is read from PostgreSQL's catalog, in a database
that the migrations made and in one that the models made: conditions of CHECKs, of partial indexes and of foreign keys.

What no model describes (triggers, policies, functions and who may do what) is compared with ``schema_objects.txt``, so
that each change of it is seen. ``python -m tests.checks.migrations record`` writes the file.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, create_engine, pool, text

import db.models
from db.base import Base
from deploy.local.postgres import OWNER_ROLE, Postgres
from tests.support.databases import migrate

ROOT = Path(__file__).resolve().parents[2]

DEFINITIONS = """
SELECT conrelid::regclass::text, conname::text, pg_get_constraintdef(oid) FROM pg_constraint
    WHERE connamespace = 'public'::regnamespace AND contype IN ('c', 'f', 'p', 'u')
    AND conrelid IS DISTINCT FROM to_regclass('alembic_version')
UNION ALL
SELECT tablename::text, indexname::text, indexdef FROM pg_indexes
    WHERE schemaname = 'public' AND tablename <> 'alembic_version'
"""


EXPECTED_OBJECTS = Path(__file__).with_name("schema_objects.txt")

OBJECTS = """
SELECT pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal
UNION ALL
SELECT format('ROW LEVEL SECURITY %s%s ON %s', CASE WHEN relrowsecurity THEN 'enabled' ELSE 'disabled' END,
        CASE WHEN relforcerowsecurity THEN ', forced' ELSE '' END, relname)
    FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'
UNION ALL
SELECT format('POLICY %s ON %s FOR %s TO %s USING (%s) WITH CHECK (%s)', policyname, tablename, cmd,
        array_to_string(roles, ', '), qual, with_check)
    FROM pg_policies WHERE schemaname = 'public'
UNION ALL
SELECT format('FUNCTION %s(%s) RETURNS %s%s%s', proname, pg_get_function_identity_arguments(oid),
        pg_get_function_result(oid), CASE WHEN prosecdef THEN ' SECURITY DEFINER' ELSE '' END,
        coalesce(' SET ' || array_to_string(proconfig, ' SET '), ''))
    FROM pg_proc WHERE pronamespace = 'public'::regnamespace
UNION ALL
SELECT format('GRANT %s ON %s TO %s', string_agg(privilege, ', ' ORDER BY privilege), object,
        CASE WHEN grantee = 0 THEN 'PUBLIC' ELSE pg_get_userbyid(grantee)::text END) FROM (
    SELECT c.oid::regclass::text AS object, a.grantee, c.relowner AS owner, a.privilege_type AS privilege
        FROM pg_class c, aclexplode(c.relacl) a WHERE c.relnamespace = 'public'::regnamespace
    UNION ALL
    SELECT c.oid::regclass::text, a.grantee, c.relowner, format('%s (%s)', a.privilege_type, t.attname)
        FROM pg_class c JOIN pg_attribute t ON t.attrelid = c.oid, aclexplode(t.attacl) a
        WHERE c.relnamespace = 'public'::regnamespace
    UNION ALL
    SELECT 'FUNCTION ' || p.proname, a.grantee, p.proowner, a.privilege_type
        FROM pg_proc p, aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a
        WHERE p.pronamespace = 'public'::regnamespace
    UNION ALL
    SELECT 'SCHEMA public', a.grantee, n.nspowner, a.privilege_type FROM pg_namespace n, aclexplode(n.nspacl) a
        WHERE n.nspname = 'public'
) AS granted WHERE grantee <> owner GROUP BY object, grantee
"""


def read_objects(connection: Connection) -> set[str]:
    """Return the triggers, policies, functions and privileges of a database, one line each."""
    return {" ".join(str(line).split()) for (line,) in connection.execute(text(OBJECTS.replace(":", r"\:")))}


def describe_changed_objects(actual: set[str], expected: set[str]) -> list[str]:
    """Return one line per object that only one side has."""
    return [
        *(f"not in {EXPECTED_OBJECTS.name}: {line}" for line in sorted(actual - expected)),
        *(f"only in {EXPECTED_OBJECTS.name}: {line}" for line in sorted(expected - actual)),
    ]


def expected_objects() -> set[str]:
    return set(EXPECTED_OBJECTS.read_text(encoding="utf-8").splitlines())


def read_definitions(connection: Connection) -> set[tuple[str, str, str]]:
    """Return the constraints and indexes of a database, each as table, name and definition."""
    return {(table, name, definition) for table, name, definition in connection.execute(text(DEFINITIONS))}


def describe_drift(migrated: set[tuple[str, str, str]], declared: set[tuple[str, str, str]]) -> list[str]:
    """Return one line per constraint or index that only one side has, or that differs."""
    return [
        *(f"only in the migrations: {table}: {name}: {definition}" for table, name, definition in migrated - declared),
        *(f"only in the models: {table}: {name}: {definition}" for table, name, definition in declared - migrated),
    ]


def main(arguments: Sequence[str] = ()) -> int:
    assert db.models.__doc__ is not None  # imported for its tables
    heads = ScriptDirectory.from_config(Config(str(ROOT / "alembic.ini"))).get_heads()
    if len(heads) != 1:
        print(f"the migrations have {len(heads)} heads: {', '.join(heads)}")
        return 1
    folder = Path(tempfile.mkdtemp(prefix="berth-check-"))
    try:
        with Postgres(folder / "postgres", durable=False) as server:
            server.ensure_roles("drift")
            url = server.url(OWNER_ROLE, "drift")
            migrate(url)
            engine = create_engine(url, poolclass=pool.NullPool)
            with engine.connect() as connection:
                context = MigrationContext.configure(connection, opts={"compare_type": True})
                differences = compare_metadata(context, Base.metadata)
                migrated = read_definitions(connection)
                objects = read_objects(connection)
            engine.dispose()
            server.ensure_roles("declared")
            engine = create_engine(server.url(OWNER_ROLE, "declared"), poolclass=pool.NullPool)
            with engine.begin() as connection:
                Base.metadata.create_all(connection)
                differences += describe_drift(migrated, read_definitions(connection))
            engine.dispose()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if arguments == ["record"]:
        EXPECTED_OBJECTS.write_text("\n".join(sorted(objects)) + "\n", encoding="utf-8")
    differences += describe_changed_objects(objects, expected_objects())
    for difference in differences:
        print(difference)
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
