"""The simulated customer: funds the wallet, saves cards that pay or decline, requests refunds."""

from __future__ import annotations

from datetime import datetime

import httpx
from sqlalchemy import text

from db.session import SessionFactory
from workflows.client import WorkflowClient
from workflows.ports.billing import AdjustWallet
from workflows.ports.payments import AddPaymentMethod, PaymentInput, Purpose
from workflows.ports.refunds import RefundDestination, RefundInput
from workflows.rules.errors import ErrorCode, RuleViolation
from workflows.rules.ids import derive_id
from workflows.rules.money import Money

ORGANIZATION, USER, CURRENCY = "org_simulated", "usr_simulated", "USD"
SUBSCRIPTION_ID, INSTANCE_ID = derive_id("sub", "simulated"), derive_id("ins", "simulated")
CARD, GATEWAY = "pm_card_visa", "stripe"


class SimulatedCustomer:
    def __init__(self, workflows: WorkflowClient, sessions: SessionFactory, stripe_url: str | None) -> None:
        self.workflows = workflows
        self._sessions = sessions
        self._stripe_url = stripe_url

    async def fund_wallet(self, amount: Money, now: datetime, *, by_card: bool) -> None:
        """Credit ``amount`` to the wallet before the simulation starts."""
        if by_card:
            await self.top_up("beginning", amount, now)
            return
        await self.workflows.adjust_wallet(
            AdjustWallet(
                adjustment_id="beginning",
                organization_id=ORGANIZATION,
                amount=amount,
                reason="simulation opening balance",
                actor="administrator",
                request_id="",
                now=now,
            )
        )

    async def top_up(self, key: str, amount: Money, now: datetime) -> None:
        """Top up the wallet with a card that is not saved and always pays."""
        await self.workflows.start_top_up(
            PaymentInput(
                payment_id=derive_id("pay", "simulated", key),
                organization_id=ORGANIZATION,
                amount=amount,
                gateway=GATEWAY,
                purpose=Purpose.TOP_UP,
                gateway_token=CARD,
                business_time=now,
                actor=USER,
            )
        )

    async def add_card(self, key: str = "beginning") -> None:
        """Save a card that pays and make it the default; open invoices are collected at once."""
        await self.workflows.add_payment_method(
            AddPaymentMethod(
                payment_method_id=derive_id("pm", "simulated", key),
                organization_id=ORGANIZATION,
                gateway=GATEWAY,
                token=CARD,
                default=True,
                actor=USER,
            )
        )

    async def set_decline_code(self, code: str | None) -> None:
        """Let saved cards decline with ``code`` from now on; None lets them pay again."""
        async with httpx.AsyncClient(base_url=self._stripe_url or "") as gateway:
            response = await gateway.post("/sandbox/declines", json={"decline_code": code})
            response.raise_for_status()

    async def refund(self, key: str, amount_minor: int | None, to: str) -> None:
        """Refund the newest payment.

        Args:
            amount_minor: Minor units; None refunds the rest of the payment, for a top-up at most the wallet balance.

        Raises:
            RuleViolation: No payment can be refunded.
        """
        async with self._sessions() as session:
            payment = (
                await session.execute(
                    text(
                        """
                        SELECT p.id, p.captured_minor - p.refunded_minor AS left_minor, p.purpose,
                            COALESCE(a.balance_minor, 0) AS wallet_minor
                        FROM payments p
                        LEFT JOIN ledger_accounts a ON a.organization_id = p.organization_id
                            AND a.account = 'wallet' AND a.currency = p.currency
                        WHERE p.organization_id = :organization AND p.status IN ('succeeded', 'partially_refunded')
                        ORDER BY p.created_at DESC, p.id DESC LIMIT 1
                        """
                    ),
                    {"organization": ORGANIZATION},
                )
            ).one_or_none()
        if payment is None:
            raise RuleViolation(ErrorCode.NOT_FOUND, "There is no payment to refund.")
        refundable: int = (
            min(payment.left_minor, payment.wallet_minor) if payment.purpose == Purpose.TOP_UP else payment.left_minor
        )
        await self.workflows.refund_payment(
            RefundInput(
                refund_id=derive_id("rfd", "simulated", key),
                payment_id=payment.id,
                organization_id=ORGANIZATION,
                amount=Money(amount_minor=refundable if amount_minor is None else amount_minor, currency=CURRENCY),
                destination=RefundDestination(to),
                reason="simulated",
                actor="administrator",
            )
        )
