"""A database whose schema other migrations made is recognized before the first statement fails on it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest

from api.schema_check import is_schema_usable
from db.schema_version import (
    SchemaMismatch,
    SchemaNewer,
    SchemaOutdated,
    migration_checksums,
    newest_revision,
    read_revision,
    require_current_schema,
)
from deploy.local.postgres import SUPERUSER, Postgres
from tests.support.databases import DatabaseFixture
from worker.exit import SCHEMA_MISMATCH_EXIT_CODE
from worker.migrate import migrate

ROOT = Path(__file__).resolve().parents[2]

EDITED = "UPDATE schema_migrations SET checksum = 'x' WHERE revision = '0005_invoices'"
UNRECORDED = "DROP TABLE schema_migrations"
UNKNOWN = "INSERT INTO schema_migrations (revision, checksum) VALUES ('0003_other', 'x')"
NEWER = "INSERT INTO schema_migrations (revision, checksum) VALUES ('9999_later', 'x')"
BEHIND = f"DELETE FROM schema_migrations WHERE revision = '{newest_revision()}'"


def change(database: DatabaseFixture, statement: str) -> None:
    with psycopg.connect(database.superuser_dsn()) as connection:
        connection.execute(statement.encode())


def connect_as_api(database: DatabaseFixture) -> psycopg.Connection:
    return psycopg.connect(database.api_url.replace("+psycopg", ""), autocommit=True)


def run_migrate(database: DatabaseFixture) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "worker.cli", "migrate"],
        cwd=ROOT,
        env=os.environ | {"BERTH_OWNER_DATABASE_URL": database.owner_url},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_each_migration_records_its_checksum(database: DatabaseFixture) -> None:
    with connect_as_api(database) as connection:
        rows = connection.execute("SELECT revision, checksum FROM schema_migrations").fetchall()
        assert dict(rows) == migration_checksums()
        require_current_schema(connection)
    assert migrate(database.owner_url) == (newest_revision(), newest_revision())


@pytest.mark.parametrize(
    ("statement", "difference"),
    [
        (EDITED, "the migration 0005_invoices is another one"),
        (UNRECORDED, "it does not record its migrations"),
        (UNKNOWN, "the migration 0003_other is unknown"),
    ],
)
def test_another_schema_is_refused_in_one_line(database: DatabaseFixture, statement: str, difference: str) -> None:
    change(database, statement)
    with connect_as_api(database) as connection, pytest.raises(SchemaMismatch, match=difference):
        require_current_schema(connection)
    with pytest.raises(SchemaMismatch, match=difference):
        migrate(database.owner_url)
    completed = run_migrate(database)
    assert completed.returncode == SCHEMA_MISMATCH_EXIT_CODE
    (line,) = completed.stderr.splitlines()
    assert difference in line


def test_an_older_version_names_both_revisions(database: DatabaseFixture, capfd: pytest.CaptureFixture[str]) -> None:
    change(database, NEWER)
    with connect_as_api(database) as connection, pytest.raises(SchemaNewer, match="9999_later") as refused:
        require_current_schema(connection)
    assert newest_revision() in str(refused.value)
    assert run_migrate(database).returncode == SCHEMA_MISMATCH_EXIT_CODE
    # A release that is rolled back runs on the schema that its successor has extended.
    assert is_schema_usable("API", database.api_url, timeout_seconds=5)
    assert capfd.readouterr().err == ""


def test_missing_migrations_are_named(database: DatabaseFixture, capfd: pytest.CaptureFixture[str]) -> None:
    change(database, BEHIND)
    with connect_as_api(database) as connection, pytest.raises(SchemaOutdated, match="berth migrate"):
        require_current_schema(connection)
    assert not is_schema_usable("worker", database.worker_url, timeout_seconds=5)
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("The worker does not start.")


def test_an_empty_database_has_no_revision(postgres_server: Postgres) -> None:
    with postgres_server.superuser() as connection:
        connection.execute("CREATE DATABASE schema_version_empty")
    try:
        with psycopg.connect(postgres_server.dsn(database="schema_version_empty")) as connection:
            assert read_revision(connection) is None
            # Alembic creates its table before the first migration, which may fail.
            connection.execute("CREATE TABLE alembic_version (version_num text)")
            assert read_revision(connection) is None
    finally:
        with postgres_server.superuser() as connection:
            connection.execute("DROP DATABASE schema_version_empty WITH (FORCE)")


def test_a_database_that_cannot_be_reached_does_not_keep_a_process_from_starting() -> None:
    assert is_schema_usable("API", "postgresql+psycopg://berth_api@127.0.0.1:9/berth", timeout_seconds=1)


def test_a_process_does_not_start_as_a_user_whom_row_level_security_does_not_bind(
    database: DatabaseFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each tenant would depend on every query's WHERE alone, and nothing would show it."""
    for program, role, url in (
        ("API", "berth_api", database.owner_url),
        ("API", "berth_api", database.worker_url),
        ("API", "berth_api", database.server.url(SUPERUSER, database.name)),
        ("worker", "berth_worker", database.owner_url),
    ):
        assert not is_schema_usable(program, url, timeout_seconds=5)
        assert f"Set an address with the user {role}." in capsys.readouterr().err
    assert is_schema_usable("worker", database.worker_url, timeout_seconds=5)


@pytest.mark.parametrize(
    ("options", "is_bound"),
    [("IN ROLE berth_api", True), ("BYPASSRLS IN ROLE berth_api", False), ("IN ROLE berth_api, berth_worker", False)],
)
def test_a_user_of_short_lived_credentials_is_bound_as_the_one_role_that_it_is_a_member_of(
    database: DatabaseFixture, options: str, is_bound: bool
) -> None:
    user = f"temporary_{uuid4().hex}"
    change(database, f"CREATE ROLE {user} LOGIN {options}")
    try:
        url = database.server.url(user, database.name)
        assert is_schema_usable("API", url, timeout_seconds=5) is is_bound
    finally:
        change(database, f"DROP ROLE {user}")
