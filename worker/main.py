"""The worker process: three task queues, one event loop, a clean end."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from typing import TypeVar

import structlog
from temporalio.client import Client
from temporalio.common import WorkflowIDConflictPolicy
from temporalio.runtime import Runtime
from temporalio.service import RPCError
from temporalio.worker import Interceptor, Worker
from temporalio.worker.workflow_sandbox import SandboxedWorkflowRunner, SandboxRestrictions

from worker import schedules
from worker.exit import leave
from worker.metrics import Metrics, runtime
from worker.registry import WORKFLOWS, Dependencies, activities, dependencies
from worker.settings import WorkerSettings
from worker.sight import Sight
from workflows import names
from workflows.client import connect
from workflows.ports.notifications import Dispatch
from workflows.rules.notices import CHANNEL_EMAIL

T = TypeVar("T")

log = structlog.get_logger(__name__)

GRACE = timedelta(seconds=4)
"""How long activities may go on after a stop was asked for. Longer ones are repeated elsewhere; all bear it."""

LAST_CALL_SECONDS = 6.5
"""After this the process ends whatever still hangs: whoever asked would kill it a moment later."""

LONGEST_PAUSE_SECONDS = 5.0

PURE = ("workflows", "temporalio", "structlog", "pydantic", "pydantic_core", "orjson")
"""Modules that the sandbox does not import anew: ours do no I/O, which import-linter checks."""


@asynccontextmanager
async def running_workers(
    given: Dependencies, client: Client, interceptors: Sequence[Interceptor] = ()
) -> AsyncIterator[None]:
    """Run the workers of all queues in this process until the block is left."""
    settings = given.settings
    limits = {
        names.PLATFORM: settings.concurrent_activities,
        names.INFRASTRUCTURE: settings.cluster_activities,
        names.NOTICES: 8,
    }
    workers = []
    for queue, implemented in activities(given).items():
        platform = queue == names.PLATFORM
        workers.append(
            Worker(
                client,
                task_queue=queue,
                workflows=WORKFLOWS if platform else (),
                activities=implemented,
                interceptors=interceptors,
                workflow_runner=SandboxedWorkflowRunner(
                    restrictions=SandboxRestrictions.default.with_passthrough_modules(*PURE)
                ),
                max_cached_workflows=settings.cached_workflows if platform else 0,
                max_concurrent_activities=limits[queue],
                max_concurrent_local_activities=limits[queue],
                graceful_shutdown_timeout=GRACE,
                # Otherwise the SDK reads and hashes every module that is loaded.
                build_id=settings.build,
            )
        )
    async with AsyncExitStack() as stack:
        for worker in workers:
            await stack.enter_async_context(worker)
        try:
            yield
        finally:
            # All at once: one after the other each would take its whole grace.
            await asyncio.gather(*(worker.shutdown() for worker in workers))


async def announce(client: Client) -> None:
    """See to it that the one dispatcher of each channel and the schedules are there; they outlive every worker."""
    await client.start_workflow(
        names.NOTIFICATION_DISPATCH,
        Dispatch(channel=CHANNEL_EMAIL),
        id=names.dispatch_workflow(CHANNEL_EMAIL),
        task_queue=names.PLATFORM,
        id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
    )
    await schedules.ensure(client)


async def insist(what: str, attempt: Callable[[], Awaitable[T]]) -> T:
    """Try until the server answers."""
    pause = 0.1
    while True:
        try:
            return await attempt()
        except (RuntimeError, RPCError) as error:
            log.warning("temporal.away", during=what, error=type(error).__name__, retry_seconds=pause)
        await asyncio.sleep(pause)
        pause = min(pause * 2, LONGEST_PAUSE_SECONDS)


async def work(given: Dependencies, metrics: Metrics, sdk: Runtime) -> None:
    """Connect, then work until cancelled."""
    client = await insist("connect", lambda: connect(given.settings.temporal(), runtime=sdk))
    async with running_workers(given, client, [Sight(metrics)]):
        await insist("announce", lambda: announce(client))
        log.info("worker.ready", queues=[names.PLATFORM, names.INFRASTRUCTURE, names.NOTICES])
        await asyncio.Event().wait()


async def run(settings: WorkerSettings, metrics: Metrics) -> None:
    """Work until SIGTERM or SIGINT. Raises what ended the work before."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, stop.set)
    sdk = runtime(metrics if settings.metrics_port else None)
    async with dependencies(settings) as given:
        tasks = [asyncio.create_task(work(given, metrics, sdk)), asyncio.create_task(metrics.watch(given.sessions))]
        stopped = asyncio.create_task(stop.wait())
        await asyncio.wait([*tasks, stopped], return_when=asyncio.FIRST_COMPLETED)
        if stop.is_set():
            log.info("worker.stopping")
            loop.call_later(LAST_CALL_SECONDS, _hang_up)
        for task in (stopped, *tasks):
            task.cancel()
        await asyncio.wait(tasks)
        for task in tasks:
            if not task.cancelled() and (error := task.exception()) is not None:
                raise error
        if not stop.is_set():
            raise RuntimeError("the work ended by itself")
    log.info("worker.stopped")


def _hang_up() -> None:
    log.warning("worker.cut_off", after_seconds=LAST_CALL_SECONDS)
    leave(0)
