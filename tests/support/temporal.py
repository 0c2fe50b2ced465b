"""Temporal for tests: the development server, one per worker process, with a clock for each workflow.

Every run of the tests loads this module: the SDK, which takes a second, is imported by those who use it.
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
class Temporal:
    """A server that is running. Tests share it: use ids and task queues of your own (`unique`)."""

    client: Client
    address: str
    namespace: str

    async def connect(self, **options: Any) -> Client:
        """Another client, e.g. with a payload codec (`data_converter=…`) or interceptors."""
        from temporalio.client import Client

        return await Client.connect(self.address, namespace=self.namespace, **options)

    async def fast_forward(self, handle: WorkflowHandle[Any, Any], by: timedelta) -> bool:
        """Move this workflow's own clock; returns once everything due on the way has fired.

        False when the workflow ended before. Other workflows do not move. Never further than the next due moment plus
        what the workflow awaits there, if activities run on the way: their retries burn virtual time as well.
        """
        from temporalio.testing import TimeSkipper, TimeSkippingConfig

        skipper = TimeSkipper(self.client, config=TimeSkippingConfig(enabled=False))
        return await skipper.fast_forward(handle, by)

    @staticmethod
    def unique(prefix: str) -> str:
        """A name nobody else uses, for workflow ids and task queues."""
        return f"{prefix}-{uuid.uuid4().hex[:12]}"


@pytest.fixture(scope="session")
def temporal_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TemporalServer]:
    """A server in memory, with the search attributes registered."""
    with TemporalServer(log=tmp_path_factory.mktemp("temporal") / "temporal.log") as server:
        yield server


@pytest_asyncio.fixture
async def temporal(temporal_server: TemporalServer) -> AsyncIterator[Temporal]:
    """A connected client and the fast-forward."""
    from temporalio.client import Client

    client = await Client.connect(temporal_server.address, namespace=NAMESPACE)
    yield Temporal(client=client, address=temporal_server.address, namespace=NAMESPACE)
