"""The worker process: three task queues, one event loop, a clean end."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from typing import NoReturn, TypeVar

import structlog
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from temporalio.client import Client
from temporalio.common import WorkflowIDConflictPolicy
from temporalio.runtime import Runtime
from temporalio.service import RPCError
from temporalio.worker import Interceptor, Worker

from activities.attempt_time import AttemptTimeInterceptor
from api.outages import describe_outage
from api.schema_check import UnusableDatabase
from api.startup_errors import CannotStart
from db.session import SessionFactory
from worker import schedules
from worker.exit import exit_process
from worker.interceptors import ActivityMetricsInterceptor
from worker.metrics import WorkerMetrics, create_sdk_runtime
from worker.refused_rows import RefusedRowsInterceptor
from worker.registry import WORKFLOWS, Dependencies, activities_by_queue, open_dependencies
from worker.settings import WorkerSettings
from worker.workflow_runner import sandboxed_runner
from workflows import names
from workflows.connection import connect
from workflows.ports.notifications import DispatchInput
from workflows.rules.notifications import CHANNEL_EMAIL

T = TypeVar("T")

log = structlog.get_logger(__name__)

GRACEFUL_SHUTDOWN_TIMEOUT = timedelta(seconds=4)
"""How long activities may go on after a stop was asked for. Longer ones are repeated elsewhere; all bear it."""

FORCED_EXIT_SECONDS = 6.5
"""The process exits after this time, whatever is still running: the supervisor would kill it next."""

MAX_BACKOFF_SECONDS = 5.0

ENSURE_INTERVAL = timedelta(minutes=10)
"""How long the platform is without its dispatcher and its schedules at most, while a worker runs."""


@asynccontextmanager
async def run_workers(
    dependencies: Dependencies, client: Client, interceptors: Sequence[Interceptor] = ()
) -> AsyncIterator[None]:
    """Run the workers of all queues in this process until the block is left."""
    settings = dependencies.settings
    limits = {
        names.PLATFORM_QUEUE: settings.max_concurrent_activities,
        names.INFRASTRUCTURE_QUEUE: (
            settings.max_concurrent_cluster_activities + settings.max_concurrent_cluster_waits
        ),
        names.NOTIFICATIONS_QUEUE: 8,
    }
    workers = []
    for queue, implemented in activities_by_queue(dependencies).items():
        platform = queue == names.PLATFORM_QUEUE
        workers.append(
            Worker(
                client,
                task_queue=queue,
                workflows=WORKFLOWS if platform else (),
                activities=implemented,
                interceptors=[*interceptors, AttemptTimeInterceptor()],
                workflow_runner=sandboxed_runner(),
                max_cached_workflows=settings.max_cached_workflows if platform else 0,
                max_concurrent_activities=limits[queue],
                max_concurrent_local_activities=limits[queue],
                graceful_shutdown_timeout=GRACEFUL_SHUTDOWN_TIMEOUT,
                # Otherwise the SDK reads and hashes every module that is loaded.
                build_id=settings.build_id,
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


async def ensure_dispatchers_and_schedules(client: Client) -> None:
    """See to it that the one dispatcher of each channel and the schedules are there; they outlive every worker."""
    await client.start_workflow(
        names.NOTIFICATION_DISPATCH,
        DispatchInput(channel=CHANNEL_EMAIL),
        id=names.notification_dispatch_workflow_id(CHANNEL_EMAIL),
        task_queue=names.PLATFORM_QUEUE,
        id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
    )
    await schedules.upsert_schedules(client)


async def keep_dispatchers_and_schedules(client: Client, interval: timedelta = ENSURE_INTERVAL) -> NoReturn:
    """Put them in place again and again: a dispatcher may be terminated, and a restored server may know neither."""
    while True:
        await asyncio.sleep(interval.total_seconds())
        await retry_until_connected("announce", lambda: ensure_dispatchers_and_schedules(client))


async def retry_until_connected(operation: str, attempt: Callable[[], Awaitable[T]]) -> T:
    """Try until the server answers."""
    pause = 0.1
    while True:
        try:
            return await attempt()
        except (RuntimeError, RPCError) as error:
            log.warning("temporal.unavailable", operation=operation, retry_seconds=pause, **describe_outage(error))
        await asyncio.sleep(pause)
        pause = min(pause * 2, MAX_BACKOFF_SECONDS)


async def end_on_unusable_database(sessions: SessionFactory) -> None:
    """Wait until the database can be reached, then until cancelled. Activities fail until its check has succeeded.

    Raises:
        CannotStart: The process may not use it, and would take tasks from workers that may.
    """
    pause = 0.1
    while True:
        try:
            async with sessions() as session:
                await session.connection()
            break
        except (SQLAlchemyError, OSError) as error:
            if isinstance(error, DBAPIError) and isinstance(error.orig, UnusableDatabase):
                raise CannotStart(str(error.orig)) from error
            log.warning("database.unavailable", retry_seconds=pause, **describe_outage(error))
        await asyncio.sleep(pause)
        pause = min(pause * 2, MAX_BACKOFF_SECONDS)
    await asyncio.Event().wait()


async def connect_and_serve(dependencies: Dependencies, metrics: WorkerMetrics, sdk: Runtime) -> None:
    """Connect, then work until cancelled."""
    client = await retry_until_connected(
        "connect", lambda: connect(dependencies.settings.temporal_settings(), runtime=sdk)
    )
    interceptors = [ActivityMetricsInterceptor(metrics), RefusedRowsInterceptor(dependencies.sessions, metrics)]
    async with run_workers(dependencies, client, interceptors):
        await retry_until_connected("announce", lambda: ensure_dispatchers_and_schedules(client))
        log.info(
            "worker.started", task_queues=[names.PLATFORM_QUEUE, names.INFRASTRUCTURE_QUEUE, names.NOTIFICATIONS_QUEUE]
        )
        await keep_dispatchers_and_schedules(client)


async def run(settings: WorkerSettings, metrics: WorkerMetrics) -> None:
    """Work until SIGTERM or SIGINT. Raises what ended the work before."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, stop.set)
    sdk = create_sdk_runtime(metrics if settings.metrics_port else None)
    async with open_dependencies(settings) as dependencies:
        tasks = [
            asyncio.create_task(end_on_unusable_database(dependencies.sessions)),
            asyncio.create_task(connect_and_serve(dependencies, metrics, sdk)),
            asyncio.create_task(metrics.refresh_backlog_forever(dependencies.sessions)),
        ]
        stopped = asyncio.create_task(stop.wait())
        await asyncio.wait([*tasks, stopped], return_when=asyncio.FIRST_COMPLETED)
        if stop.is_set():
            log.info("worker.stopping")
            loop.call_later(FORCED_EXIT_SECONDS, _force_exit)
        for task in (stopped, *tasks):
            task.cancel()
        await asyncio.wait(tasks)
        for task in tasks:
            if not task.cancelled() and (error := task.exception()) is not None:
                raise error
        if not stop.is_set():
            raise RuntimeError("worker task exited unexpectedly")
    log.info("worker.stopped")


def _force_exit() -> None:
    log.warning("worker.forced_exit", after_seconds=FORCED_EXIT_SECONDS)
    exit_process(0)
