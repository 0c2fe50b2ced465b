"""Ports are drawn so that no two processes start a server on the same one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from deploy import ports

DRAW = "import sys; from deploy.ports import free_ports; print(*free_ports(300)); sys.stdout.flush(); sys.stdin.read()"


@pytest.mark.parametrize(
    ("kernel", "expected"),
    [
        ("32768\t60999\n", range(15_000, 32_000)),
        ("16000 65535\n", range(11_000, 16_000)),
        ("28000 60999", range(15_000, 28_000)),
        ("1024\t65535\n", range(15_000, 32_000)),
        ("1100 65535", range(15_000, 32_000)),
        ("not a number", range(15_000, 32_000)),
        ("", range(15_000, 32_000)),
    ],
)
def test_ports_are_drawn_below_the_ephemeral_ones(tmp_path: Path, kernel: str, expected: range) -> None:
    (tmp_path / "range").write_text(kernel)
    assert ports.port_range(tmp_path / "range") == expected
    assert ports.port_range(tmp_path / "absent") == range(15_000, 32_000)


def test_processes_that_draw_at_the_same_time_draw_different_ports(monkeypatch: pytest.MonkeyPatch) -> None:
    # 450 candidates: without claims two thirds of the second draw would be of the first.
    script = "from deploy import ports; ports.port_range = lambda: range(14_000, 14_450); " + DRAW
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdin is not None
        drawn_there = {int(port) for port in other.stdout.readline().split()}
        # The most recent 256 draws of a process are claimed.
        monkeypatch.setattr(ports, "port_range", lambda: range(14_000, 14_450))
        drawn_here = ports.free_ports(100)
        other.stdin.close()
    assert len(drawn_there) == 300
    assert len(set(drawn_here)) == 100
    assert len(drawn_there & set(drawn_here)) <= 300 - ports.MAX_CLAIMS


def test_claims_end_with_their_process(monkeypatch: pytest.MonkeyPatch) -> None:
    script = "from deploy import ports; ports.port_range = lambda: range(14_500, 14_700); print(*ports.free_ports(150))"
    for _ in range(2):
        drawn = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout
        assert len(set(drawn.split())) == 150


KEEP = """
import sys
from deploy import ports

(port,) = ports.free_ports(1)
ports._claims.pop(port).close()
print(ports.allocate_ports(["api"], {"api": port})["api"])
sys.stdout.flush()
sys.stdin.read()
"""


def test_ports_of_an_earlier_start_are_claimed_as_well() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", KEEP], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdin is not None
        kept_there = int(other.stdout.readline())
        # The server of the other process does not listen yet.
        drawn_here = ports.allocate_ports(["api"], {"api": kept_there})
        assert drawn_here["api"] != kept_there
        other.stdin.close()
    # A second stack of one process, after the first.
    assert ports.allocate_ports(["api"], drawn_here) == drawn_here


def test_no_free_port_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "port_range", lambda: range(14_800, 14_803))
    with pytest.raises(OSError, match="no 4 free ports between 14800 and 14803"):
        ports.free_ports(4)
