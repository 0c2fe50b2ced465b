"""The workflow client answers within one limit, however the server divides it."""

from __future__ import annotations

from datetime import timedelta
from types import SimpleNamespace
from typing import Any, cast

import pytest
from temporalio.client import Client, WorkflowUpdateRPCTimeoutOrCancelledError

from workflows.client import RESULT_TIMEOUT, WorkflowClient
from workflows.ports.subscription import LifecycleCommand


class SlowServer:
    """A client and handle whose update is accepted after 2.5 s; ``now`` stands in for the monotonic clock."""

    def __init__(self) -> None:
        self.now = 100.0
        self.result_timeout: timedelta | None = None

    def get_workflow_handle(self, _: str) -> SlowServer:
        return self

    async def start_update(self, *_: Any, **__: Any) -> SlowServer:
        self.now += 2.5
        return self

    async def result(self, rpc_timeout: timedelta) -> None:
        self.result_timeout = rpc_timeout
        raise WorkflowUpdateRPCTimeoutOrCancelledError


async def test_acceptance_and_result_of_an_update_share_the_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    server = SlowServer()
    monkeypatch.setattr("workflows.client.time", SimpleNamespace(monotonic=lambda: server.now))
    client = WorkflowClient(cast(Client, server))
    response = await client.pause("sub_1", LifecycleCommand(update_id="o1", actor="usr_1"))
    assert response.result is None
    assert server.result_timeout == RESULT_TIMEOUT - timedelta(seconds=2.5)
