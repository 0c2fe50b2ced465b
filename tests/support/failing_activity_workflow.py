"""A workflow whose only activity fails."""

from __future__ import annotations

from datetime import timedelta

from temporalio import workflow
from temporalio.common import RetryPolicy


@workflow.defn(name="FailingActivity")
class FailingActivityWorkflow:
    @workflow.run
    async def run(self, activity_name: str) -> None:
        await workflow.execute_activity(
            activity_name,
            start_to_close_timeout=timedelta(seconds=30),
            retry_policy=RetryPolicy(maximum_attempts=1),
        )
