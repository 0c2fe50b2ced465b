"""Fake workflows under the real names. Their outcomes come from the test's `ExternalFakes` activities."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from temporalio import workflow
from temporalio.exceptions import ActivityError

with workflow.unsafe.imports_passed_through():
    from workflows import names
    from workflows.ports.instances import OperationInput, OperationOutcome, ProvisioningInput, ProvisioningOutcome
    from workflows.ports.payments import PaymentInput, PaymentOutcome
    from workflows.rules.payment import PaymentStatus


@workflow.defn(name=names.PROVISIONING)
class FakeProvisioning:
    @workflow.run
    async def run(self, command: ProvisioningInput) -> ProvisioningOutcome:
        try:
            provisioned: ProvisioningOutcome = await workflow.execute_activity(
                "fake.provision",
                command,
                result_type=ProvisioningOutcome,
                start_to_close_timeout=timedelta(seconds=30),
                heartbeat_timeout=timedelta(seconds=2),
                cancellation_type=workflow.ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
            )
            return provisioned
        except (ActivityError, asyncio.CancelledError):
            # Not GeneratorExit, which the eviction of the workflow raises.
            await asyncio.shield(
                workflow.execute_activity(
                    "fake.compensate_provision", command, start_to_close_timeout=timedelta(seconds=5)
                )
            )
            raise


@workflow.defn(name=names.INSTANCE_OPERATION)
class FakeInstanceOperation:
    @workflow.run
    async def run(self, command: OperationInput) -> OperationOutcome:
        outcome: OperationOutcome = await workflow.execute_activity(
            "fake.operate", command, result_type=OperationOutcome, start_to_close_timeout=timedelta(seconds=5)
        )
        return outcome


@workflow.defn(name=names.PAYMENT)
class FakePayment:
    @workflow.init
    def __init__(self, command: PaymentInput) -> None:
        self._decision: str | None = None

    @workflow.run
    async def run(self, command: PaymentInput) -> PaymentOutcome:
        parent = workflow.info().parent
        if command.manual_capture:
            outcome = await self._run_scripted_activity("authorize", command)
            if parent is not None:
                handle = workflow.get_external_workflow_handle(parent.workflow_id)
                await handle.signal("payment_status_changed", outcome)
            if outcome.status is not PaymentStatus.AUTHORIZED:
                return outcome
            await workflow.wait_condition(lambda: self._decision is not None)
            return await self._run_scripted_activity(self._decision or "", command)
        return await self._run_scripted_activity("charge", command)

    @workflow.signal
    async def capture(self) -> None:
        self._decision = "capture"

    @workflow.signal
    async def cancel_authorization(self) -> None:
        self._decision = "cancel_authorization"

    @staticmethod
    async def _run_scripted_activity(verb: str, command: PaymentInput) -> PaymentOutcome:
        outcome: PaymentOutcome = await workflow.execute_activity(
            f"fake.{verb}", command, result_type=PaymentOutcome, start_to_close_timeout=timedelta(minutes=5)
        )
        return outcome
