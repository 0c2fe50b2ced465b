"""Temporal's development server as Berth runs it."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path

from temporalio import workflow
from temporalio.client import Client
from temporalio.common import SearchAttributePair, TypedSearchAttributes
from temporalio.worker import Worker

from deploy.local.temporal import SEARCH_ATTRIBUTES, TemporalServer
from tests.support.temporal import TemporalFixture
from workflows import names


@workflow.defn(name="LocalStackSleeper")
class Sleeper:
    @workflow.run
    async def run(self) -> str:
        started_at = workflow.now()
        await asyncio.sleep(timedelta(days=30).total_seconds())
        return str((workflow.now() - started_at).days)


async def test_a_month_passes_for_one_workflow_and_not_for_another(temporal: TemporalFixture) -> None:
    queue = temporal.unique_id("sleepers")
    async with Worker(temporal.client, task_queue=queue, workflows=[Sleeper]):
        moved = await temporal.client.start_workflow(Sleeper.run, id=temporal.unique_id("moved"), task_queue=queue)
        stays = await temporal.client.start_workflow(Sleeper.run, id=temporal.unique_id("stays"), task_queue=queue)
        await temporal.fast_forward(moved, timedelta(days=31))
        assert await moved.result() == "30"
        described = await stays.describe()
        assert described.close_time is None
        await stays.terminate()


def test_the_registered_search_attributes_are_the_ones_the_workflows_use() -> None:
    assert dict(SEARCH_ATTRIBUTES) == {
        key.name: {"KEYWORD": "Keyword", "BOOL": "Bool"}[key.indexed_value_type.name] for key in names.SEARCH_ATTRIBUTES
    }


async def test_a_database_of_an_earlier_version_gets_new_search_attributes(tmp_path: Path) -> None:
    log, database = tmp_path / "log", tmp_path / "temporal.db"
    with TemporalServer(log=log, database=database, search_attributes={"BerthOrganization": "Keyword"}):
        pass
    with TemporalServer(log=log, database=database) as server:
        client = await Client.connect(server.address)
        handle = await client.start_workflow(
            "Nobody",
            id="one",
            task_queue="nobody",
            search_attributes=TypedSearchAttributes([SearchAttributePair(names.NODE_KEY, "node-1")]),
        )
        assert (await handle.describe()).typed_search_attributes[names.NODE_KEY] == "node-1"
