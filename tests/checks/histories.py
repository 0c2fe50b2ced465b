"""Every recorded history replays on today's workflow code: `tests/histories/<Workflow>-<shape>.json`."""

from __future__ import annotations

import asyncio
import pkgutil
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

from temporalio.client import WorkflowHistory
from temporalio.worker import Replayer

import workflows
from worker.exit import leave

HISTORIES = Path(__file__).resolve().parents[1] / "histories"
DEFINITION = "__temporal_workflow_definition"


def all_workflows() -> Iterator[type]:
    """Every workflow class that the house defines, registered with a worker or not."""
    for found in pkgutil.walk_packages(workflows.__path__, "workflows."):
        module = import_module(found.name)
        for value in vars(module).values():
            if isinstance(value, type) and value.__module__ == found.name and DEFINITION in vars(value):
                yield value


async def failures() -> dict[str, Exception]:
    """By file name, why a history does not replay."""
    found: dict[str, Exception] = {}
    replayer = Replayer(workflows=list(all_workflows()))
    for path in sorted(HISTORIES.glob("*.json")):
        try:
            history = WorkflowHistory.from_json(path.stem, path.read_text())
            result = await replayer.replay_workflow(history, raise_on_replay_failure=False)
        except Exception as error:
            error.add_note(f"while reading {path}")
            raise
        if result.replay_failure is not None:
            found[path.name] = result.replay_failure
    return found


def main() -> int:
    found = asyncio.run(failures())
    for name, error in found.items():
        print(f"{name}: {error}")
    return 1 if found else 0


if __name__ == "__main__":
    leave(main())
