"""What workflows ask for is what the worker runs: names, signatures, queues, and every workflow."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import pkgutil
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from datetime import datetime
from enum import StrEnum
from importlib import import_module
from pathlib import Path
from types import UnionType
from typing import Any, Protocol, Union, get_args, get_origin, get_type_hints

import pytest_asyncio
from temporalio import activity, workflow

import workflows
from tests.checks.histories import all_workflows
from worker.registry import WORKFLOWS, activities, dependencies
from worker.settings import WorkerSettings
from workflows import names, ports

KUBECONFIG = """
apiVersion: v1
kind: Config
current-context: here
clusters: [{name: here, cluster: {server: "http://127.0.0.1:9"}}]
contexts: [{name: here, context: {cluster: here, user: nobody}}]
users: [{name: nobody, user: {}}]
"""

WORKFLOW_FILES = sorted(
    path for folder in workflows.__path__ for path in Path(folder).glob("*.py") if path.name != "client.py"
)
CALLS = {"execute_activity_method", "start_activity_method"}
LOCAL_CALLS = {"execute_local_activity_method", "start_local_activity_method"}
READABLE = {str, int, float, bool, type(None), datetime, Any, Ellipsis}
CONTAINERS = {list, tuple, dict, Mapping, UnionType, Union}
QUEUES = {"PLATFORM": names.PLATFORM, "INFRASTRUCTURE": names.INFRASTRUCTURE, "NOTICES": names.NOTICES}


def definition(method: Any) -> Any:
    return activity._Definition.from_callable(method)


def declared() -> Iterator[tuple[str, type, Callable[..., Any]]]:
    """Every activity of the ports: its name, the Protocol, and the method."""
    for found in pkgutil.walk_packages(ports.__path__, "workflows.ports."):
        module = import_module(found.name)
        for value in vars(module).values():
            if not isinstance(value, type) or value.__module__ != found.name or Protocol not in value.__bases__:
                continue
            for method in vars(value).values():
                if callable(method) and (known := definition(method)) is not None:
                    yield known.name, value, method


DECLARED = list(declared())


@pytest_asyncio.fixture
async def registered(tmp_path: Path) -> AsyncIterator[dict[str, tuple[str, Callable[..., Any]]]]:
    """Every registered activity by name, with its queue. Nothing is connected to."""
    (tmp_path / "kubeconfig").write_text(KUBECONFIG)
    settings = WorkerSettings(
        worker_database_url="postgresql+psycopg://nobody@127.0.0.1:9/nothing",
        temporal_address="127.0.0.1:9",
        kubeconfig=tmp_path / "kubeconfig",
    )
    async with dependencies(settings) as given:
        found = [(definition(one).name, queue, one) for queue, many in activities(given).items() for one in many]
        assert [name for name, times in Counter(name for name, _, _ in found).items() if times > 1] == []
        yield {name: (queue, method) for name, queue, method in found}


def test_each_activity_is_declared_once() -> None:
    assert [name for name, times in Counter(name for name, _, _ in DECLARED).items() if times > 1] == []


async def test_what_is_declared_is_registered_and_nothing_else(
    registered: dict[str, tuple[str, Callable[..., Any]]],
) -> None:
    assert set(registered) == {name for name, _, _ in DECLARED}


async def test_signatures_are_the_declared_ones(registered: dict[str, tuple[str, Callable[..., Any]]]) -> None:
    for name, _, method in DECLARED:
        _, implemented = registered[name]
        hints = [get_type_hints(one) for one in (method, implemented)]
        assert hints[0] == hints[1], name
        parameters = [list(inspect.signature(one).parameters) for one in (method, implemented)]
        # The first one's ``self`` is bound in the second.
        assert parameters[0][1:] == parameters[1], name
        assert len(parameters[1]) == 1, f"{name}: one command in, one outcome out"


def payload_types() -> dict[str, Any]:
    """Whatever travels in histories, by where it is named: inputs and outcomes of activities and workflows."""
    found: dict[str, Any] = {}
    for name, _, method in DECLARED:
        found |= {f"{name} {key}": hint for key, hint in get_type_hints(method).items()}
    for one in WORKFLOWS:
        known = workflow._Definition.must_from_class(one)
        handlers: list[Callable[..., Any]] = [known.run_fn]
        handlers += [handler.fn for kind in (known.signals, known.updates, known.queries) for handler in kind.values()]
        for handler in handlers:
            found |= {f"{known.name}.{handler.__name__} {key}": hint for key, hint in get_type_hints(handler).items()}
    return found


def unreadable(hint: Any, seen: frozenset[Any] = frozenset()) -> Iterator[Any]:
    """Yield the types inside ``hint`` that the default converter does not write, or does not read back as they were."""
    if hint in seen or hint in READABLE or (isinstance(hint, type) and issubclass(hint, StrEnum)):
        return
    if dataclasses.is_dataclass(hint):
        for inner in get_type_hints(hint).values():
            yield from unreadable(inner, seen | {hint})
    elif get_origin(hint) in CONTAINERS:
        for inner in get_args(hint):
            yield from unreadable(inner, seen | {hint})
    else:
        yield hint


def test_everything_that_travels_can_be_written_and_read_back() -> None:
    wrong = {where: found for where, hint in payload_types().items() if (found := list(unreadable(hint)))}
    assert wrong == {}


def test_every_workflow_is_registered_under_its_own_name() -> None:
    assert set(WORKFLOWS) == set(all_workflows())
    assert len(WORKFLOWS) == len(set(WORKFLOWS))
    spelled = [workflow._Definition.must_from_class(one).name for one in WORKFLOWS]
    assert len(spelled) == len(set(spelled))
    constants = {value for name, value in vars(names).items() if name.isupper() and isinstance(value, str)}
    assert set(spelled) <= constants


def queue_of(call: ast.Call) -> str:
    """The queue that a call names; workflows run on ``platform``, and so does what they call without one."""
    for keyword in call.keywords:
        if keyword.arg == "task_queue":
            assert isinstance(keyword.value, ast.Attribute), ast.unparse(call)
            return QUEUES[keyword.value.attr]
    return names.PLATFORM


def port_method(node: ast.AST) -> str | None:
    """``Cluster.apply`` spelled in the source, as the activity's name."""
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        for name, protocol, method in DECLARED:
            if (protocol.__name__, method.__name__) == (node.value.id, node.attr):
                return name
    return None


def variable(call: ast.Call) -> bool:
    """Whether it runs an activity that somebody else chose."""
    return (
        isinstance(call.func, ast.Attribute)
        and call.func.attr in CALLS
        and bool(call.args)
        and isinstance(call.args[0], ast.Name)
    )


def called() -> Iterator[tuple[Path, str, set[str]]]:
    """Every activity that workflow code names, with the queues that its call can mean.

    A method handed to a helper (``self._do(Cluster.restart)``) runs on the queue of the call inside that helper.
    """
    for path in WORKFLOW_FILES:
        tree = ast.parse(path.read_text(), str(path))
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)]
        helpers: dict[str, set[str]] = {}
        for function in ast.walk(tree):
            if isinstance(function, ast.AsyncFunctionDef):
                inside = (node for node in ast.walk(function) if isinstance(node, ast.Call) and variable(node))
                for node in inside:
                    helpers.setdefault(function.name, set()).add(queue_of(node))
        for call in calls:
            assert isinstance(call.func, ast.Attribute)
            for argument in call.args:
                name = port_method(argument)
                if name is None:
                    continue
                if call.func.attr in CALLS:
                    yield path, name, {queue_of(call)}
                elif call.func.attr in LOCAL_CALLS:
                    yield path, name, {names.PLATFORM}
                else:
                    yield path, name, helpers.get(call.func.attr) or set().union(*helpers.values())


async def test_activities_are_called_on_the_queue_where_they_run(
    registered: dict[str, tuple[str, Callable[..., Any]]],
) -> None:
    found = list(called())
    wrong = [(path.name, name, queues) for path, name, queues in found if registered[name][0] not in queues]
    assert wrong == []
    assert {name for _, name, _ in found} == {name for name, _, _ in DECLARED}, "declared, and nobody calls it"
