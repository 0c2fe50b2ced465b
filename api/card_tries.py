"""Limits on declined cards: a stolen card is tried where nothing stops the next one.

Tries are counted where card data enters, when a payment method is saved and when a token is charged. A charge that is
declined after its response, and a saved card that an order or an invoice finds declined, are counted at the next try,
from their rows. Ordering needs a
verified mail address; topping up does not, so that organizations without one have less. A program verifies addresses as
well and registers again and again, so that all organizations at one address share a limit.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from sqlalchemy.ext.asyncio import AsyncSession

from api import ratelimit
from api.app_context import AppContext
from api.dependencies.transactions import transaction
from api.errors import ApiError
from api.tokens import Caller
from db.queries import identity, payments


class CardTries:
    """The tries of one caller from one address."""

    def __init__(self, ctx: AppContext, caller: Caller, address: str) -> None:
        self._ctx = ctx
        self._caller = caller
        self._network = ratelimit.limited_network(address)
        self._declined_payments: list[str] = []

    async def read_declined(self, session: AsyncSession) -> None:
        """Read which charges were declined of late, for `require_left`, which has no transaction."""
        since = datetime.now(UTC) - timedelta(seconds=ratelimit.DECLINED_CARDS.get_expiry())
        self._declined_payments = await payments.list_declined(session, self._caller.organization_id, since=since)

    async def require_left(self) -> None:
        """Count one try, and refuse it after too many declined cards, those of `read_declined` included.

        Raises:
            ApiError: 429 ``RATE_LIMITED``.
        """
        limits, organization_id = self._ctx.rate_limits, self._caller.organization_id
        for payment_id in self._declined_payments:
            await self.count_declined_payment(payment_id)
        await limits.require_left(ratelimit.DECLINED_CARDS, organization_id)
        await limits.require_left(ratelimit.DECLINED_CARDS_OF_ALL_AT_ADDRESS, self._network)
        await limits.consume(ratelimit.CARDS, organization_id)
        if self._caller.email_verified:
            return
        try:
            await limits.require_left(ratelimit.DECLINED_CARDS_UNVERIFIED, organization_id)
            await limits.require_left(ratelimit.DECLINED_CARDS_OF_ADDRESS, self._network)
        except ApiError:
            # The token may be older than the verification.
            if not await self._is_verified():
                raise

    async def count_declined_payment(self, payment_id: str) -> None:
        """Count a declined top-up, or a saved card, once, whether a response says so or a row."""
        if await self._ctx.rate_limits.count(ratelimit.COUNTED_DECLINE, payment_id):
            await self.count_declined()

    async def count_declined(self) -> None:
        limits, organization_id = self._ctx.rate_limits, self._caller.organization_id
        await limits.count(ratelimit.DECLINED_CARDS, organization_id)
        await limits.count(ratelimit.DECLINED_CARDS_OF_ALL_AT_ADDRESS, self._network)
        if not self._caller.email_verified:
            await limits.count(ratelimit.DECLINED_CARDS_UNVERIFIED, organization_id)
            await limits.count(ratelimit.DECLINED_CARDS_OF_ADDRESS, self._network)

    async def _is_verified(self) -> bool:
        async with transaction(self._ctx, self._caller) as session:
            return await identity.is_email_verified(session, self._caller.user_id)
