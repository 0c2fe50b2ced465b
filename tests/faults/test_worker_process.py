"""The worker process: it waits for its servers, stops on SIGTERM, and logs no personal data."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from psycopg import sql
from temporalio.client import Client, WorkflowExecutionStatus, WorkflowHandle

from deploy.local.postgres import OWNER_ROLE, Postgres
from deploy.local.process import ChildProcess
from deploy.local.temporal import NAMESPACE, TemporalServer
from deploy.ports import LOOPBACK, free_ports
from tests.support.databases import ROOT, TEMPLATE_DATABASE, DatabaseFixture, copy_cached_template
from tests.support.instance_fixture import InstanceFixture, create_instance_fixture
from tests.support.notification_fixture import NotificationFixture
from tests.support.sandboxes import STRIPE_KEY, ClusterEndpoint, MailboxEndpoint
from tests.support.wait import scale_timeout, wait_until
from workflows import names
from workflows.connection import connect
from workflows.rules.notifications import NotificationKind
from workflows.settings import TemporalSettings

pytestmark = pytest.mark.faults

KEY = bytes(range(32))
NAME, EMAIL, TOKEN = "Ada Lovelace", "ada@customer.example", "tok-4711-very-secret"
STOP_TIMEOUT = scale_timeout(8.0)


@dataclass
class WorkerEnvironment:
    """Servers that a test starts and stops, and worker processes that use them."""

    folder: Path
    postgres: Postgres
    temporal: TemporalServer
    mailbox: MailboxEndpoint
    cluster: ClusterEndpoint
    metrics_port: int
    workers: int = 0

    @property
    def database(self) -> DatabaseFixture:
        return DatabaseFixture(self.postgres, "berth")

    def start_postgres(self) -> None:
        self.postgres.start()
        with self.postgres.superuser() as connection:
            if connection.execute("SELECT 1 FROM pg_database WHERE datname = 'berth'").fetchone() is None:
                connection.execute(
                    sql.SQL("CREATE DATABASE berth TEMPLATE {} OWNER {}").format(
                        sql.Identifier(TEMPLATE_DATABASE), sql.Identifier(OWNER_ROLE)
                    )
                )

    @contextmanager
    def worker(self, **more: str) -> Iterator[ChildProcess]:
        self.workers += 1
        process = ChildProcess(
            "worker",
            [sys.executable, "-m", "worker"],
            log=self.folder / f"worker-{self.workers}.log",
            cwd=ROOT,
            env={
                **os.environ,
                "BERTH_ENVIRONMENT": "sandbox",
                "BERTH_WORKER_DATABASE_URL": self.database.worker_url,
                "BERTH_TEMPORAL_ADDRESS": self.temporal.address,
                "BERTH_SMTP_PORT": str(self.mailbox.smtp_port),
                "BERTH_STRIPE_URL": f"http://{LOOPBACK}:9",
                "BERTH_STRIPE_API_KEY": STRIPE_KEY,
                "BERTH_KUBECONFIG": str(self.cluster.kubeconfig),
                "BERTH_ENCRYPTION_KEY": f"1:{base64.b64encode(KEY).decode()}",
                "BERTH_METRICS_PORT": str(self.metrics_port),
                "PYTHONUNBUFFERED": "1",
                **more,
            },
        )
        process.start()
        try:
            yield process
        finally:
            process.kill()

    async def ready(self, process: ChildProcess) -> None:
        await wait_until(lambda: self.has_logged(process, "worker.started"), description="the worker is ready")

    def has_logged(self, process: ChildProcess, event: str) -> bool:
        assert process.is_alive, process.log_tail(40)
        return any(line.get("event") == event for line in self.lines(process))

    @staticmethod
    def lines(process: ChildProcess) -> list[dict[str, Any]]:
        """Return the events of the log, whose every line must be JSON."""
        text = process.log.read_text() if process.log.exists() else ""
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]

    async def mails(self) -> list[dict[str, str]]:
        return await asyncio.to_thread(self.mailbox.messages)

    async def metrics(self) -> str:
        async with httpx.AsyncClient() as web:
            return (await web.get(f"http://{LOOPBACK}:{self.metrics_port}/metrics")).text

    async def client(self) -> Client:
        settings = TemporalSettings(address=self.temporal.address, namespace=NAMESPACE, encryption_keys=(("1", KEY),))
        return await connect(settings)


@pytest.fixture
def environment(
    tmp_path: Path, template_cache: Path, mailbox: MailboxEndpoint, cluster: ClusterEndpoint
) -> Iterator[WorkerEnvironment]:
    (metrics_port,) = free_ports(1)
    copy_cached_template(tmp_path / "postgres", template_cache)
    environment = WorkerEnvironment(
        folder=tmp_path,
        postgres=Postgres(tmp_path / "postgres", durable=False),
        temporal=TemporalServer(log=tmp_path / "temporal.log", database=tmp_path / "temporal.db"),
        mailbox=mailbox,
        cluster=cluster,
        metrics_port=metrics_port,
    )
    try:
        yield environment
    finally:
        environment.temporal.process.kill()
        environment.postgres.stop()


async def stop_worker(process: ChildProcess) -> float:
    """Send SIGTERM, and return how long the process took to exit, in seconds."""
    started_at = time.monotonic()
    process.signal(signal.SIGTERM)
    await wait_until(lambda: not process.is_alive, description="the worker has ended")
    assert process.exit_code == 0, process.log_tail(40)
    return time.monotonic() - started_at


async def test_a_worker_without_its_servers_waits_and_can_be_stopped(environment: WorkerEnvironment) -> None:
    with environment.worker() as process:
        await wait_until(lambda: environment.has_logged(process, "temporal.unavailable"))
        assert "berth_outbox_pending" in await environment.metrics()
        assert await stop_worker(process) < STOP_TIMEOUT


async def test_a_worker_starts_with_its_servers_and_survives_their_restarts(environment: WorkerEnvironment) -> None:
    with environment.worker() as process:
        await wait_until(lambda: environment.has_logged(process, "temporal.unavailable"))
        await asyncio.to_thread(environment.temporal.start)
        await environment.ready(process)
        # Without a database the drain fails and is retried.
        await wait_until(lambda: environment.has_logged(process, "activity.failed"))
        await asyncio.to_thread(environment.start_postgres)
        notifications = NotificationFixture(environment.database, environment.mailbox.smtp_port)
        notifications.insert_user(EMAIL)
        await notifications.enqueue(notifications.build_notification("first"))
        await wait_until(environment.mails, description="the first mail")

        # Every connection of the pool breaks at once, and the server returns on the same address.
        environment.postgres.process.kill()
        await asyncio.to_thread(environment.start_postgres)
        await notifications.sessions.kw["bind"].dispose()
        await notifications.enqueue(notifications.build_notification("second"))

        async def both() -> bool:
            return len(await environment.mails()) == 2

        await wait_until(both, description="the second mail")

        environment.temporal.process.kill()
        await asyncio.to_thread(environment.temporal.start)
        await notifications.enqueue(notifications.build_notification("third"))

        async def all_three() -> bool:
            return len(await environment.mails()) == 3

        await wait_until(all_three, description="the third mail")
        assert process.is_alive
        assert await stop_worker(process) < STOP_TIMEOUT
        await notifications.sessions.kw["bind"].dispose()


async def start_provisioning(
    environment: WorkerEnvironment, instances: InstanceFixture, client: Client
) -> WorkflowHandle[Any, Any]:
    instance_id = await instances.insert_instance()
    await instances.inject_fault("slow_ready", instance_id, seconds=25)
    return await client.start_workflow(
        names.PROVISIONING,
        instances.provisioning_inputs[instance_id],
        id=names.provisioning_workflow_id(instance_id),
        task_queue=names.PLATFORM_QUEUE,
    )


async def is_awaiting_readiness(handle: WorkflowHandle[Any, Any]) -> bool:
    described = (await handle.describe()).raw_description.pending_activities
    return any(
        pending.activity_type.name == "cluster.await_ready" and pending.last_started_time for pending in described
    )


@pytest.mark.scenario("P2")
async def test_a_worker_stops_while_activities_run_and_another_worker_continues_them(
    environment: WorkerEnvironment,
) -> None:
    environment.temporal.start()
    environment.start_postgres()
    async with create_instance_fixture(environment.database, environment.cluster) as instances:
        with environment.worker() as first:
            await environment.ready(first)
            handle = await start_provisioning(environment, instances, await environment.client())
            await wait_until(lambda: is_awaiting_readiness(handle), description="an activity waits for the instance")
            assert await stop_worker(first) < STOP_TIMEOUT
            assert environment.lines(first)[-1]["event"] == "worker.stopped"
        assert (await handle.describe()).status is WorkflowExecutionStatus.RUNNING
        with environment.worker() as second:
            await environment.ready(second)
            await instances.clear_faults()
            async with asyncio.timeout(60):
                result = await handle.result()
            assert result["ready"]
            assert await stop_worker(second) < STOP_TIMEOUT
        await instances.database.dispose()


@pytest.mark.scenario("S12")
async def test_the_log_is_json_with_the_ids_and_without_personal_data(environment: WorkerEnvironment) -> None:
    environment.temporal.start()
    environment.start_postgres()
    notifications = NotificationFixture(environment.database, environment.mailbox.smtp_port)
    user = notifications.insert_user(EMAIL, name=NAME)
    invoice_id = notifications.insert_invoice()
    await notifications.enqueue(
        notifications.build_notification(
            "verify",
            kind=NotificationKind.EMAIL_VERIFICATION,
            user_id=user,
            context={},
            secret_context={"token": TOKEN},
        ),
        notifications.build_notification(
            "faulty", kind=NotificationKind.SUBSCRIPTION_RENEWED, context={"subscription_id": "s", "amount": EMAIL}
        ),
    )
    with environment.worker() as process:
        await environment.ready(process)
        await wait_until(environment.mails)
        client = await environment.client()
        document = await client.execute_workflow(
            names.INVOICE_RENDERING,
            {"invoice_id": invoice_id, "organization_id": notifications.organization},
            id=names.invoice_rendering_workflow_id(invoice_id),
            task_queue=names.PLATFORM_QUEUE,
            execution_timeout=timedelta(seconds=30),
        )
        assert document["document_id"]
        with psycopg.connect(environment.database.superuser_dsn()) as connection:
            connection.execute("ALTER TABLE notifications ADD CONSTRAINT broken CHECK (status <> 'sent') NOT VALID")
        await notifications.enqueue(notifications.build_notification("third"))
        await wait_until(lambda: environment.has_logged(process, "activity.failed"))
        metrics = await environment.metrics()
        await stop_worker(process)
        lines = environment.lines(process)
    await notifications.sessions.kw["bind"].dispose()

    (rendered,) = [
        line for line in lines if line["event"] == "activity" and line["activity"] == "documents.render_invoice"
    ]
    assert rendered["workflow_id"] == names.invoice_rendering_workflow_id(invoice_id)
    assert (rendered["account"], rendered["attempt"], rendered["outcome"]) == (notifications.organization, 1, "done")
    assert rendered["run_id"]
    failed = next(line for line in lines if line["event"] == "activity.failed")
    assert failed["error"] == "IntegrityError"
    refused = next(line for line in lines if line["event"] == "activity.row_refused")
    assert (refused["sqlstate"], refused["activity"]) == ("23514", failed["activity"])
    assert any(frame.startswith("activities/notifications.py") for frame in failed["where"])
    sent = next(line for line in lines if line["event"] == "mail.sent")
    assert sent["workflow_id"] == names.notification_dispatch_workflow_id("email"), (
        "lines of an activity say whose they are"
    )
    everything = process.log.read_text()
    for secret in (NAME, EMAIL, TOKEN, "Lovelace", STRIPE_KEY, "Example Ltd"):
        assert secret not in everything, f"{secret} is in the log"
        assert secret not in metrics, f"{secret} is in the metrics"

    for metric in (
        'berth_activity_attempts_total{activity="documents.render_invoice",outcome="done"} 1.0',
        'berth_activity_attempts_total{activity="notifications.drain_outbox",outcome="failed"}',
        'berth_activity_duration_seconds_bucket{activity="documents.render_invoice"',
        'berth_activity_schedule_to_start_seconds_count{queue="notifications"}',
        'berth_outbox_pending{channel="email"}',
        'berth_outbox_oldest_due_age_seconds{channel="email"}',
        "berth_webhooks_undelivered 0.0",
        "temporal_workflow_task_execution_latency",
        "temporal_num_pollers",
    ):
        assert metric in metrics, metric
