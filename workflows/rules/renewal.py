"""Start of a billing period: what becomes of its invoice, for a renewal, a trial end and a resumption.

The funding decides what pays; this rule decides what that means for the invoice and the period. Callers match on
``PeriodDecision.outcome``.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import assert_never

from workflows.rules.funding import Funding, FundingPart, FundingPurpose
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
    ``OPEN``: finalized and unpaid; the period starts. Renewals only: the service continues while the payment is tried.
    ``DRAFT``: no number; the period starts when the payment succeeds, and the draft is voided when it does not.
    ``REFUSED``: no invoice. A trial ends paused (scenario B16), a paused subscription stays paused.
    """

    PAID = "paid"
    OPEN = "open"
    DRAFT = "draft"
    REFUSED = "refused"


class UnpaidEffect(StrEnum):
    """What happens to the subscription when nothing can pay, now or after the payment fails."""

    PAST_DUE = "past_due"
    PAUSE = "pause"
    STAY_PAUSED = "stay_paused"


@dataclass(frozen=True, slots=True, kw_only=True)
class PeriodDecision:
    """What the start of a period writes.

    Attributes:
        funding: What pays.
        unpaid_effect: Applies at once when ``outcome`` has no ``payment`` and is not ``PAID``, otherwise when every
            payment method was declined.
    """

    kind: PeriodKind
    outcome: PeriodOutcome
    funding: Funding
    unpaid_effect: UnpaidEffect

    @property
    def payment(self) -> FundingPart | None:
        """Return the payment to start, None when there is none."""
        return self.funding.payment

    @property
    def starts_period(self) -> bool:
        """Return whether the period starts in this transaction."""
        return self.outcome in (PeriodOutcome.PAID, PeriodOutcome.OPEN)

    @property
    def is_unpaid_now(self) -> bool:
        """Return whether ``unpaid_effect`` applies in this transaction."""
        return self.outcome is not PeriodOutcome.PAID and self.payment is None


def decide_period(kind: PeriodKind, funding: Funding) -> PeriodDecision:
    """Decide what the start of a period writes, from what can pay for it."""
    return PeriodDecision(
        kind=kind, outcome=_outcome(kind, funding), funding=funding, unpaid_effect=unpaid_effect(kind)
    )


def unpaid_effect(kind: PeriodKind) -> UnpaidEffect:
    """Return what happens when a period of this kind cannot be paid."""
    match kind:
        case PeriodKind.RENEWAL:
            return UnpaidEffect.PAST_DUE
        case PeriodKind.TRIAL_END:
            return UnpaidEffect.PAUSE
        case PeriodKind.RESUMPTION:
            return UnpaidEffect.STAY_PAUSED
        case _:
            assert_never(kind)


def _outcome(kind: PeriodKind, funding: Funding) -> PeriodOutcome:
    if funding.is_complete_without_payment:
        return PeriodOutcome.PAID
    if kind is PeriodKind.RENEWAL:
        return PeriodOutcome.OPEN
    return PeriodOutcome.DRAFT if funding.is_sufficient else PeriodOutcome.REFUSED
