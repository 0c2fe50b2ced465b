"""A Temporal client that does something just before it asks whether a workflow runs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from temporalio.client import (
    DescribeWorkflowInput,
    Interceptor,
    OutboundInterceptor,
    WorkflowExecutionDescription,
)


class BeforeDescribe(Interceptor):
    """Awaits ``action`` before each description: what happened after rows were read and before their workflows were."""

    def __init__(self, action: Callable[[], Awaitable[object]]) -> None:
        self._action = action

    def intercept_client(self, next: OutboundInterceptor) -> OutboundInterceptor:
        return _Outbound(next, self._action)


class _Outbound(OutboundInterceptor):
    def __init__(self, next: OutboundInterceptor, action: Callable[[], Awaitable[object]]) -> None:
        super().__init__(next)
        self._action = action

    async def describe_workflow(self, input: DescribeWorkflowInput) -> WorkflowExecutionDescription:
        await self._action()
        return await super().describe_workflow(input)
