"""The worker as a process: it waits for what is away, ends when it is asked to, and says nothing it should not."""

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

from deploy.local.ports import LOOPBACK, free_ports
from deploy.local.postgres import OWNER, Postgres
from deploy.local.process import Process
from deploy.local.temporal import NAMESPACE, TemporalServer
from tests.support.databases import ROOT, TEMPLATE, Database, copy_of_template
from tests.support.instances import Fleet, fleet_of
from tests.support.post import Post
from tests.support.sandboxes import STRIPE_KEY, Cluster, Mailbox
from tests.support.wait import eventually, in_time
from workflows import names
from workflows.client import connect
from workflows.settings import TemporalSettings

pytestmark = pytest.mark.faults

KEY = bytes(range(32))
NAME, EMAIL, TOKEN = "Ada Lovelace", "ada@customer.example", "tok-4711-very-secret"
ENDS_WITHIN = in_time(8.0)


@dataclass
class Backstage:
    """Servers of this test alone, which come and go, and a worker for them."""

    folder: Path
    postgres: Postgres
    temporal: TemporalServer
    mailbox: Mailbox
    cluster: Cluster
    metrics_port: int
    workers: int = 0

    @property
    def database(self) -> Database:
        return Database(self.postgres, "berth")

    def start_postgres(self) -> None:
        self.postgres.start()
        with self.postgres.superuser() as connection:
            if connection.execute("SELECT 1 FROM pg_database WHERE datname = 'berth'").fetchone() is None:
                connection.execute(
                    sql.SQL("CREATE DATABASE berth TEMPLATE {} OWNER {}").format(
                        sql.Identifier(TEMPLATE), sql.Identifier(OWNER)
                    )
                )

    @contextmanager
    def worker(self, **more: str) -> Iterator[Process]:
        self.workers += 1
        process = Process(
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

    async def ready(self, process: Process) -> None:
        await eventually(lambda: self.said(process, "worker.ready"), what="the worker is ready")

    def said(self, process: Process, event: str) -> bool:
        assert process.alive, process.last_words(40)
        return any(line.get("event") == event for line in self.lines(process))

    @staticmethod
    def lines(process: Process) -> list[dict[str, Any]]:
        """The log; every line of it is JSON."""
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
def backstage(
    tmp_path: Path, request: pytest.FixtureRequest, mailbox: Mailbox, cluster: Cluster
) -> Iterator[Backstage]:
    (metrics_port,) = free_ports(1)
    copy_of_template(tmp_path / "postgres", request.config.cache.mkdir("postgres"))
    made = Backstage(
        folder=tmp_path,
        postgres=Postgres(tmp_path / "postgres", durable=False),
        temporal=TemporalServer(log=tmp_path / "temporal.log", database=tmp_path / "temporal.db"),
        mailbox=mailbox,
        cluster=cluster,
        metrics_port=metrics_port,
    )
    try:
        yield made
    finally:
        made.temporal.process.kill()
        made.postgres.stop()


async def ended(process: Process) -> float:
    """Ask it to end; return how long it took."""
    begun = time.monotonic()
    process.signal(signal.SIGTERM)
    await eventually(lambda: not process.alive, what="the worker has ended")
    assert process.exit_code == 0, process.last_words(40)
    return time.monotonic() - begun


async def test_it_waits_for_servers_that_are_away_and_ends_meanwhile(backstage: Backstage) -> None:
    with backstage.worker() as process:
        await eventually(lambda: backstage.said(process, "temporal.away"))
        assert "berth_outbox_waiting" in await backstage.metrics()
        assert await ended(process) < ENDS_WITHIN


async def test_it_begins_once_its_servers_come_and_goes_on_when_they_come_again(backstage: Backstage) -> None:
    with backstage.worker() as process:
        await eventually(lambda: backstage.said(process, "temporal.away"))
        await asyncio.to_thread(backstage.temporal.start)
        await backstage.ready(process)
        # Without a database: the drain fails, and is tried again.
        await eventually(lambda: backstage.said(process, "activity.failed"))
        await asyncio.to_thread(backstage.start_postgres)
        post = Post(backstage.database, backstage.mailbox.smtp_port)
        post.reader(EMAIL)
        await post.enqueue(post.notice("first"))
        await eventually(backstage.mails, what="the first mail")

        # Every connection of the pool is dead at once, and the server comes back on the same address.
        backstage.postgres.process.kill()
        await asyncio.to_thread(backstage.start_postgres)
        await post.sessions.kw["bind"].dispose()
        await post.enqueue(post.notice("second"))

        async def both() -> bool:
            return len(await backstage.mails()) == 2

        await eventually(both, what="the second mail")

        backstage.temporal.process.kill()
        await asyncio.to_thread(backstage.temporal.start)
        await post.enqueue(post.notice("third"))

        async def all_three() -> bool:
            return len(await backstage.mails()) == 3

        await eventually(all_three, what="the third mail")
        assert process.alive
        assert await ended(process) < ENDS_WITHIN
        await post.sessions.kw["bind"].dispose()


async def provisioning(backstage: Backstage, fleet: Fleet, client: Client) -> WorkflowHandle[Any, Any]:
    instance_id = await fleet.order()
    await fleet.fault("slow_ready", instance_id, seconds=25)
    return await client.start_workflow(
        names.PROVISIONING,
        fleet.made[instance_id],
        id=names.provisioning_workflow(instance_id),
        task_queue=names.PLATFORM,
    )


async def waiting(handle: WorkflowHandle[Any, Any]) -> bool:
    described = (await handle.describe()).raw_description.pending_activities
    return any(one.activity_type.name == "cluster.await_ready" and one.last_started_time for one in described)


@pytest.mark.scenario("P2")
async def test_it_ends_in_time_while_activities_run_and_another_goes_on(backstage: Backstage) -> None:
    backstage.temporal.start()
    backstage.start_postgres()
    async with fleet_of(backstage.database, backstage.cluster) as fleet:
        with backstage.worker() as first:
            await backstage.ready(first)
            handle = await provisioning(backstage, fleet, await backstage.client())
            await eventually(lambda: waiting(handle), what="somebody waits for the instance")
            assert await ended(first) < ENDS_WITHIN
            assert backstage.lines(first)[-1]["event"] == "worker.stopped"
        assert (await handle.describe()).status is WorkflowExecutionStatus.RUNNING
        with backstage.worker() as second:
            await backstage.ready(second)
            await fleet.heal()
            async with asyncio.timeout(60):
                result = await handle.result()
            assert result["ready"]
            assert await ended(second) < ENDS_WITHIN
        await fleet.database.dispose()


@pytest.mark.scenario("S12")
async def test_its_log_is_json_finds_everything_and_holds_nothing_personal(backstage: Backstage) -> None:
    backstage.temporal.start()
    backstage.start_postgres()
    post = Post(backstage.database, backstage.mailbox.smtp_port)
    user = post.reader(EMAIL, name=NAME)
    invoice_id = post.invoice()
    await post.enqueue(
        post.notice("verify", kind="email_verification", user_id=user, context={}, secret={"token": TOKEN}),
        post.notice("faulty", kind="subscription_renewed", context={"subscription_id": "s", "amount": EMAIL}),
    )
    with backstage.worker() as process:
        await backstage.ready(process)
        await eventually(backstage.mails)
        client = await backstage.client()
        document = await client.execute_workflow(
            names.INVOICE_DOCUMENT,
            {"invoice_id": invoice_id, "organization_id": post.organization},
            id=names.document_workflow(invoice_id),
            task_queue=names.PLATFORM,
            execution_timeout=timedelta(seconds=30),
        )
        assert document["document_id"]
        with psycopg.connect(backstage.database.superuser_dsn()) as connection:
            connection.execute("ALTER TABLE notifications ADD CONSTRAINT broken CHECK (status <> 'sent') NOT VALID")
        await post.enqueue(post.notice("third"))
        await eventually(lambda: backstage.said(process, "activity.failed"))
        shown = await backstage.metrics()
        await ended(process)
        lines = backstage.lines(process)
    await post.sessions.kw["bind"].dispose()

    (rendered,) = [
        line for line in lines if line["event"] == "activity" and line["activity"] == "documents.render_invoice"
    ]
    assert rendered["workflow_id"] == names.document_workflow(invoice_id)
    assert (rendered["account"], rendered["attempt"], rendered["outcome"]) == (post.organization, 1, "done")
    assert rendered["run_id"]
    failed = next(line for line in lines if line["event"] == "activity.failed")
    assert failed["error"].startswith("IntegrityError 23514")
    assert any(frame.startswith("activities/notifications.py") for frame in failed["where"])
    sent = next(line for line in lines if line["event"] == "mail.sent")
    assert sent["workflow_id"] == names.dispatch_workflow("email"), "lines of an activity say whose they are"
    everything = process.log.read_text()
    for secret in (NAME, EMAIL, TOKEN, "Lovelace", STRIPE_KEY, "Example Ltd"):
        assert secret not in everything, f"{secret} is in the log"
        assert secret not in shown, f"{secret} is in the metrics"

    for metric in (
        'berth_activities_total{activity="documents.render_invoice",outcome="done"} 1.0',
        'berth_activities_total{activity="notifications.drain",outcome="failed"}',
        'berth_activity_seconds_bucket{activity="documents.render_invoice"',
        'berth_activity_wait_seconds_count{queue="notices"}',
        'berth_outbox_waiting{channel="email"}',
        'berth_outbox_overdue_seconds{channel="email"}',
        "berth_webhooks_untold 0.0",
        "temporal_workflow_task_execution_latency",
        "temporal_num_pollers",
    ):
        assert metric in shown, metric
