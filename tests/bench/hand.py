"""One worker process of a benchmark: ``python -m tests.bench.hand '{…}'``, either Berth's or a bare one.

Both are made alike: the settings, the sandbox, the limits, the cache and the encryption of the product's worker.
Completions of the activity that counts are counted in a small shared file, so that both are measured by the same means.
Mails are not drained meanwhile.
"""

from __future__ import annotations

import asyncio
import json
import mmap
import signal
import struct
import sys
import time
from collections.abc import Callable, Hashable, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import uvloop
from pydantic import SecretStr
from temporalio import activity
from temporalio.client import Client
from temporalio.worker import (
    ActivityInboundInterceptor,
    ExecuteActivityInput,
    Interceptor,
    Worker,
)
from temporalio.worker.workflow_sandbox import SandboxedWorkflowRunner

from activities.adapters.kubernetes.client import KubernetesClient
from activities.service_templates.registry import ServiceTemplateRegistry
from api.garbage_collection import tune_garbage_collection
from tests.bench import bare
from tests.support.api import ENCRYPTION_KEY
from worker import registry
from worker.exit import exit_process
from worker.registry import open_dependencies
from worker.settings import WorkerSettings
from worker.workflow_runner import sandboxed_runner
from workflows import names
from workflows.connection import connect

_COUNT = struct.Struct("<Qd")


@dataclass(frozen=True, slots=True, kw_only=True)
class Hand:
    """Settings of a worker process.

    Attributes:
        counted: The activity whose completions are counted; `bare.ASLEEP` counts sleepers that sleep again.
        max_cached_workflows: Size of the cache of workflows; None is the product's.
    """

    bare: bool
    address: str
    namespace: str
    database_url: str
    kubeconfig: str
    counter: str
    counted: str
    cluster: bool = True
    max_cached_workflows: int | None = None

    def argv(self) -> list[str]:
        return [sys.executable, "-m", "tests.bench.hand", json.dumps(asdict(self))]

    def settings(self) -> WorkerSettings:
        settings = WorkerSettings(
            environment="sandbox",
            worker_database_url=self.database_url,
            temporal_address=self.address,
            temporal_namespace=self.namespace,
            encryption_key=SecretStr(ENCRYPTION_KEY),
            stripe_url="http://127.0.0.1:9",
            stripe_api_key=SecretStr("sk_test_bench"),
            kubeconfig=Path(self.kubeconfig),
            base_domain="bench.localhost",
            provisioning_failure_threshold_seconds=300,
        )
        if self.max_cached_workflows is None:
            return settings
        return settings.model_copy(update={"max_cached_workflows": self.max_cached_workflows})


class Counter:
    """A count and the instant of the last completion (monotonic seconds), shared between processes.

    The first thing that is counted is the start of the process itself.
    """

    def __init__(self, path: Path, *, create: bool = False) -> None:
        if create:
            path.write_bytes(_COUNT.pack(0, 0.0))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), _COUNT.size)
        self._counted: set[Hashable] = set()

    def add(self, step: Hashable) -> None:
        """Count ``step``, once: a workflow task that is lost repeats its local activities."""
        if step in self._counted:
            return
        self._counted.add(step)
        self._map[:] = _COUNT.pack(len(self._counted), time.monotonic())

    def read(self) -> tuple[int, float]:
        count, last = _COUNT.unpack(self._map[:])
        return int(count), float(last)


class _Counting(Interceptor):
    def __init__(self, counter: Counter, name: str) -> None:
        self._counter = counter
        self._name = name

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:
        return _CountingInbound(next, self._counter, self._name)


class _CountingInbound(ActivityInboundInterceptor):
    def __init__(self, next: ActivityInboundInterceptor, counter: Counter, name: str) -> None:
        super().__init__(next)
        self._counter = counter
        self._name = name

    async def execute_activity(self, input: ExecuteActivityInput) -> Any:
        result = await super().execute_activity(input)
        definition = getattr(input.fn, "__temporal_activity_definition", None)
        if definition is not None and definition.name == self._name:
            info = activity.info()
            self._counter.add((info.workflow_run_id, info.activity_id))
        return result


def runner() -> SandboxedWorkflowRunner:
    """The product's sandbox; the bare workflows' own module is handed through like the product's."""
    return sandboxed_runner("tests.bench.bare")


async def run(hand: Hand) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    settings = hand.settings()
    async with open_dependencies(settings) as dependencies:
        client = await connect(settings.temporal_settings())
        counter = Counter(Path(hand.counter))
        counting = _Counting(counter, hand.counted)
        if hand.counted == bare.ASLEEP:
            bare.BareSleeper.on_asleep = counter.add
        queues: dict[str, Sequence[Callable[..., Any]]]
        if hand.bare:
            gateway = KubernetesClient.from_kubeconfig(
                settings.kubeconfig, threads=settings.max_concurrent_cluster_activities
            )
            own = bare.BareActivities(gateway, ServiceTemplateRegistry(settings.template_directory / "services"))
            queues = {bare.QUEUE: registry.activity_methods(own), bare.CLUSTER_QUEUE: registry.activity_methods(own)}
            workflows: Sequence[type] = bare.WORKFLOWS
        else:
            queues = {**registry.activities_by_queue(dependencies)}
            queues.pop(names.NOTIFICATIONS_QUEUE)
            workflows = registry.WORKFLOWS
        if not hand.cluster:
            queues.pop(bare.CLUSTER_QUEUE if hand.bare else names.INFRASTRUCTURE_QUEUE)
        async with AsyncExitStack() as stack:
            for queue, activities in queues.items():
                await stack.enter_async_context(_worker(client, queue, workflows, activities, settings, counting))
            counter.add("started")
            # What was counted is finished: another process would repeat and count it once more.
            await stop.wait()


def _worker(
    client: Client,
    queue: str,
    workflows: Sequence[type],
    activities: Sequence[Callable[..., Any]],
    settings: WorkerSettings,
    counting: Interceptor,
) -> Worker:
    main = queue in (names.PLATFORM_QUEUE, bare.QUEUE)
    cluster_limit = settings.max_concurrent_cluster_activities + settings.max_concurrent_cluster_waits
    limit = settings.max_concurrent_activities if main else cluster_limit
    return Worker(
        client,
        task_queue=queue,
        workflows=workflows if main else (),
        activities=activities,
        workflow_runner=runner(),
        max_cached_workflows=settings.max_cached_workflows if main else 0,
        max_concurrent_activities=limit,
        max_concurrent_local_activities=limit,
        interceptors=[counting],
        build_id="bench",
    )


if __name__ == "__main__":
    tune_garbage_collection()
    uvloop.run(run(Hand(**json.loads(sys.argv[1]))))
    exit_process(0)
