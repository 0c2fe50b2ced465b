"""Funding: which parts of an amount due promotional credit, the wallet and a saved payment method pay.

The only rule of its kind: orders, renewals, trial ends, resumptions, plan changes and dunning use it. An amount is
never refused because it is below a gateway's minimum: credit gives way so that the payment method takes its minimum,
and an amount that no payment method can take is carried as debt (scenario B13), which a later payment repays.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from workflows.rules.allocations import AllocationSource
from workflows.rules.money import Money, sum_money


class CollectionMethod(StrEnum):
    """How a subscription is paid. ``collection`` in the order; absent means ``WALLET_THEN_CARD``.

    ``WALLET``: promotional credit and wallet only. ``CARD``: a saved payment method first, credit for what none takes.
    ``WALLET_THEN_CARD``: credit first, a saved payment method for the rest.
    """

    WALLET = "wallet"
    CARD = "card"
    WALLET_THEN_CARD = "wallet_then_card"


class FundingPurpose(StrEnum):
    ORDER = "order"
    RENEWAL = "renewal"
    TRIAL_END = "trial_end"
    RESUMPTION = "resumption"
    PLAN_CHANGE = "plan_change"
    DUNNING = "dunning"
    FINAL_COLLECTION = "final_collection"


DUNNING_PURPOSES = frozenset({FundingPurpose.DUNNING, FundingPurpose.FINAL_COLLECTION})
"""In dunning any credit pays, also where the collection method is ``card`` (contract.md: a top-up collects at once)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayTerms:
    """What a gateway can do with a saved payment method.

    Attributes:
        currencies: Supported currencies; empty means all.
        minimum_minor: Smallest charge per currency, in minor units; absent means 1.
        off_session: Charges without the customer being present.
        authorization: Authorizes now and captures later.
    """

    name: str
    currencies: frozenset[str] = frozenset()
    minimum_minor: Mapping[str, int] = field(default_factory=dict)
    off_session: bool = True
    authorization: bool = True

    def minimum(self, currency: str) -> Money:
        return Money(amount_minor=max(self.minimum_minor.get(currency, 1), 1), currency=currency)

    def supports(self, currency: str, purpose: FundingPurpose) -> bool:
        """Return whether the gateway can charge a saved method for this purpose. An order needs an authorization."""
        has_currency = not self.currencies or currency in self.currencies
        return has_currency and self.off_session and (self.authorization or purpose is not FundingPurpose.ORDER)


@dataclass(frozen=True, slots=True, kw_only=True)
class PaymentMethodReference:
    """A saved payment method, and the name of the gateway that charges it."""

    payment_method_id: str
    gateway: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedPaymentMethod:
    payment_method_id: str
    gateway: GatewayTerms


@dataclass(frozen=True, slots=True, kw_only=True)
class AvailableFunding:
    """What an organization can pay with.

    Attributes:
        promotional: Spendable promotional credit, zero or positive.
        wallet: Spendable wallet balance, zero or positive.
        payment_methods: In charging order: the default, then the backups. Methods that must not be charged again
            (hard decline) are left out by the caller.
    """

    promotional: Money
    wallet: Money
    payment_methods: tuple[SavedPaymentMethod, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class FundingPart:
    """One source and what it pays; ``payment_method_id`` exactly for the source ``payment``."""

    source: AllocationSource
    amount: Money
    payment_method_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Funding:
    """How an amount is paid.

    Attributes:
        parts: Positive amounts in payment order: promotional, wallet, payment, debt. They sum to the amount due when
            the funding is sufficient; otherwise there are none, since nothing is collected in part.
        backup_payment_method_ids: Methods that can take the same payment part, to try in this order after a decline.
        shortfall: What is missing; zero when the funding is sufficient.
    """

    parts: tuple[FundingPart, ...]
    shortfall: Money
    backup_payment_method_ids: tuple[str, ...] = ()

    @property
    def is_sufficient(self) -> bool:
        return not self.shortfall

    @property
    def is_settled_by_credit(self) -> bool:
        """Return whether credit (and carried debt) settles the amount in the same transaction."""
        return self.is_sufficient and self.payment is None

    @property
    def payment(self) -> FundingPart | None:
        """Return the part that a payment method is charged for."""
        return next((part for part in self.parts if part.source is AllocationSource.PAYMENT), None)

    @property
    def payment_method_ids(self) -> tuple[str, ...]:
        """Return the methods that can take the payment part, in charging order."""
        if self.payment is None or self.payment.payment_method_id is None:
            return ()
        return self.payment.payment_method_id, *self.backup_payment_method_ids

    @property
    def total(self) -> Money:
        """Return the sum of the parts; zero when the funding is not sufficient."""
        return sum_money((part.amount for part in self.parts), self.shortfall.currency)

    def amount_from(self, source: AllocationSource) -> Money:
        """Return what ``source`` pays, zero when it pays nothing."""
        amounts = [part.amount for part in self.parts if part.source is source]
        return amounts[0] if amounts else Money(amount_minor=0, currency=self.shortfall.currency)


def decide_funding(
    amount_due: Money, available: AvailableFunding, *, purpose: FundingPurpose, method: CollectionMethod
) -> Funding:
    """Decide which sources pay ``amount_due``.

    Args:
        amount_due: Zero or positive.

    Raises:
        RuleViolation: ``CURRENCY_MISMATCH``.
        ValueError: ``amount_due`` is negative.
    """
    if amount_due.amount_minor < 0:
        raise ValueError("an amount due is zero or positive")
    # Money of two currencies must raise here: `min` below would compare their codes.
    zero = _zero_of(amount_due, available.promotional, available.wallet)
    promotional = min(amount_due, available.promotional)
    wallet = min(amount_due - promotional, available.wallet)
    beyond_credit = amount_due - promotional - wallet
    usable = _usable(available, amount_due.currency, purpose, method)
    card_first = method is CollectionMethod.CARD and purpose not in DUNNING_PURPOSES
    charged = amount_due if card_first else beyond_credit
    if charged:
        for position, saved in enumerate(usable):
            payment = max(charged, saved.gateway.minimum(amount_due.currency))
            if payment <= amount_due:
                credit = amount_due - payment
                # The wallet gives way first: promotional credit may expire, wallet money does not.
                from_promotional = min(credit, promotional)
                return _sufficient(from_promotional, credit - from_promotional, payment, zero, usable[position:])
    if not beyond_credit:
        return _sufficient(promotional, wallet, zero, zero, ())
    if usable:
        # Smaller than the minimum of every usable method, or one of them would have taken it.
        return _sufficient(promotional, wallet, zero, beyond_credit, ())
    return Funding(parts=(), shortfall=beyond_credit)


def decide_funding_with_debt(
    amount_due: Money,
    debt: Money,
    available: AvailableFunding,
    *,
    purpose: FundingPurpose,
    method: CollectionMethod,
) -> Funding:
    """Decide which sources pay ``amount_due``, and ``debt`` as well where it costs no charge that is not needed anyway.

    Where credit covers the amount due, the debt is repaid only if credit covers it too: a few cents of debt must not
    make a card charge, which may be declined, the condition of an invoice that credit pays. Where a card has to pay,
    or would if the amount reached its gateway's minimum, it is charged for the debt as well.

    Args:
        amount_due: Zero or positive.
        debt: What the organization owes from earlier invoices, zero or positive.

    Returns:
        The funding of ``amount_due``, or of the sum of both.

    Raises:
        RuleViolation: ``CURRENCY_MISMATCH``.
    """
    alone = decide_funding(amount_due, available, purpose=purpose, method=method)
    if not debt or not alone.is_sufficient:
        return alone
    together = decide_funding(amount_due + debt, available, purpose=purpose, method=method)
    credit_pays_due = alone.payment is None and not alone.amount_from(AllocationSource.DEBT)
    return alone if credit_pays_due and not together.is_settled_by_credit else together


def _zero_of(amount: Money, *others: Money) -> Money:
    """Return zero in the currency of ``amount``.

    Raises:
        RuleViolation: ``CURRENCY_MISMATCH`` when another amount has another currency.
    """
    for other in others:
        amount += other
    return amount - amount


def _usable(
    available: AvailableFunding, currency: str, purpose: FundingPurpose, method: CollectionMethod
) -> tuple[SavedPaymentMethod, ...]:
    if method is CollectionMethod.WALLET:
        return ()
    return tuple(saved for saved in available.payment_methods if saved.gateway.supports(currency, purpose))


def _sufficient(
    promotional: Money, wallet: Money, payment: Money, debt: Money, methods: tuple[SavedPaymentMethod, ...]
) -> Funding:
    parts = (
        FundingPart(source=AllocationSource.PROMOTIONAL, amount=promotional),
        FundingPart(source=AllocationSource.WALLET, amount=wallet),
        FundingPart(
            source=AllocationSource.PAYMENT,
            amount=payment,
            payment_method_id=methods[0].payment_method_id if methods else None,
        ),
        FundingPart(source=AllocationSource.DEBT, amount=debt),
    )
    backups = tuple(
        saved.payment_method_id for saved in methods[1:] if saved.gateway.minimum(payment.currency) <= payment
    )
    return Funding(
        parts=tuple(part for part in parts if part.amount),
        shortfall=Money(amount_minor=0, currency=payment.currency),
        backup_payment_method_ids=backups,
    )
