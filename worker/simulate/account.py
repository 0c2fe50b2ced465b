"""The simulated customer's money: an account that is funded, a card that pays or declines, refunds."""

from __future__ import annotations

from datetime import datetime

import httpx
from sqlalchemy import text

from db.session import Sessions
from workflows.client import Orchestrator
from workflows.ports.billing import AccountAdjustment
from workflows.ports.payments import AddPaymentMethod, Pay, Purpose, RefundOrder, RefundTo
from workflows.rules.errors import Refusal, RuleBroken
from workflows.rules.ids import derived
from workflows.rules.money import Money

ORGANIZATION, USER, CURRENCY = "org_simulated", "usr_simulated", "USD"
SUBSCRIPTION, INSTANCE = derived("sub", "simulated"), derived("ins", "simulated")
CARD, GATEWAY = "pm_card_visa", "stripe"


class Account:
    def __init__(self, orchestrator: Orchestrator, sessions: Sessions, stripe_url: str | None) -> None:
        self.orchestrator = orchestrator
        self._sessions = sessions
        self._stripe_url = stripe_url

    async def fund(self, amount: Money, now: datetime, *, by_card: bool) -> None:
        """Put ``amount`` into the wallet before the story begins."""
        if by_card:
            await self.top_up("beginning", amount, now)
            return
        await self.orchestrator.adjust(
            AccountAdjustment(
                adjustment_id="beginning",
                organization_id=ORGANIZATION,
                amount=amount,
                reason="what the simulation begins with",
                actor="administrator",
                request_id="",
                now=now,
            )
        )

    async def top_up(self, key: str, amount: Money, now: datetime) -> None:
        """Pay into the wallet by a card that is not on file (and always works)."""
        await self.orchestrator.top_up(
            Pay(
                payment_id=derived("pay", "simulated", key),
                organization_id=ORGANIZATION,
                amount=amount,
                gateway=GATEWAY,
                purpose=Purpose.TOP_UP,
                token=CARD,
                business_time=now,
                actor=USER,
            )
        )

    async def add_card(self, key: str = "beginning") -> None:
        """Put a card on file that pays, and make it the one that is charged; an open debt is collected at once."""
        await self.orchestrator.add_payment_method(
            AddPaymentMethod(
                payment_method_id=derived("pm", "simulated", key),
                organization_id=ORGANIZATION,
                gateway=GATEWAY,
                token=CARD,
                default=True,
                actor=USER,
            )
        )

    async def card_declines(self, code: str | None) -> None:
        """Cards on file decline with ``code`` from now on; None: they pay again."""
        async with httpx.AsyncClient(base_url=self._stripe_url or "") as gateway:
            answer = await gateway.post("/sandbox/declines", json={"decline_code": code})
            answer.raise_for_status()

    async def refund(self, key: str, amount_minor: int | None, to: str) -> None:
        """Refund (of) the newest payment; without an amount all that is left of it and, of a top-up, still there.

        Raises:
            RuleBroken: nothing can be refunded.
        """
        async with self._sessions() as session:
            found = (
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
        if found is None:
            raise RuleBroken(Refusal.NOT_FOUND, "There is no payment to refund.")
        left: int = min(found.left_minor, found.wallet_minor) if found.purpose == Purpose.TOP_UP else found.left_minor
        await self.orchestrator.refund(
            RefundOrder(
                refund_id=derived("rfd", "simulated", key),
                payment_id=found.id,
                organization_id=ORGANIZATION,
                amount=Money(amount_minor=left if amount_minor is None else amount_minor, currency=CURRENCY),
                to=RefundTo(to),
                reason="simulated",
                actor="administrator",
            )
        )
