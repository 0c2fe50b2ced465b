"""The scripts of services, rendered and run: backups by GNU tar and gzip beside a writer, the install by a stand-in.

Only what a container's image brings is replaced: mount paths are folders of the test, ``mysqldump`` prints the end that
the script looks for, ``pg_dump`` is the real one against the test's own database. ``wp`` is a stand-in that keeps its
state in two files, so its tests show the shell's logic and nothing of WordPress.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from activities.service_templates.manifests import Manifest
from activities.service_templates.registry import RenderedInstance
from deploy.local.postgres import Postgres, binaries_directory
from tests.activities.test_templates import containers, render

POD = "backup-29384061-x7k2p"
SERVICES = ("n8n", "wordpress")
MEGABYTE = 1 << 20


@dataclass
class ScriptRunner:
    """Runs the rendered scripts with directories as volumes and stand-ins for the image's commands."""

    root: Path
    dsn: str

    @property
    def backups(self) -> Path:
        return self.root / "backups"

    @property
    def data(self) -> Path:
        return self.root / "data"

    def command(self, name: str, script: str) -> None:
        path = self.root / "bin" / name
        path.write_text(f"#!/bin/bash\n{script}\n")
        path.chmod(0o755)

    def run(self, container: Manifest, **more: str) -> subprocess.CompletedProcess[str]:
        """Run a container's command with its literal variables, ``more``, and values for those from Secrets."""
        environment = {
            "PATH": f"{self.root / 'bin'}:{binaries_directory()}:{os.environ['PATH']}",
            "HOME": str(self.root),
            "HOSTNAME": POD,
            **{v["name"]: v.get("value", f"secret of {v['name']}") for v in container.get("env") or []},
            **more,
        }
        *shell, script = container["command"]
        script = script.replace("/backups", str(self.backups)).replace("=/data", f"={self.data}")
        return subprocess.run(
            [*shell, script], env=environment, cwd=self.root, capture_output=True, text=True, timeout=120, check=False
        )

    def create_backup(self, slug: str, *, days: int = 7, **more: str) -> subprocess.CompletedProcess[str]:
        """Run the pod's containers, one after the other, until one fails."""
        done = None
        for container in self.containers(slug, days):
            done = self.run(container, **more)
            if done.returncode:
                break
        assert done is not None
        return done

    @staticmethod
    def containers(slug: str, days: int = 7) -> list[Manifest]:
        rendered = render(slug, entitlements={"backup_retention_days": days})
        (cron,) = rendered.of_kind("CronJob")
        return containers(cron["spec"]["jobTemplate"]["spec"]["template"])

    def old(self, *ages_in_days: float) -> list[str]:
        """Put complete backups of these ages in place; return their names."""
        names = []
        for age in ages_in_days:
            at = datetime.now(UTC) - timedelta(days=age)
            folder = self.backups / f"{at:%Y%m%dT%H%M%SZ}"
            folder.mkdir()
            (folder / "data.tar.gz").write_bytes(b"x" * 4096)
            names.append(folder.name)
        return names

    def complete(self) -> list[str]:
        return sorted(path.name for path in self.backups.iterdir() if not path.name.startswith("."))

    def partial(self) -> list[str]:
        return sorted(path.name for path in self.backups.iterdir() if path.name.startswith("."))


@pytest.fixture
def runner(tmp_path: Path, postgres_server: Postgres) -> ScriptRunner:
    fixture = ScriptRunner(tmp_path, postgres_server.dsn(database="postgres"))
    for folder in ("bin", "backups", "data"):
        (tmp_path / folder).mkdir()
    (fixture.data / "config").write_text("settings")
    fixture.command(
        "pg_dump",
        'for word in "$@"; do case "$word" in --file=*) file="$word";; esac; done\n'
        f'unset PGPASSWORD; exec "{binaries_directory()}/pg_dump" --format=custom "$file" --dbname="{fixture.dsn}"',
    )
    fixture.command("mysqldump", "echo 'CREATE TABLE wp_users (ID int);'; echo '-- Dump completed on 2027-01-31'")
    return fixture


@contextmanager
def writer(folder: Path) -> Iterator[None]:
    """Append to a large log and make and delete files, as applications do, until the block is left."""
    stop = threading.Event()
    log = folder / "events.log"
    log.write_bytes(os.urandom(24 * MEGABYTE))

    def write() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            with log.open("ab") as appended:
                appended.write(b"an event\n")
            upload = folder / f"upload-{number % 50}"
            if upload.exists():
                upload.unlink()
            else:
                upload.write_bytes(b"bytes")
            stop.wait(0.001)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@pytest.mark.parametrize("slug", SERVICES)
def test_a_backup_succeeds_while_the_application_writes(runner: ScriptRunner, slug: str) -> None:
    with writer(runner.data):
        done = runner.create_backup(slug)
    assert done.returncode == 0, done.stderr
    assert "changed as we read it" in done.stderr, "tar ended with 1, or this proves nothing"
    (name,) = runner.complete()
    assert runner.partial() == []
    backup = runner.backups / name
    checked = subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=backup, check=False)
    assert checked.returncode == 0
    listed = (backup / "SHA256SUMS").read_text().split()[1::2]
    assert sorted([*listed, "SHA256SUMS"]) == sorted(path.name for path in backup.iterdir())
    with tarfile.open(backup / "data.tar.gz") as archive:
        assert {"./config", "./events.log"} <= set(archive.getnames())
    assert backup.stat().st_mode & 0o077 == 0
    if slug == "n8n":
        assert (backup / "encryption-key").read_text() == "secret of ENCRYPTION_KEY"
        restored = subprocess.run(
            [binaries_directory() / "pg_restore", "--list", backup / "database.dump"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert restored.returncode == 0, restored.stderr


@pytest.mark.scenario("P34")
@pytest.mark.parametrize("slug", SERVICES)
def test_an_archive_that_failed_is_no_backup(runner: ScriptRunner, slug: str) -> None:
    (previous,) = runner.old(1)
    shutil.rmtree(runner.data)
    done = runner.create_backup(slug)
    assert done.returncode != 0
    assert "Cannot open" in done.stderr or "Cannot chdir" in done.stderr
    assert (runner.complete(), runner.partial()) == ([previous], [])


@pytest.mark.scenario("P34")
@pytest.mark.parametrize(
    ("slug", "name", "script"),
    [
        ("n8n", "pg_dump", "exit 1"),
        ("n8n", "pg_dump", 'for word in "$@"; do case "$word" in --file=*) echo torn > "${word#--file=}";; esac; done'),
        ("wordpress", "mysqldump", "echo 'CREATE TABLE wp_users'; exit 2"),
        ("wordpress", "mysqldump", "echo 'CREATE TABLE wp_users'"),
        ("n8n", "gzip", "cat > /dev/null; exit 1"),
        ("n8n", "tar", "exit 2"),
    ],
    ids=["refused", "torn", "failed", "cut-off", "not compressed", "not archived"],
)
def test_a_step_that_failed_is_no_backup(runner: ScriptRunner, slug: str, name: str, script: str) -> None:
    expired, recent = runner.old(30, 20)
    runner.command(name, script)
    assert runner.create_backup(slug).returncode != 0
    # Pruned all the same, before anything was written; the newest complete one stays, however old.
    assert (runner.complete(), runner.partial()) == ([recent], [])
    assert expired != recent


@pytest.mark.parametrize("slug", SERVICES)
@pytest.mark.parametrize(("days", "remaining"), [(7, 2), (30, 4)])
def test_backups_are_kept_as_long_as_the_plan_says(runner: ScriptRunner, slug: str, days: int, remaining: int) -> None:
    names = runner.old(40, 29, 8, 6.9, 1)
    (runner.backups / "lost+found").mkdir()
    assert runner.create_backup(slug, days=days).returncode == 0
    complete = [name for name in runner.complete() if name != "lost+found"]
    assert complete[:-1] == sorted(names)[-remaining:]
    assert complete[-1] not in names


@pytest.mark.parametrize("slug", SERVICES)
def test_what_killed_attempts_left_is_removed_and_what_runs_is_left_alone(runner: ScriptRunner, slug: str) -> None:
    same_job, running, ended = ".partial-backup-29384061-aaaaa", ".partial-backup-op-1-bbbbb", ".partial-backup-7-ccccc"
    for name in (same_job, running, ended):
        (runner.backups / name).mkdir()
        (runner.backups / name / "database.dump").write_text("half")
    hours_ago = (datetime.now(UTC) - timedelta(hours=3)).timestamp()
    os.utime(runner.backups / ended, (hours_ago, hours_ago))
    assert runner.create_backup(slug).returncode == 0
    assert runner.partial() == [running]


@pytest.mark.parametrize("slug", SERVICES)
def test_a_full_volume_recovers(runner: ScriptRunner, slug: str) -> None:
    """``df`` is a stand-in here: the volume is full until two of the backups are gone."""
    names = sorted(runner.old(4, 3, 2, 1))
    runner.command(
        "df",
        f'echo Avail; if [ "$(ls "{runner.backups}" | wc -l)" -gt 2 ]; then echo 0; else echo 1000000; fi',
    )
    messages: list[str] = []
    for container in runner.containers(slug):
        done = runner.run(container)
        assert done.returncode == 0, done.stderr
        messages.append(done.stderr)
    assert runner.complete()[:-1] == names[2:]
    assert f"{names[0]} is removed before its 7 days are over" in "".join(messages)


@pytest.mark.parametrize("slug", SERVICES)
def test_a_name_that_is_taken_is_not_written_into(runner: ScriptRunner, slug: str) -> None:
    (taken,) = runner.old(0.5)
    codes = []
    for container in runner.containers(slug):
        script = container["command"][-1].replace("$(date -u +%Y%m%dT%H%M%SZ)", taken)
        codes.append(runner.run({**container, "command": [*container["command"][:-1], script]}).returncode)
    assert codes[-1] != 0
    assert [path.name for path in (runner.backups / taken).iterdir()] == ["data.tar.gz"]
    assert runner.partial() == []


# ---------------------------------------------------------------- install

WP = r"""
state="$STATE"; echo "$1 $2" >> "$state/calls"
case "$1 $2" in
  'core is-installed') [ -f "$state/options" ] ;;
  'user list') [ ! -f "$state/broken" ] && { [ -f "$state/users" ] && wc -l < "$state/users" | tr -d ' ' || echo 0; } ;;
  'db clean') rm -f "$state/options" ;;
  'core install')
    read -r -d '' password || true
    echo "wp $* --admin_password='$password'"
    touch "$state/options"
    if [ -f "$state/kill" ]; then rm "$state/kill"; kill -9 $PPID; exit 137; fi
    echo "$* $password" > "$state/users" ;;
esac
"""


@dataclass
class Site:
    runner: ScriptRunner

    @property
    def state(self) -> Path:
        return self.runner.root / "site"

    def install(self) -> subprocess.CompletedProcess[str]:
        rendered: RenderedInstance = render("wordpress")
        (job,) = rendered.of_kind("Job")
        done = self.runner.run(
            job["spec"]["template"]["spec"]["containers"][0], ADMIN_EMAIL="ada@example.com", STATE=str(self.state)
        )
        assert "secret of ADMIN_PASSWORD" not in done.stdout + done.stderr, "the password is in the Job's log"
        return done

    def users(self) -> list[str]:
        users = self.state / "users"
        return users.read_text().splitlines() if users.exists() else []

    def calls(self) -> list[str]:
        return (self.state / "calls").read_text().splitlines()


@pytest.fixture
def site(runner: ScriptRunner) -> Site:
    runner.command("wp", WP)
    (runner.root / "site").mkdir()
    return Site(runner)


def test_the_administrator_is_the_customer(site: Site) -> None:
    assert site.install().returncode == 0
    (user,) = site.users()
    assert "--admin_email=ada@example.com" in user
    assert "--admin_user=admin " not in user
    assert user.endswith("secret of ADMIN_PASSWORD")


def test_an_install_that_is_there_is_left_alone(site: Site) -> None:
    assert site.install().returncode == 0
    before = len(site.calls())
    assert site.install().returncode == 0
    assert not {"core install", "db clean"} & set(site.calls()[before:])


def test_an_install_killed_half_way_is_finished_by_its_retry(site: Site) -> None:
    (site.state / "kill").touch()
    assert site.install().returncode != 0
    assert (site.users(), (site.state / "options").exists()) == ([], True)
    assert site.install().returncode == 0
    assert len(site.users()) == 1
    assert "db clean" in site.calls()


def test_a_site_whose_users_cannot_be_counted_is_not_emptied(site: Site) -> None:
    assert site.install().returncode == 0
    (site.state / "broken").touch()
    assert site.install().returncode != 0
    assert "db clean" not in site.calls()
    assert len(site.users()) == 1


@pytest.mark.parametrize("slug", SERVICES)
def test_failures_of_scheduled_backups_stay_visible(slug: str) -> None:
    (cron,) = render(slug).of_kind("CronJob")
    spec: Any = cron["spec"]
    assert spec["failedJobsHistoryLimit"] >= 3
    assert spec["concurrencyPolicy"] == "Forbid"
    assert spec["jobTemplate"]["spec"]["activeDeadlineSeconds"] <= 7200, "others remove what is left after two hours"
    for container in ScriptRunner.containers(slug):
        assert container["terminationMessagePolicy"] == "FallbackToLogsOnError"
