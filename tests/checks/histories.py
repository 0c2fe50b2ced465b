"""Check that every recorded history replays on the current code, and that no changed workflow lacks a recording.

Histories are stored in `tests/histories/<version>/<Workflow>-<shape>.json`. Those of released versions describe running
workflows and are never rewritten. `python -m tests.checks.histories record` records the current version again.
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
from tests.support import history_recording
from worker.exit import exit_process

ROOT = Path(__file__).resolve().parents[2]
HISTORIES = ROOT / "tests" / "histories"
FINGERPRINTS = HISTORIES / "fingerprints.json"
TESTS = "tests/workflows"
DEFINITION = "__temporal_workflow_definition"
LONGEST_RECORDING_SECONDS = 900

COMMANDLESS = {"client", "connection", "rpc_errors", "test_clock", "codec", "names", "policies", "errors", "settings"}
"""Modules of `workflows` that issue no commands, so that a change there alters no history; nor do rules and ports."""


def all_workflows() -> Iterator[type]:
    """Yield every workflow class of the project, registered with a worker or not."""
    for module_info in pkgutil.walk_packages(workflows.__path__, "workflows."):
        module = import_module(module_info.name)
        for value in vars(module).values():
            if isinstance(value, type) and value.__module__ == module_info.name and DEFINITION in vars(value):
                yield value


def type_name(kind: type) -> str:
    return str(getattr(kind, DEFINITION).name)


def recorded_histories() -> list[Path]:
    return sorted(HISTORIES.glob("*/*.json"))


def version() -> str:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return str(project["version"])


# ---------------------------------------------------------------- replay


async def find_replay_failures(paths: list[Path]) -> dict[str, Exception]:
    """Replay histories and return the failures by path."""
    failures_by_path: dict[str, Exception] = {}
    replayer = Replayer(workflows=list(all_workflows()))
    for path in paths:
        try:
            history = WorkflowHistory.from_json(path.stem, path.read_text())
            result = await replayer.replay_workflow(history, raise_on_replay_failure=False)
        except Exception as error:
            error.add_note(f"while reading {path}")
            raise
        if result.replay_failure is not None:
            failures_by_path[str(path.relative_to(HISTORIES))] = result.replay_failure
    return failures_by_path


# ---------------------------------------------------------------- fingerprints


def fingerprints() -> dict[str, str]:
    """Return, by workflow type, a hash of the code that issues its commands."""
    return {type_name(kind): fingerprint(sources(kind)) for kind in all_workflows()}


def sources(kind: type) -> dict[str, str]:
    """Return the source of the modules that issue a workflow's commands, by name: its own and those that it imports."""
    sources_by_module: dict[str, str] = {}
    pending_modules = [kind.__module__]
    while pending_modules:
        name = pending_modules.pop()
        if name in sources_by_module:
            continue
        path = ROOT / Path(*name.split(".")).with_suffix(".py")
        sources_by_module[name] = path.read_text()
        pending_modules += imported_modules(sources_by_module[name])
    return sources_by_module


def imported_modules(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            module = node.module or ""
            is_package = (ROOT / Path(*module.split("."))).is_dir()
            module_names = [f"{module}.{alias.name}" for alias in node.names] if is_package else [module]
        elif isinstance(node, ast.Import):
            module_names = [alias.name for alias in node.names]
        else:
            continue
        for name in module_names:
            top, _, inner_name = name.partition(".")
            package, _, last = inner_name.rpartition(".")
            if (
                top == "workflows"
                and inner_name
                and package not in {"rules", "ports"}
                and last not in COMMANDLESS | {"rules", "ports"}
            ):
                yield name


def fingerprint(modules: Mapping[str, str]) -> str:
    """Hash the statements of the code. Comments, docstrings, line breaks and imports do not change the hash."""
    digest = hashlib.sha256()
    for name, source in sorted(modules.items()):
        tree = _Bare().visit(ast.parse(source))
        digest.update(f"{name}\n{ast.dump(tree)}\n".encode())
    return digest.hexdigest()[:16]


class _Bare(ast.NodeTransformer):
    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        is_words = isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        return None if is_words else self.generic_visit(node)

    def visit_Import(self, node: ast.Import) -> None:
        return None

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        return None


def find_stale_workflows(
    recorded_fingerprints: Mapping[str, str], current_fingerprints: Mapping[str, str], histories: list[Path]
) -> list[str]:
    """Return a message for each workflow that changed since its recording or has no recording."""
    shapes = {path.stem.partition("-")[0] for path in histories}
    messages = [f"{name}: no recorded history" for name in sorted(current_fingerprints) if name not in shapes]
    messages += [
        f"{name}: its code changed since it was recorded; guard changed commands with workflow.patched where a version"
        " with the old ones is out, and run `python -m tests.checks.histories record`"
        for name in sorted(current_fingerprints)
        if name in shapes and recorded_fingerprints.get(name) != current_fingerprints[name]
    ]
    return messages


# ---------------------------------------------------------------- recording


def record_histories() -> int:
    """Record the current version from runs of the tests in `history_recording.RECIPES`. Returns the exit status."""
    today = HISTORIES / version()
    released = [path for path in recorded_histories() if path.parent != today]
    if replay_failures := asyncio.run(find_replay_failures(released)):
        print("\n".join(f"{name}: {error}" for name, error in replay_failures.items()))
        print("a released history does not replay: guard the change with workflow.patched first")
        return 1
    with tempfile.TemporaryDirectory() as folder:
        tests = sorted(set(history_recording.RECIPES.values()))
        completed = subprocess.run(
            [
                sys.executable,
                "-m",
                "pytest",
                "-q",
                "-p",
                "tests.support.history_recording",
                *(f"{TESTS}/{file_name}" for file_name in tests),
            ],
            cwd=ROOT,
            env={**os.environ, history_recording.HISTORIES_DIRECTORY_VARIABLE: folder, "PYTHONPATH": str(ROOT)},
            timeout=LONGEST_RECORDING_SECONDS,
            check=False,
        )
        missing = [name for name in history_recording.RECIPES if not (Path(folder) / f"{name}.json").exists()]
        if completed.returncode or missing:
            print(f"not recorded: {', '.join(missing) or 'a test failed'}")
            return 1
        today.mkdir(parents=True, exist_ok=True)
        for old in today.glob("*.json"):
            old.unlink()
        for name in history_recording.RECIPES:
            history = history_recording.redact_history(json.loads((Path(folder) / f"{name}.json").read_text()))
            (today / f"{name}.json").write_text(json.dumps(history, separators=(",", ":"), sort_keys=True) + "\n")
    FINGERPRINTS.write_text(json.dumps(fingerprints(), indent=2, sort_keys=True) + "\n")
    return check()


def check() -> int:
    paths = recorded_histories()
    messages = [f"{name}: {error}" for name, error in asyncio.run(find_replay_failures(paths)).items()]
    recorded_fingerprints = json.loads(FINGERPRINTS.read_text()) if FINGERPRINTS.exists() else {}
    messages += find_stale_workflows(recorded_fingerprints, fingerprints(), paths)
    if messages:
        print("\n".join(messages))
    return 1 if messages else 0


def main() -> int:
    return record_histories() if sys.argv[1:] == ["record"] else check()


if __name__ == "__main__":
    exit_process(main())
