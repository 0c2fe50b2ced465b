"""Every recorded history replays on today's workflow code, and no workflow changed without a new recording.

Histories lie in `tests/histories/<version>/<Workflow>-<shape>.json`; those of versions before today's are what runs in
the world and are never written again. `python -m tests.checks.histories record` records today's version anew.
"""

from __future__ import annotations

import ast
import asyncio
import hashlib
import json
import os
import pkgutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path

from temporalio.client import WorkflowHistory
from temporalio.worker import Replayer

import workflows
from tests.support import recording
from worker.exit import leave

ROOT = Path(__file__).resolve().parents[2]
HISTORIES = ROOT / "tests" / "histories"
FINGERPRINTS = HISTORIES / "fingerprints.json"
TESTS = "tests/workflows"
DEFINITION = "__temporal_workflow_definition"
LONGEST_RECORDING_SECONDS = 900

COMMANDLESS = {"client", "clock", "codec", "names", "policies", "refusals", "settings"}
"""Modules of `workflows` that give no command: a change there alters no history's course. Nor do rules and ports."""


def all_workflows() -> Iterator[type]:
    """Every workflow class that the house defines, registered with a worker or not."""
    for found in pkgutil.walk_packages(workflows.__path__, "workflows."):
        module = import_module(found.name)
        for value in vars(module).values():
            if isinstance(value, type) and value.__module__ == found.name and DEFINITION in vars(value):
                yield value


def type_name(kind: type) -> str:
    return str(getattr(kind, DEFINITION).name)


def recorded() -> list[Path]:
    return sorted(HISTORIES.glob("*/*.json"))


def version() -> str:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return str(project["version"])


# ---------------------------------------------------------------- replay


async def failures(paths: list[Path]) -> dict[str, Exception]:
    """By file name, why a history does not replay."""
    found: dict[str, Exception] = {}
    replayer = Replayer(workflows=list(all_workflows()))
    for path in paths:
        try:
            history = WorkflowHistory.from_json(path.stem, path.read_text())
            result = await replayer.replay_workflow(history, raise_on_replay_failure=False)
        except Exception as error:
            error.add_note(f"while reading {path}")
            raise
        if result.replay_failure is not None:
            found[str(path.relative_to(HISTORIES))] = result.replay_failure
    return found


# ---------------------------------------------------------------- fingerprints


def fingerprints() -> dict[str, str]:
    """By workflow type, a hash over the code that gives its commands."""
    return {type_name(kind): fingerprint(sources(kind)) for kind in all_workflows()}


def sources(kind: type) -> dict[str, str]:
    """The modules that a workflow's commands come from: its own and the helpers that it imports."""
    found: dict[str, str] = {}
    left = [kind.__module__]
    while left:
        name = left.pop()
        if name in found:
            continue
        path = ROOT / Path(*name.split(".")).with_suffix(".py")
        found[name] = path.read_text()
        left += helpers(found[name])
    return found


def helpers(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            spelled = [node.module or ""]
            if node.module == "workflows":
                spelled = [f"workflows.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            spelled = [alias.name for alias in node.names]
        else:
            continue
        for name in spelled:
            top, _, rest = name.partition(".")
            if top == "workflows" and rest and "." not in rest and rest not in COMMANDLESS | {"rules", "ports"}:
                yield name


def fingerprint(modules: Mapping[str, str]) -> str:
    """Hash what the code does: comments, docstrings, line breaks and imports count for nothing."""
    sum_ = hashlib.sha256()
    for name, source in sorted(modules.items()):
        tree = _Bare().visit(ast.parse(source))
        sum_.update(f"{name}\n{ast.dump(tree)}\n".encode())
    return sum_.hexdigest()[:16]


class _Bare(ast.NodeTransformer):
    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        is_words = isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        return None if is_words else self.generic_visit(node)

    def visit_Import(self, node: ast.Import) -> None:
        return None

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        return None


def stale(kept: Mapping[str, str], now: Mapping[str, str], histories: list[Path]) -> list[str]:
    """What is to be said about workflows that changed, or of which there is no history."""
    shapes = {path.stem.partition("-")[0] for path in histories}
    said = [f"{name}: no recorded history" for name in sorted(now) if name not in shapes]
    said += [
        f"{name}: its code changed since it was recorded; guard changed commands with workflow.patched where a version"
        " with the old ones is out, and run `python -m tests.checks.histories record`"
        for name in sorted(now)
        if name in shapes and kept.get(name) != now[name]
    ]
    return said


# ---------------------------------------------------------------- recording


def record() -> int:
    """Record today's version anew from the runs of the tests that `recording.RECIPES` names."""
    today = HISTORIES / version()
    released = [path for path in recorded() if path.parent != today]
    if broken := asyncio.run(failures(released)):
        print("\n".join(f"{name}: {error}" for name, error in broken.items()))
        print("what was released does not replay: guard the change with workflow.patched first")
        return 1
    with tempfile.TemporaryDirectory() as folder:
        tests = sorted(set(recording.RECIPES.values()))
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "pytest",
                "-q",
                "-p",
                "tests.support.recording",
                *(f"{TESTS}/{one}" for one in tests),
            ],
            cwd=ROOT,
            env={**os.environ, recording.FOLDER: folder, "PYTHONPATH": str(ROOT)},
            timeout=LONGEST_RECORDING_SECONDS,
            check=False,
        )
        missing = [name for name in recording.RECIPES if not (Path(folder) / f"{name}.json").exists()]
        if done.returncode or missing:
            print(f"not recorded: {', '.join(missing) or 'a test failed'}")
            return 1
        today.mkdir(parents=True, exist_ok=True)
        for old in today.glob("*.json"):
            old.unlink()
        for name in recording.RECIPES:
            history = recording.scrubbed(json.loads((Path(folder) / f"{name}.json").read_text()))
            (today / f"{name}.json").write_text(json.dumps(history, separators=(",", ":"), sort_keys=True) + "\n")
    FINGERPRINTS.write_text(json.dumps(fingerprints(), indent=2, sort_keys=True) + "\n")
    return check()


def check() -> int:
    histories = recorded()
    said = [f"{name}: {error}" for name, error in asyncio.run(failures(histories)).items()]
    kept = json.loads(FINGERPRINTS.read_text()) if FINGERPRINTS.exists() else {}
    said += stale(kept, fingerprints(), histories)
    if said:
        print("\n".join(said))
    return 1 if said else 0


def main() -> int:
    return record() if sys.argv[1:] == ["record"] else check()


if __name__ == "__main__":
    leave(main())
