"""Temporal for tests: one development server per worker process, with time skipping for each workflow.

Every test run loads this module, and importing the SDK takes a second: functions import it where they use it.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from deploy.local.temporal import NAMESPACE, TemporalServer

if TYPE_CHECKING:
    from temporalio.client import Client, WorkflowHandle


@dataclass(frozen=True, slots=True)
class TemporalFixture:
    """A running server. Tests share it: use unique ids and task queues (`unique_id`)."""

    client: Client
    address: str
    namespace: str

    async def connect(self, **options: Any) -> Client:
        """Return another client, for example with a payload codec (`data_converter=…`) or interceptors."""
        from temporalio.client import Client

        return await Client.connect(self.address, namespace=self.namespace, **options)

    async def fast_forward(self, handle: WorkflowHandle[Any, Any], by: timedelta) -> bool:
        """Skip time of this workflow only. Return after every timer due on the way has fired.

        Skip at most to the next due timer plus the waits that follow it if activities run on the way: their retries
        take virtual time as well.

        Returns:
            False if the workflow closed before the end.
        """
        from temporalio.testing import TimeSkipper, TimeSkippingConfig

        skipper = TimeSkipper(self.client, config=TimeSkippingConfig(enabled=False))
        return await skipper.fast_forward(handle, by)

    @staticmethod
    def unique_id(prefix: str) -> str:
        """Return a unique name for a workflow id or a task queue."""
        return f"{prefix}-{uuid.uuid4().hex[:12]}"


@pytest.fixture(scope="session")
def temporal_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TemporalServer]:
    """A server in memory, with the search attributes registered."""
    with TemporalServer(log=tmp_path_factory.mktemp("temporal") / "temporal.log") as server:
        yield server


@pytest_asyncio.fixture
async def temporal(temporal_server: TemporalServer, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[TemporalFixture]:
    """A connected client with time skipping, and task queues that no other test polls.

    Workflows outlive the test that started them: children with ``ParentClosePolicy.ABANDON``, activities that are
    retried. On a shared queue they would run on the next test's worker, against its database and its fakes.
    """
    from temporalio.client import Client

    from workflows import names

    for queue in ("PLATFORM_QUEUE", "INFRASTRUCTURE_QUEUE", "NOTIFICATIONS_QUEUE"):
        monkeypatch.setattr(names, queue, TemporalFixture.unique_id(getattr(names, queue)))
    client = await Client.connect(temporal_server.address, namespace=NAMESPACE)
    yield TemporalFixture(client=client, address=temporal_server.address, namespace=NAMESPACE)
