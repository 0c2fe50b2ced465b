"""Ordinary failures of commands and processes are one line and an exit code; errors of the program keep a traceback."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import text

from api.startup_errors import CannotStart, describe_startup_error
from db.schema_version import newest_revision
from db.session import create_database_engine
from deploy.ports import free_ports
from tests.local.test_production_settings import COMPLETE, KUBECONFIG, ROOT, clean_environment
from tests.support.databases import DatabaseFixture
from worker.seed_catalogue import load_catalogue

UNREACHABLE = "postgresql+psycopg://berth_owner:hunter2@127.0.0.1:9/berth"
DISTANT = "postgresql+psycopg://berth_owner:hunter2@database.invalid/berth"
TWO_HOSTS = "postgresql+psycopg://berth_owner:hunter2@/berth?host=database.invalid&host=localhost"


def run_module(module: str, *arguments: str, **environ: str) -> tuple[int, str]:
    """Return the exit code and the output of a process that ends by itself."""
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT, env=clean_environment(**environ), capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("command", "url", "expected"),
    [
        ("migrate", "", "berth migrate: BERTH_OWNER_DATABASE_URL is not set: "),
        ("migrate", UNREACHABLE, "berth migrate: The database is unavailable: connection failed: "),
        ("migrate", DISTANT, "berth migrate: BERTH_OWNER_DATABASE_URL does not require TLS: "),
        ("seed", DISTANT, "berth seed: BERTH_OWNER_DATABASE_URL does not require TLS: "),
        ("migrate", TWO_HOSTS, "berth migrate: BERTH_OWNER_DATABASE_URL does not require TLS: "),
        ("seed", "berth", "berth seed: BERTH_OWNER_DATABASE_URL is not an address of PostgreSQL."),
        ("seed", UNREACHABLE, "berth seed: The database is unavailable: connection failed: "),
    ],
)
def test_a_command_without_a_usable_database_prints_one_line(command: str, url: str, expected: str) -> None:
    code, output = run_module("worker.cli", command, BERTH_OWNER_DATABASE_URL=url)
    (line,) = output.splitlines()
    assert code == 1
    assert line.startswith(expected)
    assert "hunter2" not in line


@pytest.mark.parametrize("command", ["migrate", "seed"])
def test_the_address_of_the_database_may_be_a_file(tmp_path: Path, command: str) -> None:
    secret = tmp_path / "url"
    setting = {"BERTH_OWNER_DATABASE_URL_FILE": str(secret)}
    code, output = run_module("worker.cli", command, **setting)
    missing = "BERTH_OWNER_DATABASE_URL_FILE names a file that cannot be read: No such file or directory."
    assert (code, output) == (1, f"berth {command}: {missing}\n")
    secret.write_text(f"{UNREACHABLE}\n")
    code, output = run_module("worker.cli", command, **setting)
    assert (code, output.startswith(f"berth {command}: The database is unavailable: ")) == (1, True)


def test_a_worker_names_a_kubeconfig_that_is_missing(tmp_path: Path) -> None:
    missing = tmp_path / "kubeconfig"
    code, output = run_module("worker", **COMPLETE["worker"] | {"BERTH_KUBECONFIG": str(missing)})
    assert code == 1
    assert output.splitlines()[-1].startswith(f"The worker does not start: the kubeconfig {missing} cannot be used: ")
    assert "Traceback" not in output


def test_a_worker_names_an_address_that_is_taken(tmp_path: Path) -> None:
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(KUBECONFIG)
    (port,) = free_ports(1)
    settings = {"BERTH_KUBECONFIG": str(kubeconfig), "BERTH_METRICS_PORT": str(port), "BERTH_METRICS_HOST": "192.0.2.1"}
    code, output = run_module("worker", **COMPLETE["worker"] | settings)
    assert code == 1
    assert f"The worker does not start: metrics cannot be served on 192.0.2.1:{port}: " in output.splitlines()[-1]
    assert "Traceback" not in output


def change_schema(database: DatabaseFixture, *statements: str) -> None:
    with psycopg.connect(database.superuser_dsn()) as connection:
        for statement in statements:
            connection.execute(statement.encode())


async def raised_by(url: str, statement: str) -> Exception:
    """Return what SQLAlchemy raises for a statement."""
    engine = create_database_engine(url, pool_size=1)
    try:
        with pytest.raises(Exception) as failed:
            async with engine.begin() as connection:
                await connection.execute(text(statement))
    finally:
        await engine.dispose()
    return failed.value


async def test_a_wrong_role_is_named_and_a_missing_table_is_an_error_of_the_program(database: DatabaseFixture) -> None:
    missing = await raised_by(database.owner_url, "SELECT 1 FROM no_such_table")
    assert describe_startup_error(missing) is None
    forbidden = await raised_by(database.api_url, "DELETE FROM audit_log")
    assert str(describe_startup_error(forbidden)).startswith("The database's role may not do this (permission denied")


def test_seeding_needs_the_current_schema(database: DatabaseFixture) -> None:
    change_schema(database, f"DELETE FROM schema_migrations WHERE revision = '{newest_revision()}'")
    code, output = run_module("worker.cli", "seed", BERTH_OWNER_DATABASE_URL=database.owner_url)
    (line,) = output.splitlines()
    assert code == 1
    assert line.startswith("berth seed: The database has a schema at ")
    assert line.endswith("Run `berth migrate`.")


def test_a_failing_migration_names_its_revision_and_keeps_its_traceback(database: DatabaseFixture) -> None:
    """A table that it refers to is missing."""
    change_schema(
        database,
        "DELETE FROM schema_migrations WHERE revision >= '0008'",
        "UPDATE alembic_version SET version_num = '0007_payments'",
        "DROP TABLE installation, instances, subscriptions CASCADE",
    )
    code, output = run_module("worker.cli", "migrate", BERTH_OWNER_DATABASE_URL=database.owner_url)
    assert code == 1
    assert "Traceback" in output
    assert "versions/0008_instances.py" in output
    message = output.rpartition("MigrationFailed: ")[2]
    assert message.startswith("The migration 0008_instances failed and was rolled back: ")
    assert 'relation "subscriptions" does not exist' in message


def test_files_are_named_and_errors_of_the_program_are_not_described(tmp_path: Path) -> None:
    with pytest.raises(OSError) as failed:
        (tmp_path / "missing").read_text()
    assert describe_startup_error(failed.value) == f"'{tmp_path}/missing' cannot be used: No such file or directory."
    assert describe_startup_error(ZeroDivisionError("division by zero")) is None


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("slug: [", "is not a service template: "),
        ("slug: only", "lacks the field 'name'."),
        ("- a list", "is not a service template: "),
    ],
)
def test_a_malformed_service_template_is_named(tmp_path: Path, content: str, expected: str) -> None:
    template = tmp_path / "wiki" / "service.yaml"
    template.parent.mkdir()
    template.write_text(content)
    with pytest.raises(CannotStart) as refused:
        load_catalogue(tmp_path)
    assert str(refused.value).startswith(f"{template} {expected}")


def test_a_folder_without_service_templates_is_named(tmp_path: Path) -> None:
    with pytest.raises(CannotStart, match=r"has no service templates"):
        load_catalogue(tmp_path / "missing")
