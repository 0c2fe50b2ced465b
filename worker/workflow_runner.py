"""The sandbox in which workflows run, without its entry per payload.

The SDK asks a workflow's instance for the serialization context of each payload, three to four times, and the sandbox
answers each time by executing code. Berth's converters use no context, so the answer is None without entering.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from temporalio.bridge.proto.workflow_activation import WorkflowActivation
from temporalio.bridge.proto.workflow_completion import WorkflowActivationCompletion
from temporalio.converter import StorageDriverStoreContext
from temporalio.worker import WorkflowInstance, WorkflowInstanceDetails
from temporalio.worker.workflow_sandbox import SandboxedWorkflowRunner, SandboxRestrictions
from temporalio.workflow import Info

PASSTHROUGH_MODULES = ("workflows", "temporalio", "structlog", "pydantic", "pydantic_core", "orjson")
"""Modules that the sandbox does not import again per workflow: ours do no I/O, which import-linter checks."""


def sandboxed_runner(*more_modules: str) -> SandboxedWorkflowRunner:
    """Return the runner of the product's workers; `more_modules` are passed through as well."""
    return _ContextFreeRunner(
        restrictions=SandboxRestrictions.default.with_passthrough_modules(*PASSTHROUGH_MODULES, *more_modules)
    )


@dataclass(frozen=True)
class _ContextFreeRunner(SandboxedWorkflowRunner):
    def create_instance(self, det: WorkflowInstanceDetails) -> WorkflowInstance:
        return _ContextFreeInstance(super().create_instance(det))


class _ContextFreeInstance(WorkflowInstance):
    """A sandboxed instance whose payloads have no serialization context and no external storage."""

    def __init__(self, sandboxed: WorkflowInstance) -> None:
        self._sandboxed = sandboxed

    def activate(self, act: WorkflowActivation) -> WorkflowActivationCompletion:
        return self._sandboxed.activate(act)

    def get_serialization_context(self, command_info: Any) -> None:
        return None

    def get_external_store_context(self, command_info: Any) -> StorageDriverStoreContext:
        return StorageDriverStoreContext(target=None)

    def get_info(self) -> Info:
        return self._sandboxed.get_info()

    def get_thread_id(self) -> int | None:
        return self._sandboxed.get_thread_id()
