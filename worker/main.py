"""The worker process: three task queues, one event loop, a clean end."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta

import structlog
from temporalio.client import Client
from temporalio.common import WorkflowIDConflictPolicy
from temporalio.worker import Worker
from temporalio.worker.workflow_sandbox import SandboxedWorkflowRunner, SandboxRestrictions

from worker import schedules
from worker.registry import WORKFLOWS, Dependencies, activities, dependencies
from worker.settings import WorkerSettings
from workflows import names
from workflows.client import connect
from workflows.ports.notifications import Dispatch
from workflows.rules.notices import CHANNEL_EMAIL

log = structlog.get_logger(__name__)

GRACE = timedelta(seconds=6)
"""How long activities may go on after a stop was asked for; heartbeats are shorter than that is worth waiting."""

LONGEST_PAUSE_SECONDS = 5.0

PURE = ("workflows", "temporalio", "structlog")
"""Modules that the sandbox does not import anew: ours do no I/O, which import-linter checks."""


@asynccontextmanager
async def running_workers(given: Dependencies, client: Client) -> AsyncIterator[None]:
    """Run the workers of all queues in this process until the block is left."""
    settings = given.settings
    by_queue = activities(given)
    limits = {
        names.PLATFORM: settings.concurrent_activities,
        names.INFRASTRUCTURE: settings.cluster_activities,
        names.NOTICES: 8,
    }
    async with AsyncExitStack() as stack:
        for queue, implemented in by_queue.items():
            platform = queue == names.PLATFORM
            await stack.enter_async_context(
                Worker(
                    client,
                    task_queue=queue,
                    workflows=WORKFLOWS if platform else (),
                    activities=implemented,
                    workflow_runner=SandboxedWorkflowRunner(
                        restrictions=SandboxRestrictions.default.with_passthrough_modules(*PURE)
                    ),
                    max_cached_workflows=settings.cached_workflows if platform else 0,
                    max_concurrent_activities=limits[queue],
                    graceful_shutdown_timeout=GRACE,
                )
            )
        await _dispatch(client)
        yield


async def _dispatch(client: Client) -> None:
    """See to it that the one dispatcher of each channel runs; it outlives every worker."""
    await client.start_workflow(
        names.NOTIFICATION_DISPATCH,
        Dispatch(channel=CHANNEL_EMAIL),
        id=names.dispatch_workflow(CHANNEL_EMAIL),
        task_queue=names.PLATFORM,
        id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
    )


async def connected(settings: WorkerSettings, stop: asyncio.Event) -> Client | None:
    """Return a client once the server answers; None when a stop was asked for before."""
    pause = 0.1
    while not stop.is_set():
        try:
            return await connect(settings.temporal())
        except RuntimeError as error:
            log.warning("temporal.away", error=str(error).partition("\n")[0], retry_seconds=pause)
        await _first(stop, pause)
        pause = min(pause * 2, LONGEST_PAUSE_SECONDS)
    return None


async def run(settings: WorkerSettings) -> None:
    """Work until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, stop.set)
    async with dependencies(settings) as given:
        client = await connected(settings, stop)
        if client is None:
            return
        async with running_workers(given, client):
            await schedules.ensure(client)
            log.info("worker.ready", queues=[names.PLATFORM, names.INFRASTRUCTURE, names.NOTICES])
            await stop.wait()
            log.info("worker.stopping")


async def _first(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return
