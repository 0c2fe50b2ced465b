"""Stripe's published test cards: the `pm_card_…` tokens, what they look like and how they behave."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

_MESSAGES = {
    "insufficient_funds": "Your card has insufficient funds.",
    "expired_card": "Your card has expired.",
    "incorrect_cvc": "Your card's security code is incorrect.",
    "processing_error": "An error occurred while processing your card. Try again in a little bit.",
    "authentication_required": "Your card was declined. This transaction requires authentication.",
}
CODES_EQUAL_TO_DECLINE_CODE = frozenset(
    {"expired_card", "incorrect_cvc", "processing_error", "authentication_required"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TestCard:
    """`declines` is the issuer's decline code when charged, None when it pays; `attaches` whether it can be saved."""

    brand: str = "visa"
    last4: str = "4242"
    decline_code: str | None = None
    can_attach: bool = True
    requires_authentication: bool = False
    dispute_reason: str | None = None
    refund_status: str = "succeeded"


def _declined(last4: str, code: str) -> TestCard:
    # Stripe checks a card with its issuer when it is saved, so only the "decline after attaching" card can be.
    return TestCard(last4=last4, decline_code=code, can_attach=False)


_GENERIC = _declined("0002", "generic_decline")
_FUNDS = _declined("9995", "insufficient_funds")
_LOST = _declined("9987", "lost_card")
_STOLEN = _declined("9979", "stolen_card")
_EXPIRED = _declined("0069", "expired_card")
_CVC = _declined("0127", "incorrect_cvc")
_PROCESSING = _declined("0119", "processing_error")
_FRAUDULENT = _declined("0019", "fraudulent")

TOKENS: Mapping[str, TestCard] = MappingProxyType(
    {
        "pm_card_visa": TestCard(),
        "pm_card_visa_debit": TestCard(last4="5556"),
        "pm_card_mastercard": TestCard(brand="mastercard", last4="4444"),
        "pm_card_mastercard_debit": TestCard(brand="mastercard", last4="3222"),
        "pm_card_amex": TestCard(brand="amex", last4="8431"),
        "pm_card_discover": TestCard(brand="discover", last4="1117"),
        "pm_card_diners": TestCard(brand="diners", last4="0004"),
        "pm_card_jcb": TestCard(brand="jcb", last4="0505"),
        "pm_card_unionpay": TestCard(brand="unionpay", last4="0005"),
        "pm_card_visa_chargeDeclined": _GENERIC,
        "pm_card_chargeDeclined": _GENERIC,
        "pm_card_visa_chargeDeclinedInsufficientFunds": _FUNDS,
        "pm_card_chargeDeclinedInsufficientFunds": _FUNDS,
        "pm_card_visa_chargeDeclinedLostCard": _LOST,
        "pm_card_chargeDeclinedLostCard": _LOST,
        "pm_card_visa_chargeDeclinedStolenCard": _STOLEN,
        "pm_card_chargeDeclinedStolenCard": _STOLEN,
        "pm_card_chargeDeclinedExpiredCard": _EXPIRED,
        "pm_card_chargeDeclinedIncorrectCvc": _CVC,
        "pm_card_chargeDeclinedProcessingError": _PROCESSING,
        "pm_card_chargeDeclinedFraudulent": _FRAUDULENT,
        "pm_card_chargeCustomerFail": TestCard(last4="0341", decline_code="generic_decline"),
        "pm_card_visa_chargeCustomerFail": TestCard(last4="0341", decline_code="generic_decline"),
        "pm_card_threeDSecure2Required": TestCard(last4="3220", requires_authentication=True),
        "pm_card_threeDSecureRequired": TestCard(last4="3063", requires_authentication=True),
        "pm_card_authenticationRequired": TestCard(last4="3184", requires_authentication=True),
        "pm_card_createDispute": TestCard(last4="0259", dispute_reason="fraudulent"),
        "pm_card_createDisputeProductNotReceived": TestCard(last4="2685", dispute_reason="product_not_received"),
        "pm_card_refundFail": TestCard(last4="5126", refund_status="failed"),
        "pm_card_pendingRefund": TestCard(last4="7726", refund_status="pending"),
    }
)


def card_error(declines: str) -> dict[str, str]:
    """The public half of a card error: `code`, `decline_code` and the message shown to the card holder."""
    code = declines if declines in CODES_EQUAL_TO_DECLINE_CODE else "card_declined"
    return {
        "code": code,
        "decline_code": declines,
        "message": _MESSAGES.get(declines, "Your card was declined."),
    }
