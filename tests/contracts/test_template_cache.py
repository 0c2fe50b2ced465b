"""The cached database templates: kept between runs, and removed after a run without pytest's cache."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.databases import ROOT

PROBE = """
pytest_plugins = ["tests.support.databases"]


def test_writes_a_template(template_cache):
    (template_cache / "template").touch()
    print(f"folder={template_cache}")
"""


@pytest.mark.parametrize("has_cache", [True, False])
def test_templates_outlive_a_run_only_in_pytests_cache(tmp_path: Path, has_cache: bool) -> None:
    probe = tmp_path / "test_probe.py"
    probe.write_text(PROBE)
    options = ["-o", f"cache_dir={tmp_path / 'cache'}"] if has_cache else ["-p", "no:cacheprovider"]
    completed = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-s", "--rootdir", tmp_path, "-c", "/dev/null", *options, probe],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert completed.returncode == 0, completed.stdout + completed.stderr
    (folder,) = [Path(line.split("=")[1]) for line in completed.stdout.splitlines() if line.startswith("folder=")]
    assert folder.is_relative_to(tmp_path / "cache") is has_cache
    assert (folder / "template").exists() is has_cache
