"""The worker runs what workflows call: activity names, signatures and queues, and every workflow."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import pkgutil
import re
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from datetime import UTC, datetime
from enum import StrEnum
from importlib import import_module
from pathlib import Path
from types import UnionType
from typing import Any, NoReturn, Protocol, Union, cast, get_args, get_origin, get_type_hints

import pytest
import pytest_asyncio
from sqlalchemy import event
from sqlalchemy.engine import Engine
from temporalio import activity, workflow
from temporalio.client import Client
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment

import workflows
from tests.checks.histories import DEFINITION, all_workflows
from tests.support import fake_payments, fake_workflows
from worker.registry import WORKFLOWS, activities_by_queue, open_dependencies
from worker.settings import WorkerSettings
from workflows import names, ports
from workflows.payment import Payment
from workflows.rules.errors import ErrorCode, RuleViolation
from workflows.rules.money import Money
from workflows.subscription.workflow import Subscription

KUBECONFIG = """
apiVersion: v1
kind: Config
current-context: here
clusters: [{name: here, cluster: {server: "http://127.0.0.1:9"}}]
contexts: [{name: here, context: {cluster: here, user: anonymous}}]
users: [{name: anonymous, user: {}}]
"""

WORKFLOW_FILES = sorted(
    path for folder in workflows.__path__ for path in Path(folder).rglob("*.py") if path.name != "client.py"
)
CALLS = {"execute_activity_method", "start_activity_method"}
LOCAL_CALLS = {"execute_local_activity_method", "start_local_activity_method"}
LOCAL_FIRST = "local_first.execute"
"""Runs an activity locally and, after a failure there, on the entity's own queue."""
READABLE = {str, int, float, bool, type(None), datetime, Any, Ellipsis}
CONTAINERS = {list, tuple, dict, Mapping, UnionType, Union}
QUEUES = {
    "PLATFORM_QUEUE": names.PLATFORM_QUEUE,
    "INFRASTRUCTURE_QUEUE": names.INFRASTRUCTURE_QUEUE,
    "NOTIFICATIONS_QUEUE": names.NOTIFICATIONS_QUEUE,
}


def definition(method: Any) -> Any:
    return activity._Definition.from_callable(method)


def declared_activities() -> Iterator[tuple[str, type, Callable[..., Any]]]:
    """Yield every activity of the ports: its name, the Protocol, and the method."""
    for module_info in pkgutil.walk_packages(ports.__path__, "workflows.ports."):
        module = import_module(module_info.name)
        for value in vars(module).values():
            if not isinstance(value, type) or value.__module__ != module_info.name or Protocol not in value.__bases__:
                continue
            for method in vars(value).values():
                if callable(method) and (activity_definition := definition(method)) is not None:
                    yield activity_definition.name, value, method


DECLARED_ACTIVITIES = list(declared_activities())


@pytest_asyncio.fixture
async def registered_activities(tmp_path: Path) -> AsyncIterator[dict[str, tuple[str, Callable[..., Any]]]]:
    """Every registered activity by name, with its queue. No connection is opened."""
    (tmp_path / "kubeconfig").write_text(KUBECONFIG)
    settings = WorkerSettings(
        environment="test",
        worker_database_url="postgresql+psycopg://nobody@127.0.0.1:9/nothing",
        temporal_address="127.0.0.1:9",
        kubeconfig=tmp_path / "kubeconfig",
    )
    async with open_dependencies(settings) as dependencies:
        registrations = [
            (definition(function).name, queue, function)
            for queue, methods in activities_by_queue(dependencies).items()
            for function in methods
        ]
        assert [name for name, times in Counter(name for name, _, _ in registrations).items() if times > 1] == []
        yield {name: (queue, method) for name, queue, method in registrations}


def test_each_activity_is_declared_once() -> None:
    assert [name for name, times in Counter(name for name, _, _ in DECLARED_ACTIVITIES).items() if times > 1] == []


async def test_exactly_the_declared_activities_are_registered(
    registered_activities: dict[str, tuple[str, Callable[..., Any]]],
) -> None:
    assert set(registered_activities) == {name for name, _, _ in DECLARED_ACTIVITIES}


async def test_signatures_are_the_declared_ones(
    registered_activities: dict[str, tuple[str, Callable[..., Any]]],
) -> None:
    for name, _, method in DECLARED_ACTIVITIES:
        _, implemented = registered_activities[name]
        hints = [get_type_hints(function) for function in (method, implemented)]
        assert hints[0] == hints[1], name
        parameters = [list(inspect.signature(function).parameters) for function in (method, implemented)]
        # The registered method is bound, so only the declared one has ``self``.
        assert parameters[0][1:] == parameters[1], name
        assert len(parameters[1]) == 1, f"{name}: one command in, one outcome out"


EXAMPLES = {
    str: "1",
    int: 1,
    float: 1.0,
    bool: True,
    Any: "1",
    datetime: datetime(2026, 1, 31, tzinfo=UTC),
    Money: Money(amount_minor=1, currency="USD"),
}


def example_of(hint: Any) -> Any:
    """Return a value of a payload's type, with every optional field set and one element in each container."""
    if hint in EXAMPLES:
        return EXAMPLES[hint]
    if dataclasses.is_dataclass(hint):
        assert isinstance(hint, type)
        types = get_type_hints(hint)
        return hint(**{field.name: example_of(types[field.name]) for field in dataclasses.fields(hint) if field.init})
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        return next(iter(hint))
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (UnionType, Union):
        return example_of(next(member for member in inner if member is not type(None)))
    if origin in (dict, Mapping):
        return {example_of(inner[0]): example_of(inner[1])}
    return origin(example_of(element) for element in inner if element is not Ellipsis)


RETRIED = {
    # Its end would end the dispatch of all mails.
    "notifications.drain_outbox",
}


def refuse_connection(*_: object) -> NoReturn:
    raise RuleViolation(ErrorCode.ILLEGAL_MOVE, "The row does not allow it.")


async def test_a_rule_violation_ends_every_activity_for_good(
    registered_activities: dict[str, tuple[str, Callable[..., Any]]],
) -> None:
    """Every other error is retried, for ever. Here the first statement of each activity raises the violation."""
    environment = ActivityEnvironment(client=cast(Client, object()))
    errors: dict[str, BaseException] = {}
    event.listen(Engine, "do_connect", refuse_connection)
    try:
        for name, (_, method) in registered_activities.items():
            if name in RETRIED:
                continue
            (parameter,) = inspect.signature(method).parameters
            command = example_of(get_type_hints(method)[parameter])
            with pytest.raises(Exception) as raised:
                await environment.run(method, command)
            errors[name] = raised.value
    finally:
        event.remove(Engine, "do_connect", refuse_connection)
    assert len(errors) >= 50
    ended = {
        name
        for name, error in errors.items()
        if isinstance(error, ApplicationError) and error.non_retryable and error.type == ErrorCode.ILLEGAL_MOVE
    }
    assert {name: repr(error) for name, error in errors.items() if name not in ended} == {}


def payload_types() -> dict[str, Any]:
    """Return the types of all payloads in histories, by place: inputs and outcomes of activities and workflows."""
    hints: dict[str, Any] = {}
    for name, _, method in DECLARED_ACTIVITIES:
        hints |= {f"{name} {key}": hint for key, hint in get_type_hints(method).items()}
    for workflow_class in WORKFLOWS:
        workflow_definition = workflow._Definition.must_from_class(workflow_class)
        handlers: list[Callable[..., Any]] = [workflow_definition.run_fn]
        handlers += [
            handler.fn
            for kind in (workflow_definition.signals, workflow_definition.updates, workflow_definition.queries)
            for handler in kind.values()
        ]
        for handler in handlers:
            hints |= {
                f"{workflow_definition.name}.{handler.__name__} {key}": hint
                for key, hint in get_type_hints(handler).items()
            }
    return hints


def find_unreadable_types(hint: Any, visited: frozenset[Any] = frozenset()) -> Iterator[Any]:
    """Yield the types inside ``hint`` that the default converter does not write or does not read back unchanged."""
    if hint in visited or hint in READABLE or (isinstance(hint, type) and issubclass(hint, StrEnum)):
        return
    if dataclasses.is_dataclass(hint):
        for inner in get_type_hints(hint).values():
            yield from find_unreadable_types(inner, visited | {hint})
    elif get_origin(hint) in CONTAINERS:
        for inner in get_args(hint):
            yield from find_unreadable_types(inner, visited | {hint})
    else:
        yield hint


def test_every_payload_type_can_be_written_and_read_back() -> None:
    unreadable_types = {
        where: types for where, hint in payload_types().items() if (types := list(find_unreadable_types(hint)))
    }
    assert unreadable_types == {}


def test_every_workflow_is_registered_under_its_own_name() -> None:
    assert set(WORKFLOWS) == set(all_workflows())
    assert len(WORKFLOWS) == len(set(WORKFLOWS))
    workflow_names = [workflow._Definition.must_from_class(workflow_class).name for workflow_class in WORKFLOWS]
    assert len(workflow_names) == len(set(workflow_names))
    constants = {value for name, value in vars(names).items() if name.isupper() and isinstance(value, str)}
    assert set(workflow_names) <= constants


def queue_of(call: ast.Call) -> str:
    """Return the queue that a call names, or ``platform``, where workflows run, if it names none."""
    for keyword in call.keywords:
        if keyword.arg == "task_queue":
            assert isinstance(keyword.value, ast.Attribute), ast.unparse(call)
            return QUEUES[keyword.value.attr]
    return names.PLATFORM_QUEUE


def port_method(node: ast.AST) -> str | None:
    """Return the activity's name for an expression such as ``Cluster.apply``."""
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        for name, protocol, method in DECLARED_ACTIVITIES:
            if (protocol.__name__, method.__name__) == (node.value.id, node.attr):
                return name
    return None


def runs_argument(call: ast.Call) -> bool:
    """Return whether the call runs an activity that was passed to the function as an argument."""
    return (
        isinstance(call.func, ast.Attribute)
        and call.func.attr in CALLS
        and bool(call.args)
        and isinstance(call.args[0], ast.Name)
    )


def find_activity_calls() -> Iterator[tuple[Path, str, set[str]]]:
    """Yield every activity that workflow code names, with the queues that its call can use.

    A method passed to a helper (``self._do(Cluster.restart)``) runs on the queue of the call inside that helper.
    """
    for path in WORKFLOW_FILES:
        tree = ast.parse(path.read_text(), str(path))
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)]
        helpers: dict[str, set[str]] = {}
        for function in ast.walk(tree):
            if isinstance(function, ast.AsyncFunctionDef):
                inside = (node for node in ast.walk(function) if isinstance(node, ast.Call) and runs_argument(node))
                for node in inside:
                    helpers.setdefault(function.name, set()).add(queue_of(node))
        for call in calls:
            assert isinstance(call.func, ast.Attribute)
            for argument in call.args:
                name = port_method(argument)
                if name is None:
                    continue
                if ast.unparse(call.func) == LOCAL_FIRST:
                    yield path, name, {names.PLATFORM_QUEUE}
                elif call.func.attr in CALLS:
                    yield path, name, {queue_of(call)}
                elif call.func.attr in LOCAL_CALLS:
                    yield path, name, {names.PLATFORM_QUEUE}
                else:
                    yield path, name, helpers.get(call.func.attr) or set().union(*helpers.values())


async def test_activities_are_called_on_the_queue_where_they_run(
    registered_activities: dict[str, tuple[str, Callable[..., Any]]],
) -> None:
    calls = list(find_activity_calls())
    wrong = [(path.name, name, queues) for path, name, queues in calls if registered_activities[name][0] not in queues]
    assert wrong == []
    assert {name for _, name, _ in calls} == {name for name, _, _ in DECLARED_ACTIVITIES}, (
        "a declared activity is never called"
    )


def messages_of(workflow_class: type) -> dict[str, list[Any]]:
    """Return the types of the signals, updates and queries that a workflow takes, by kind and name."""
    workflow_definition = workflow._Definition.must_from_class(workflow_class)
    kinds: dict[str, Mapping[str | None, Any]] = {
        "signal": workflow_definition.signals,
        "update": workflow_definition.updates,
        "query": workflow_definition.queries,
    }
    return {
        f"{kind} {name}": list(get_type_hints(handler.fn).values())
        for kind, handlers in kinds.items()
        for name, handler in handlers.items()
        if name is not None
    }


REAL_WORKFLOWS = {workflow._Definition.must_from_class(real).name: real for real in WORKFLOWS}
FAKE_WORKFLOWS = [
    value for value in vars(fake_workflows).values() if isinstance(value, type) and DEFINITION in vars(value)
]


@pytest.mark.parametrize("fake", FAKE_WORKFLOWS)
def test_a_fake_workflow_takes_the_messages_of_the_real_one(fake: type) -> None:
    real = REAL_WORKFLOWS[workflow._Definition.must_from_class(fake).name]
    taken = messages_of(real)
    assert {name: types for name, types in messages_of(fake).items() if taken.get(name) != types} == {}
    run_types = [get_type_hints(workflow._Definition.must_from_class(kind).run_fn) for kind in (fake, real)]
    assert list(run_types[0].values()) == list(run_types[1].values())


@pytest.mark.parametrize("stand_in", [fake_payments.ParentWorkflow, fake_payments.PastDueSubscription])
def test_what_stands_in_for_the_subscription_takes_its_signals(stand_in: type) -> None:
    signals = {name: types for name, types in messages_of(stand_in).items() if name.startswith("signal ")}
    assert signals
    taken = messages_of(Subscription)
    assert {name: types for name, types in signals.items() if taken.get(name) != types} == {}


def sent_signals() -> Iterator[tuple[Path, str]]:
    """Yield the signals that workflow code sends by name."""
    for path in WORKFLOW_FILES:
        for call in ast.walk(ast.parse(path.read_text(), str(path))):
            if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute) or not call.args:
                continue
            if call.func.attr in ("signal", "signal_payment"):
                yield from (
                    (path, node.value)
                    for argument in call.args
                    for node in ast.walk(argument)
                    if isinstance(node, ast.Constant) and isinstance(node.value, str)
                )


def test_every_signal_that_a_workflow_sends_is_taken_by_a_workflow_and_by_the_fake_of_the_payment() -> None:
    taken = {message for real in WORKFLOWS for message in messages_of(real)}
    assert {signal for _, signal in sent_signals() if f"signal {signal}" not in taken} == set()
    of_payment = {f"signal {signal}" for _, signal in sent_signals()} & messages_of(Payment).keys()
    assert of_payment == {"signal capture", "signal cancel_authorization"}
    assert of_payment <= messages_of(fake_workflows.FakePayment).keys()


def test_time_limits_and_retries_of_activities_come_from_the_policies() -> None:
    calls = [
        (path.name, keyword)
        for path in WORKFLOW_FILES
        for call in ast.walk(ast.parse(path.read_text(), str(path)))
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr in CALLS | LOCAL_CALLS
        for keyword in call.keywords
    ]
    assert {(name, keyword.arg) for name, keyword in calls} <= {
        (name, argument) for name, _ in calls for argument in (None, "task_queue", "cancellation_type")
    }
    assert [path.name for path in WORKFLOW_FILES if "RetryPolicy" in path.read_text()] == ["policies.py"]
    intervals = re.compile(r"^[A-Z_]*(?:RETRY_[A-Z_]*INTERVAL|BACKOFF)[A-Z_]* *=", re.MULTILINE)
    assert [path.name for path in WORKFLOW_FILES if intervals.search(path.read_text())] == []
