"""Splits an amount due, and earlier debt of the organization, over credit and the saved card."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from db.queries.invoices import OpenDebt
from db.queries.locked_subscriptions import AvailableFunds, LockedSubscription
from workflows.ports.subscription import CardCharge
from workflows.rules.allocations import AllocationSource
from workflows.rules.funding import (
    AvailableFunding,
    CollectionMethod,
    Funding,
    FundingPurpose,
    GatewayTerms,
    PaymentMethodReference,
    SavedPaymentMethod,
    decide_funding_with_debt,
)
from workflows.rules.money import Money, zero_money


@dataclass(frozen=True, slots=True, kw_only=True)
class InvoiceFunding:
    """How an invoice's amount due is paid, and what that changes of the organization's debt.

    The rule's ``Funding`` pays one amount, which may include earlier debt. Here the debt is separate: ``promotional +
    wallet + card + carried`` equals the amount due plus ``repaid``. Where there is a ``shortfall``, nothing can be
    collected and the other amounts are zero.

    Attributes:
        card: What a card has to pay.
        shortfall: What neither credit nor a card covers.
        carried: What becomes debt of the organization because it is below the gateway's minimum.
        repaid: Earlier debt of the organization that is paid as well.
        payment_methods: The methods that can pay ``card``, in charging order.
        decision: What the funding rule decided.
    """

    promotional: Money
    wallet: Money
    card: Money
    shortfall: Money
    carried: Money
    repaid: Money
    payment_methods: tuple[PaymentMethodReference, ...]
    decision: Funding

    @property
    def is_settled_by_credit(self) -> bool:
        """Return whether credit (and carried debt) settles the amount in the same transaction."""
        return self.decision.is_settled_by_credit


def split_funding(
    due: Money,
    funds: AvailableFunds,
    *,
    method: CollectionMethod,
    purpose: FundingPurpose,
    gateways: Mapping[str, GatewayTerms],
) -> InvoiceFunding:
    """Split ``due``, and the organization's debt where the rule includes it, over credit and the saved cards.

    Args:
        gateways: Terms by name. A card of another gateway is not charged.
    """
    zero = zero_money(due.currency)
    on_file = {saved.payment_method_id: saved for saved in funds.payment_methods}
    available = AvailableFunding(
        promotional=funds.promotional,
        wallet=funds.wallet,
        payment_methods=tuple(
            SavedPaymentMethod(payment_method_id=saved.payment_method_id, gateway=gateways[saved.gateway])
            for saved in funds.payment_methods
            if saved.gateway in gateways
        ),
    )
    funding = decide_funding_with_debt(due, funds.debt, available, purpose=purpose, method=method)
    debt = funding.total - due if funding.is_sufficient else zero
    owed = funding.amount_from(AllocationSource.DEBT) - debt
    return InvoiceFunding(
        promotional=funding.amount_from(AllocationSource.PROMOTIONAL),
        wallet=funding.amount_from(AllocationSource.WALLET),
        card=funding.amount_from(AllocationSource.PAYMENT),
        shortfall=funding.shortfall,
        carried=max(owed, zero),
        repaid=max(-owed, zero),
        payment_methods=tuple(on_file[payment_method_id] for payment_method_id in funding.payment_method_ids),
        decision=funding,
    )


def split_funding_for(
    subscription: LockedSubscription, due: Money, purpose: FundingPurpose, gateways: Mapping[str, GatewayTerms]
) -> InvoiceFunding:
    """Split ``due`` by the collection method of the subscription."""
    return split_funding(
        due, subscription.funds, method=subscription.collection_method, purpose=purpose, gateways=gateways
    )


def without_payment_methods(subscription: LockedSubscription, excluded: Collection[str]) -> LockedSubscription:
    """Return the subscription without the payment methods that have these ids."""
    remaining = tuple(saved for saved in subscription.funds.payment_methods if saved.payment_method_id not in excluded)
    return replace(subscription, funds=replace(subscription.funds, payment_methods=remaining))


def reserve_older_debts(
    subscription: LockedSubscription, debts: Sequence[OpenDebt], gateways: Mapping[str, GatewayTerms]
) -> LockedSubscription:
    """Return the subscription without the credit that pays older debts of the organization in full.

    Credit thereby pays the oldest debt first, in whichever order the subscriptions receive their signals. A debt that
    credit does not cover reserves none: the card that would have to pay the rest may be declined. Carried debt that
    reserved credit repays is left out as well: a card of this subscription must not be charged for it.

    Args:
        debts: Oldest first.
    """
    funds = replace(subscription.funds, payment_methods=())
    for debt in debts:
        funding = split_funding(
            debt.amount_due,
            funds,
            method=debt.collection_method,
            purpose=FundingPurpose.DUNNING,
            gateways=gateways,
        )
        funds = replace(
            funds,
            promotional=funds.promotional - funding.promotional,
            wallet=funds.wallet - funding.wallet,
            debt=funds.debt - funding.repaid,
        )
    remaining = replace(funds, payment_methods=subscription.funds.payment_methods)
    return replace(subscription, funds=remaining)


def card_charge_for(funding: InvoiceFunding) -> CardCharge | None:
    """Return the card charge; None if credit covers everything, or if no card can be charged."""
    if not funding.card:
        return None
    return CardCharge(amount=funding.card, payment_methods=funding.payment_methods)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceivedAmounts:
    """Money that a card payment and its hold brought for an invoice.

    Attributes:
        held: The whole amount.
        repaid: The part that pays earlier debt of the organization.
        surplus: The part for the wallet, because another invoice has paid that debt meanwhile.
    """

    held: Money
    repaid: Money
    surplus: Money


def split_received(subscription: LockedSubscription, due: Money, held: Money) -> ReceivedAmounts:
    """Split what a card payment and its hold brought for an invoice of which ``due`` is unpaid."""
    excess = held - due
    repaid = max(min(excess, subscription.funds.debt), zero_money(subscription.currency))
    return ReceivedAmounts(held=held, repaid=repaid, surplus=excess - repaid)
