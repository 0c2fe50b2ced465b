"""The sandbox's clock: move one subscription through its months. Exists in the sandbox only."""

from __future__ import annotations

import asyncio
import time
from datetime import timedelta

from pydantic import AwareDatetime, Field, model_validator

from api.dependencies.authentication import AuthenticatedCaller
from api.dependencies.context import Workflows
from api.dependencies.transactions import CallerTransactions, Transactions
from api.errors import AUTHENTICATED_RESPONSES, not_found_error, validation_error
from api.locks import CLOCK_LOCKS
from api.response_envelope import Envelope, Instant, JsonResponse, RequestModel, ResponseModel, success
from api.router_factory import api_router
from db.queries import notification_reads, subscriptions
from db.queries.subscriptions import SubscriptionDetails
from db.reads import SessionReader
from workflows.rules.errors import ErrorCode, RuleViolation
from workflows.rules.subscription import PRE_READY_STATUSES, SubscriptionStatus
from workflows.subscription.test_clock import SubscriptionClock

PATH = "/sandbox/clock/advance"
TIMEOUT_SECONDS = 600.0
"""Two years of renewals, each with its payment and mails, take their time."""

MAIL_WAIT_SECONDS = 10.0
POLL_INTERVAL_SECONDS = 0.1
MAX_ADVANCE_DAYS = 3660

router = api_router("sandbox", responses=AUTHENTICATED_RESPONSES)


class AdvanceIn(RequestModel):
    """``days`` from the subscription's own now, or ``until`` an instant; exactly one of them."""

    subscription_id: str = Field(min_length=1, max_length=100)
    days: float | None = Field(default=None, ge=0, le=MAX_ADVANCE_DAYS, examples=[31])
    until: AwareDatetime | None = None

    @model_validator(mode="after")
    def _require_exactly_one(self) -> AdvanceIn:
        if (self.days is None) == (self.until is None):
            raise ValueError("Send exactly one of `days` and `until`.")
        return self


class AdvancedOut(ResponseModel):
    now: Instant


@router.post(PATH, response_model=Envelope[AdvancedOut])
async def advance(body: AdvanceIn, caller: AuthenticatedCaller, units: Transactions, orders: Workflows) -> JsonResponse:
    """Answers when everything that fell due on the way is done, the mails included. No other clock moves."""
    row = await _load_subscription(units, body.subscription_id)
    if SubscriptionStatus(row.status) in PRE_READY_STATUSES:
        raise RuleViolation(
            ErrorCode.CONFLICT, f"A subscription that is {row.status} has no calendar yet.", {"status": row.status}
        )
    clock = SubscriptionClock(orders)
    by = timedelta(days=body.days) if body.days is not None else None
    if body.until is not None and body.until - await clock.now(row.id) > timedelta(days=MAX_ADVANCE_DAYS):
        raise validation_error("until", f"The clock advances by at most {MAX_ADVANCE_DAYS} days per call.")
    async with CLOCK_LOCKS.hold(row.id):
        reached = await clock.advance(row.id, by=by, until=body.until)
    await _wait_for_mails(units, row)
    return success(AdvancedOut(now=reached))


async def _load_subscription(units: CallerTransactions, subscription_id: str) -> SubscriptionDetails:
    """Return the caller's subscription; an administrator may advance the clock of any."""
    administrator = units.caller.is_administrator
    async with units.open(as_administrator=administrator) as session:
        subscription = await subscriptions.get_subscription(
            SessionReader(session), subscription_id, None if administrator else units.caller.organization_id
        )
    if subscription is None:
        raise not_found_error("subscription")
    return subscription


async def _wait_for_mails(units: CallerTransactions, row: SubscriptionDetails) -> None:
    """Wait at most ``MAIL_WAIT_SECONDS`` until the mails are sent: the mail server may be unavailable."""
    deadline = time.monotonic() + MAIL_WAIT_SECONDS
    while time.monotonic() < deadline:
        async with units.open(as_administrator=units.caller.is_administrator) as session:
            if not await notification_reads.has_pending_notification(session, row.organization_id):
                return
        await asyncio.sleep(POLL_INTERVAL_SECONDS)
