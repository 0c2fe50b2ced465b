"""The supervisor: what dies comes back, a stop is clean and quick, homes do not meet, kill -9 leaves no obstacle."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest

from deploy.local.process import ProcessIdentity
from deploy.ports import free_ports
from tests.support.wait import scale_timeout, wait_until_sync

ROOT = Path(__file__).resolve().parents[2]
PROCESS_NAMES = {"supervisor", "api", "worker", "temporal", "postgres", "cluster", "cluster_proxy", "mailbox", "stripe"}


@dataclass
class RunningSupervisor:
    """One supervisor on one home."""

    home: Path
    process: subprocess.Popen[str]

    @property
    def card(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.home / "card.json").read_text())
        return content

    @property
    def pids(self) -> dict[str, int]:
        processes: dict[str, int] = self.card["processes"]
        return processes

    def serves(self) -> RunningSupervisor:
        def card_is_written() -> bool:
            assert self.process.poll() is None, self.output()
            # After a kill -9 the card of the killed stack lies there until the new one clears it.
            return (self.home / "card.json").exists() and self.pids["supervisor"] == self.process.pid

        wait_until_sync(card_is_written, description="the card")
        return self

    def identities(self) -> list[ProcessIdentity]:
        processes = [ProcessIdentity.of(pid) for pid in self.pids.values()]
        return [identity for identity in processes if identity is not None]

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(20)

    def output(self) -> str:
        return (self.home.parent / f"{self.home.name}.out").read_text()


Start = Callable[..., RunningSupervisor]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts stacks by the name of their home; a port belongs to a name."""
    ports: dict[str, int] = {}
    started: list[RunningSupervisor] = []

    def start(
        name: str = "home", command: tuple[str, ...] = (sys.executable, "-m", "tests.local.small_stack")
    ) -> RunningSupervisor:
        home = tmp_path / name
        if name not in ports:
            (ports[name],) = free_ports(1)
        environ = os.environ | {"BERTH_HOME": str(home), "BERTH_PORT": str(ports[name]), "BERTH_DEMO": "0"}
        with (tmp_path / f"{name}.out").open("a") as out:
            process = subprocess.Popen(
                command,
                cwd=ROOT, env=environ, stdout=out, stderr=subprocess.STDOUT, text=True, start_new_session=True,
            )  # fmt: skip
        started.append(RunningSupervisor(home, process))
        return started[-1]

    yield start
    for running in started:
        if running.process.poll() is None:
            running.process.send_signal(signal.SIGTERM)
    for running in started:
        try:
            running.process.wait(20)
        except subprocess.TimeoutExpired:
            running.process.kill()
            running.process.wait()


def all_gone(identities: list[ProcessIdentity]) -> bool:
    return all(identity.get_process() is None for identity in identities)


def ask(running: RunningSupervisor, statement: str) -> Any:
    with psycopg.connect(running.card["database"]["url"], connect_timeout=5) as connection:
        cursor = connection.execute(statement)
        return cursor.fetchone() if cursor.description else None


@pytest.mark.stack
def test_the_card_names_everything_and_is_private(start: Start) -> None:
    running = start().serves()
    card = running.card
    assert card["ready"] is True
    assert set(card["processes"]) == PROCESS_NAMES
    assert {"api", "docs", "temporal_ui", "mailbox", "cluster", "stripe", "metrics"} <= set(card["urls"])
    assert (running.home / "card.json").stat().st_mode & 0o777 == 0o600
    assert (running.home / "secrets.json").stat().st_mode & 0o777 == 0o600
    assert ask(running, "SELECT 1") == (1,)


@pytest.mark.stack
def test_every_process_that_is_killed_comes_back_within_five_seconds(start: Start) -> None:
    running = start().serves()
    ask(running, "CREATE TABLE kept (n int)")
    ask(running, "INSERT INTO kept VALUES (42)")
    for name in sorted(PROCESS_NAMES - {"supervisor"}):
        before = running.pids[name]
        started_at = time.monotonic()
        os.kill(before, signal.SIGKILL)

        def back(name: str = name, before: int = before) -> bool:
            return running.pids[name] != before and f"{name} is ready again" in running.output()

        wait_until_sync(back, description=f"{name} back")
        assert time.monotonic() - started_at < scale_timeout(5)
    assert ask(running, "SELECT n FROM kept") == (42,)


@pytest.mark.stack
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_every_process_and_the_exit_is_clean(start: Start, number: int) -> None:
    running = start().serves()
    identities = running.identities()
    assert len(identities) == len(PROCESS_NAMES)
    started_at = time.monotonic()
    assert running.stop(number) == 0
    assert time.monotonic() - started_at < scale_timeout(15)
    assert all_gone(identities)
    assert not (running.home / "card.json").exists()


MAKE = ("make", "-o", "env", "run", f"PYTHON={sys.executable}", "STACK=tests.local.small_stack")


@pytest.mark.stack
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("whole_group", [False, True], ids=["make alone", "whole group"])
def test_make_run_ends_with_zero_when_it_is_signalled(start: Start, number: int, whole_group: bool) -> None:
    running = start(command=MAKE).serves()
    identities = running.identities()
    if whole_group:
        os.killpg(running.process.pid, number)
        assert running.process.wait(20) == 0
    else:
        assert running.stop(number) == 0
    assert all_gone(identities)


@pytest.mark.stack
def test_two_stacks_run_side_by_side(start: Start) -> None:
    first, other = start("one"), start("other")
    first.serves(), other.serves()
    ask(first, "CREATE TABLE mine (n int)")
    assert ask(other, "SELECT to_regclass('mine')") == (None,)
    assert set(first.pids.values()).isdisjoint(other.pids.values())
    assert set(first.card["urls"].values()).isdisjoint(other.card["urls"].values())
    first.stop()
    assert ask(other, "SELECT 1") == (1,)


@pytest.mark.stack
def test_a_second_supervisor_on_the_same_home_is_rejected(start: Start) -> None:
    running = start().serves()
    second = start()
    assert second.process.wait(20) == 1
    assert str(running.process.pid) in second.output()
    assert running.process.poll() is None
    assert ask(running, "SELECT 1") == (1,)


@pytest.mark.stack
def test_a_start_after_kill_9_of_everything_keeps_the_data(start: Start) -> None:
    running = start().serves()
    urls, accounts = running.card["urls"], running.card["accounts"]
    ask(running, "CREATE TABLE kept (n int)")
    ask(running, "INSERT INTO kept VALUES (42)")
    identities = running.identities()
    for identity in identities:
        os.kill(identity.pid, signal.SIGKILL)
    running.process.wait(10)
    restarted = start().serves()
    assert ask(restarted, "SELECT n FROM kept") == (42,)
    assert (restarted.card["urls"], restarted.card["accounts"]) == (urls, accounts)
    assert all_gone(identities)


@pytest.mark.stack
def test_children_die_with_a_killed_supervisor_and_the_next_start_is_quick(start: Start) -> None:
    running = start().serves()
    identities = running.identities()
    running.process.kill()
    running.process.wait(10)
    started_at = time.monotonic()
    restarted = start().serves()
    assert time.monotonic() - started_at < scale_timeout(10)
    assert all_gone(identities)
    assert ask(restarted, "SELECT 1") == (1,)


@pytest.mark.stack
def test_the_card_of_a_killed_supervisor_is_removed(start: Start) -> None:
    running = start().serves()
    running.process.kill()
    wait_until_sync(lambda: not (running.home / "card.json").exists(), description="no card")


@pytest.mark.stack
def test_events_have_a_time_and_are_written_to_a_file(start: Start) -> None:
    running = start().serves()
    os.kill(running.pids["mailbox"], signal.SIGKILL)
    wait_until_sync(lambda: "mailbox is ready again" in running.output(), description="the mailbox")
    log = (running.home / "logs" / "supervisor.log").read_text()
    instant = r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ "
    assert re.search(rf"{instant}postgres is ready \(pid \d+\)$", log, re.MULTILINE)
    assert re.search(rf"{instant}mailbox: exited with -9; restarting$", log, re.MULTILINE)
    assert re.search(r"\d\d:\d\d:\d\d  mailbox: exited with -9; restarting", running.output())


@pytest.mark.stack
def test_a_hung_process_of_a_killed_supervisor_is_removed(start: Start) -> None:
    running = start().serves()
    hung = ProcessIdentity.of(running.pids["temporal"])
    assert hung is not None
    # A stopped process takes no signal but SIGKILL: it outlives its parent and holds its port.
    os.kill(hung.pid, signal.SIGSTOP)
    running.process.kill()
    running.process.wait(10)
    assert psutil.pid_exists(hung.pid)
    restarted = start().serves()
    assert hung.get_process() is None
    assert restarted.card["temporal"]["address"]


@pytest.mark.stack
def test_a_taken_port_is_reported(start: Start, tmp_path: Path) -> None:
    first = start("one").serves()
    environ = os.environ | {
        "BERTH_HOME": str(tmp_path / "other"),
        "BERTH_PORT": first.card["urls"]["api"].rsplit(":", 1)[1],
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.local.small_stack"],
        cwd=ROOT, env=environ, capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "is taken; choose another with BERTH_PORT" in done.stdout


def test_a_malformed_setting_stops_the_start_before_any_process(tmp_path: Path) -> None:
    environ = os.environ | {"BERTH_HOME": str(tmp_path / "home"), "BERTH_RATE_LIMIT": "maybe"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.local.small_stack"],
        cwd=ROOT, env=environ, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    (line,) = done.stdout.splitlines()
    assert " ".join(line.split()) == "✗ the stack did not start BERTH_RATE_LIMIT must be 'on' or 'off'."
    assert not (tmp_path / "home" / "postgres").exists()


def test_a_folder_of_another_schema_is_refused_in_words(start: Start) -> None:
    stack = start(command=(sys.executable, "-m", "tests.local.small_stack", "--other-schema"))
    assert stack.process.wait(60) == 1
    output = stack.output()
    assert f"{stack.home} was made by another version of the schema" in output
    assert "remove the folder" in output
    assert "the migration 0003 is another one" in output
