"""Workflows registered under real names that ask the test's ``Outside`` activities what to do."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from temporalio import workflow
from temporalio.exceptions import ActivityError

with workflow.unsafe.imports_passed_through():
    from workflows import names
    from workflows.ports.instances import Operate, OperationOutcome, Provision, Provisioned
    from workflows.ports.payments import Pay, PaymentOutcome
    from workflows.rules.payment import PaymentStatus


@workflow.defn(name=names.PROVISIONING)
class ScriptedProvisioning:
    @workflow.run
    async def run(self, command: Provision) -> Provisioned:
        try:
            provisioned: Provisioned = await workflow.execute_activity(
                "outside.provision",
                command,
                result_type=Provisioned,
                start_to_close_timeout=timedelta(seconds=30),
                heartbeat_timeout=timedelta(seconds=2),
                cancellation_type=workflow.ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
            )
            return provisioned
        except (ActivityError, asyncio.CancelledError):
            # Not GeneratorExit: that is a worker that forgets the workflow.
            await asyncio.shield(
                workflow.execute_activity(
                    "outside.undo_provision", command, start_to_close_timeout=timedelta(seconds=5)
                )
            )
            raise


@workflow.defn(name=names.INSTANCE_OPERATION)
class ScriptedOperation:
    @workflow.run
    async def run(self, command: Operate) -> OperationOutcome:
        outcome: OperationOutcome = await workflow.execute_activity(
            "outside.operate", command, result_type=OperationOutcome, start_to_close_timeout=timedelta(seconds=5)
        )
        return outcome


@workflow.defn(name=names.PAYMENT)
class ScriptedPayment:
    @workflow.init
    def __init__(self, command: Pay) -> None:
        self._decision: str | None = None

    @workflow.run
    async def run(self, command: Pay) -> PaymentOutcome:
        parent = workflow.info().parent
        if command.manual_capture:
            outcome = await self._ask("authorize", command)
            if parent is not None:
                handle = workflow.get_external_workflow_handle(parent.workflow_id)
                await handle.signal("payment_moved", outcome)
            if outcome.status is not PaymentStatus.AUTHORIZED:
                return outcome
            await workflow.wait_condition(lambda: self._decision is not None)
            return await self._ask(self._decision or "", command)
        return await self._ask("charge", command)

    @workflow.signal
    async def capture(self) -> None:
        self._decision = "capture"

    @workflow.signal
    async def release(self) -> None:
        self._decision = "release"

    @staticmethod
    async def _ask(verb: str, command: Pay) -> PaymentOutcome:
        outcome: PaymentOutcome = await workflow.execute_activity(
            f"outside.{verb}", command, result_type=PaymentOutcome, start_to_close_timeout=timedelta(minutes=5)
        )
        return outcome
