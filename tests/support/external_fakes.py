"""Scripted outcomes of provisioning, operations and payments, as the activities of the fake workflows."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from temporalio import activity

from db.session import SessionFactory
from tests.support import billing_fixture
from workflows.ports.instances import (
    OperationInput,
    OperationOutcome,
    OperationStatus,
    ProvisioningInput,
    ProvisioningOutcome,
)
from workflows.ports.payments import PaymentInput, PaymentOutcome
from workflows.rules.payment import PaymentStatus


@dataclass
class ExternalFakes:
    """Scripted outcomes of the child workflows, and the calls that were made."""

    sessions: SessionFactory
    provisioning_done: asyncio.Event = field(default_factory=asyncio.Event)
    provisioned: ProvisioningOutcome = field(default_factory=lambda: ProvisioningOutcome(ready=True))
    decline_code: str | None = None
    decline_codes: dict[str, str] = field(default_factory=dict)
    """By payment method; the others decline with ``decline_code``, or pay without one."""
    gateway_responses: asyncio.Event = field(default_factory=asyncio.Event)
    operations_allowed: asyncio.Event = field(default_factory=asyncio.Event)
    failing_operations: set[str] = field(default_factory=set)
    scripted_failures: list[bool] = field(default_factory=list)
    """Whether the next operations fail, in their order; ``failing_operations`` decides the others."""
    calls: list[tuple[str, str]] = field(default_factory=list)
    charged_methods: list[str] = field(default_factory=list)
    payments: list[PaymentInput] = field(default_factory=list)

    def operations(self) -> list[str]:
        return [kind for verb, kind in self.calls if verb == "operate"]

    @activity.defn(name="fake.provision")
    async def provision(self, command: ProvisioningInput) -> ProvisioningOutcome:
        self.calls.append(("provision", command.instance_id))
        while not self.provisioning_done.is_set():
            activity.heartbeat()
            await asyncio.wait([asyncio.ensure_future(self.provisioning_done.wait())], timeout=0.1)
        return self.provisioned

    @activity.defn(name="fake.compensate_provision")
    async def compensate_provision(self, command: ProvisioningInput) -> None:
        self.calls.append(("compensate_provision", command.instance_id))

    @activity.defn(name="instances.create_operation")
    async def create_operation(self, command: OperationInput) -> None:
        self.calls.append(("create_operation", command.kind))

    @activity.defn(name="fake.operate")
    async def operate(self, command: OperationInput) -> OperationOutcome:
        self.calls.append(("operate", command.kind))
        await self.operations_allowed.wait()
        failed = self.scripted_failures.pop(0) if self.scripted_failures else command.kind in self.failing_operations
        status = OperationStatus.FAILED if failed else OperationStatus.SUCCEEDED
        return OperationOutcome(operation_id=command.operation_id, status=status, reason="scripted" if failed else None)

    @activity.defn(name="fake.authorize")
    async def authorize(self, command: PaymentInput) -> PaymentOutcome:
        self.calls.append(("authorize", command.payment_id))
        declines = self._decline_code(command) is not None
        return self._outcome(command, PaymentStatus.FAILED if declines else PaymentStatus.AUTHORIZED)

    @activity.defn(name="fake.cancel_authorization")
    async def cancel_authorization(self, command: PaymentInput) -> PaymentOutcome:
        self.calls.append(("cancel_authorization", command.payment_id))
        return self._outcome(command, PaymentStatus.CANCELLED)

    @activity.defn(name="fake.capture")
    async def capture(self, command: PaymentInput) -> PaymentOutcome:
        return await self.charge(command)

    @activity.defn(name="fake.charge")
    async def charge(self, command: PaymentInput) -> PaymentOutcome:
        self.calls.append(("charge", command.payment_id))
        self.charged_methods.append(command.payment_method_id or "")
        await self.gateway_responses.wait()
        if self._decline_code(command) is not None:
            return self._outcome(command, PaymentStatus.FAILED)
        await self._receive(command)
        return self._outcome(command, PaymentStatus.SUCCEEDED)

    def _outcome(self, command: PaymentInput, status: PaymentStatus) -> PaymentOutcome:
        failed = status is PaymentStatus.FAILED
        return PaymentOutcome(
            payment_id=command.payment_id, status=status, decline_code=self._decline_code(command) if failed else None
        )

    def _decline_code(self, command: PaymentInput) -> str | None:
        return self.decline_codes.get(command.payment_method_id or "", self.decline_code)

    async def _receive(self, command: PaymentInput) -> None:
        self.payments.append(command)
        await billing_fixture.insert_card_payment(
            self.sessions, command.payment_id, command.subscription_id, command.amount
        )
