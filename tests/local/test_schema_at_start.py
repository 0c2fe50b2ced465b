"""The API and the worker do not start on a schema that other migrations made, nor without saying why."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from deploy.ports import free_ports
from tests.local.test_production_settings import COMPLETE, KUBECONFIG, ROOT, clean_environment
from tests.support.databases import DatabaseFixture


@pytest.mark.parametrize(("program", "name"), [("api", "API"), ("worker", "worker")])
def test_a_process_says_in_one_line_why_it_does_not_start(
    database: DatabaseFixture, tmp_path: Path, program: str, name: str
) -> None:
    with psycopg.connect(database.superuser_dsn()) as connection:
        connection.execute("UPDATE schema_migrations SET checksum = 'x' WHERE revision = '0005_invoices'")
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(KUBECONFIG)
    (port,) = free_ports(1)
    urls = {"api": database.api_url, "worker": database.worker_url}
    completed = subprocess.run(
        [sys.executable, "-m", program],
        cwd=ROOT,
        env=clean_environment(
            **COMPLETE[program]
            | {
                f"BERTH_{program.upper()}_DATABASE_URL": urls[program],
                "BERTH_KUBECONFIG": str(kubeconfig),
                "BERTH_PORT": str(port),
            }
        ),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert completed.returncode == 1, completed.stdout
    (line,) = completed.stderr.splitlines()
    assert line.startswith(f"The {name} does not start. The database's schema was made by another version")
    assert "0005_invoices" in line


@pytest.mark.scenario("S12")
@pytest.mark.parametrize(
    ("command", "setting"),
    [
        (("api",), "BERTH_API_DATABASE_URL"),
        (("worker",), "BERTH_WORKER_DATABASE_URL"),
        (("worker.cli", "migrate"), "BERTH_OWNER_DATABASE_URL"),
    ],
)
def test_an_error_at_the_start_does_not_show_a_password(tmp_path: Path, command: tuple[str, ...], setting: str) -> None:
    """PostgreSQL's client quotes an address that it cannot read."""
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(KUBECONFIG)
    url = "postgresql+psycopg://berth:hunter2@[db.internal/berth"
    settings = COMPLETE.get(command[0], {}) | {setting: url, "BERTH_KUBECONFIG": str(kubeconfig)}
    completed = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=ROOT,
        env=clean_environment(**settings),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    output = completed.stdout + completed.stderr
    assert completed.returncode == 1
    assert f"{setting} is not an address of PostgreSQL" in output
    assert "Traceback" not in output
    assert "hunter2" not in output
