"""Start of a billing period: what becomes of its invoice, for a renewal, a trial end and a resumption.

The funding decides what pays; this rule decides what that means for the invoice and the period. Callers match on
``PeriodDecision.outcome``.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from workflows.rules.funding import Funding, FundingPurpose
from workflows.rules.invoice import BillingReason


class PeriodKind(StrEnum):
    """Why a period starts. A renewal follows a paid or unpaid period; the other two start from a new anchor."""

    RENEWAL = "renewal"
    TRIAL_END = "trial_end"
    RESUMPTION = "resumption"


FUNDING_PURPOSES = {
    PeriodKind.RENEWAL: FundingPurpose.RENEWAL,
    PeriodKind.TRIAL_END: FundingPurpose.TRIAL_END,
    PeriodKind.RESUMPTION: FundingPurpose.RESUMPTION,
}


BILLING_REASONS = {
    PeriodKind.RENEWAL: BillingReason.RENEWAL,
    PeriodKind.TRIAL_END: BillingReason.TRIAL_END,
    PeriodKind.RESUMPTION: BillingReason.RESUMPTION,
}


class PeriodOutcome(StrEnum):
    """What becomes of the period's invoice.

    ``PAID``: finalized and paid in this transaction; the period starts.
    ``OPEN``: finalized and unpaid; the period starts. Renewals only: the service continues while the payment is tried,
        and the subscription is past due if nothing can pay.
    ``DRAFT``: no number; the period starts when the payment succeeds, and the draft is voided when it does not.
    ``REFUSED``: no invoice. A trial ends paused (scenario B16), a paused subscription stays paused.
    """

    PAID = "paid"
    OPEN = "open"
    DRAFT = "draft"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True, kw_only=True)
class PeriodDecision:
    """What the start of a period writes.

    Attributes:
        is_unpaid_now: Nothing can pay: neither now nor by a payment that is to be started.
    """

    outcome: PeriodOutcome
    is_unpaid_now: bool

    @property
    def starts_period(self) -> bool:
        """Return whether the period starts in this transaction."""
        return self.outcome in (PeriodOutcome.PAID, PeriodOutcome.OPEN)


def decide_period(kind: PeriodKind, funding: Funding) -> PeriodDecision:
    """Decide what the start of a period writes, from what can pay for it."""
    return PeriodDecision(outcome=_outcome(kind, funding), is_unpaid_now=not funding.is_sufficient)


def _outcome(kind: PeriodKind, funding: Funding) -> PeriodOutcome:
    if funding.is_settled_by_credit:
        return PeriodOutcome.PAID
    if kind is PeriodKind.RENEWAL:
        return PeriodOutcome.OPEN
    return PeriodOutcome.DRAFT if funding.is_sufficient else PeriodOutcome.REFUSED
