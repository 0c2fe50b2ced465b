"""Top-ups and their refunds, and those of card payments, drawn in any sequence: the gateway answers as drawn."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from tests.support.billing_commands import usd
from tests.support.billing_fixture import ORDERED_AT, ORGANIZATION, USER
from tests.support.money_steps import MoneySteps
from workflows.ports.refunds import RecheckRefund, RefundDestination, RefundInput, ReserveRefund, SendRefund
from workflows.rules.payment import RefundStatus

AMOUNTS = st.sampled_from([30, 170, 490, 500, 2_000, 21_000])
POSITIONS = st.integers(min_value=0, max_value=9)
RESPONSES = st.sampled_from(RefundStatus)


class RefundSteps(MoneySteps):
    @rule(amount=AMOUNTS)
    def top_up(self, amount: int) -> None:
        self.run(self.insert_top_up(self.unique("pay"), amount))

    @rule(
        position=POSITIONS,
        amount=st.sampled_from([None, 10, 130, 500]),
        destination=st.sampled_from(RefundDestination),
        response=RESPONSES,
    )
    def refund(self, position: int, amount: int | None, destination: RefundDestination, response: RefundStatus) -> None:
        payments = self.query("SELECT id FROM payments WHERE captured_minor > 0 ORDER BY created_at, id")
        if payments:
            self.refund_payment(payments[position % len(payments)]["id"], amount, destination, response)

    @rule(amount=st.sampled_from([None, 10, 130]), response=RESPONSES)
    def refund_top_up(self, amount: int | None, response: RefundStatus) -> None:
        """Refund a top-up to a card whose bank then rejects every refund that was sent."""
        payment_id = self.unique("pay")
        self.run(self.insert_top_up(payment_id, 500))
        self.refund_payment(payment_id, amount, RefundDestination.SOURCE, response)
        for number in range(len(self.query("SELECT FROM refunds"))):
            self.recheck_refund(number, RefundStatus.FAILED)

    def refund_payment(
        self, payment_id: str, amount: int | None, destination: RefundDestination, response: RefundStatus
    ) -> None:
        command = RefundInput(
            refund_id=self.unique("re"),
            payment_id=payment_id,
            organization_id=ORGANIZATION,
            amount=None if amount is None else usd(amount),
            destination=destination,
            reason="goodwill",
            actor=USER,
        )
        reserved = self.perform(
            self.in_activity(self.account.refunds.reserve), ReserveRefund(command=command, now=ORDERED_AT)
        )
        if reserved is None or reserved.status != RefundStatus.PENDING:
            return
        self.account.gateway.refund_status = response
        self.send_refund(command.refund_id)

    @precondition(lambda self: self.query("SELECT FROM refunds WHERE status = 'pending'"))
    @rule(position=POSITIONS, response=RESPONSES)
    def follow_refund(self, position: int, response: RefundStatus) -> None:
        pending = self.query("SELECT id FROM refunds WHERE status = 'pending' ORDER BY id")
        if pending:
            self.account.gateway.refund_status = response
            self.send_refund(pending[position % len(pending)]["id"])

    @precondition(lambda self: self.query("SELECT FROM refunds"))
    @rule(position=POSITIONS, response=RESPONSES)
    def recheck_refund(self, position: int, response: RefundStatus) -> None:
        """A webhook is about any refund, once or again, early or late."""
        refunds = self.query("SELECT id, status FROM refunds ORDER BY id")
        if not refunds:
            return
        refund = refunds[position % len(refunds)]
        self.account.gateway.refund_status = response
        command = RecheckRefund(refund_id=refund["id"], now=ORDERED_AT)
        rechecked = self.perform(self.in_activity(self.account.refunds.recheck), command)
        assert rechecked is not None
        if rechecked.status != refund["status"]:
            self.note(f"a refund that {refund['status']} is {rechecked.status}")

    def send_refund(self, refund_id: str) -> None:
        sent = self.perform(
            self.in_activity(self.account.refunds.send), SendRefund(refund_id=refund_id, now=ORDERED_AT)
        )
        assert sent is not None
        self.note(f"a refund to the source is {sent.status}")
