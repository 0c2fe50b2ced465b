"""The sandbox's clock: move one subscription through its months. Exists in the sandbox only."""

from __future__ import annotations

import asyncio
import time
from datetime import timedelta

from pydantic import AwareDatetime, Field, model_validator

from api.deps import Orders, SignedIn, Units, UnitsOfWork
from api.envelope import Body, Envelope, Instant, Schema, ok
from api.errors import SIGNED_IN, invalid, not_found
from api.families import family
from api.serial import CLOCKS
from db.models.billing import Subscription
from db.queries import notice_reads, subscriptions
from workflows.clock import SubscriptionClock
from workflows.rules.errors import Refusal, RuleBroken
from workflows.rules.subscription import BEFORE_READY, State

PATH = "/sandbox/clock/advance"
SECONDS = 600.0
"""Two years of renewals, each with its payment and mails, take their time."""

MAILS_WITHIN_SECONDS = 10.0
LOOK_AGAIN_SECONDS = 0.1
FARTHEST_DAYS = 3660

router = family("sandbox", responses=SIGNED_IN)


class AdvanceIn(Body):
    """``days`` from the subscription's own now, or ``until`` an instant; exactly one of them."""

    subscription_id: str = Field(min_length=1, max_length=100)
    days: float | None = Field(default=None, ge=0, le=FARTHEST_DAYS, examples=[31])
    until: AwareDatetime | None = None

    @model_validator(mode="after")
    def _one_of_them(self) -> AdvanceIn:
        if (self.days is None) == (self.until is None):
            raise ValueError("Give either `days` or `until`.")
        return self


class AdvancedOut(Schema):
    now: Instant


@router.post(PATH, response_model=Envelope[AdvancedOut])
async def advance(body: AdvanceIn, caller: SignedIn, units: UnitsOfWork, orders: Orders) -> Envelope[AdvancedOut]:
    """Answers when everything that fell due on the way is done, the mails included. No other clock moves."""
    row = await _known(units, body.subscription_id)
    if State(row.status) in BEFORE_READY:
        raise RuleBroken(
            Refusal.CONFLICT, f"A subscription that is {row.status} has no calendar yet.", {"status": row.status}
        )
    clock = SubscriptionClock(orders)
    by = timedelta(days=body.days) if body.days is not None else None
    if body.until is not None and body.until - await clock.now(row.id) > timedelta(days=FARTHEST_DAYS):
        raise invalid("until", f"At most {FARTHEST_DAYS} days at once.")
    async with CLOCKS.of(row.id):
        reached = await clock.advance(row.id, by=by, until=body.until)
    await _mailed(units, row)
    return ok(AdvancedOut(now=reached))


async def _known(units: Units, subscription_id: str) -> Subscription:
    """One's own subscription; an administrator's view has everybody's."""
    administrator = units.caller.is_administrator
    async with units.begin(as_administrator=administrator) as session:
        found = await subscriptions.subscription(
            session, subscription_id, None if administrator else units.caller.organization_id
        )
    if found is None:
        raise not_found("subscription")
    return found.subscription


async def _mailed(units: Units, row: Subscription) -> None:
    """Wait until the account's mails are out, but not for a mail server that is away."""
    deadline = time.monotonic() + MAILS_WITHIN_SECONDS
    while time.monotonic() < deadline:
        async with units.begin(as_administrator=units.caller.is_administrator) as session:
            if not await notice_reads.is_waiting(session, row.organization_id):
                return
        await asyncio.sleep(LOOK_AGAIN_SECONDS)
