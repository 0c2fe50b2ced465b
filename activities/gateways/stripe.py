"""Stripe: cards on file, off-session charges, manual capture, refunds.

Errors are classified by the library's types and codes, never by their texts. The library does not retry: Temporal
does, with the same idempotency key.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from typing import Any, TypeVar

import httpx
import stripe
from stripe import HTTPXClient, PaymentIntent, StripeClient

from activities.gateways.protocol import (
    CardDeclined,
    ChargeRequest,
    GatewayCapabilities,
    GatewayRefund,
    GatewayRejected,
    GatewayUnavailable,
    SavedCard,
)
from workflows.rules.currencies import MINIMUM_CHARGE
from workflows.rules.gateway_amounts import from_gateway_amount, to_gateway_amount
from workflows.rules.money import Money
from workflows.rules.payment import GatewayPayment, PaymentStatus, RefundStatus
from workflows.rules.webhook_events import STRIPE_REFUND_STATUSES

GATEWAY_NAME = "stripe"

ENDED_FOR_PLATFORM = frozenset({"won", "warning_closed"})
"""Statuses of disputes that ended with the money at the platform. In any other, also one that Stripe adds later, the
bank has taken it back or may: an inquiry that is open becomes a dispute."""
CONNECT_SECONDS, READ_SECONDS = 3.0, 8.0

PAYMENT_STATUSES = {
    "requires_payment_method": PaymentStatus.PENDING,
    "requires_confirmation": PaymentStatus.PENDING,
    "requires_action": PaymentStatus.PENDING,
    "processing": PaymentStatus.PENDING,
    "requires_capture": PaymentStatus.AUTHORIZED,
    "succeeded": PaymentStatus.SUCCEEDED,
    "canceled": PaymentStatus.CANCELLED,
}

T = TypeVar("T")


class _HttpClient(HTTPXClient):
    """Sends form bodies as ``content``, and reports only the errors of httpx as ``APIConnectionError``.

    The library's client passes bodies to httpx in a deprecated way and reports every exception as a lost connection.
    """

    async def request_async(
        self, method: str, url: str, headers: Mapping[str, str], post_data: str | None = None
    ) -> tuple[bytes, int, Mapping[str, str]]:
        try:
            response = await self._client_async.request(
                method, url, headers=dict(headers), content=post_data or b"", timeout=self._timeout
            )
        except httpx.HTTPError as error:
            lost = stripe.APIConnectionError(type(error).__name__)  # type: ignore[no-untyped-call]  # untyped library
            raise lost from error
        return response.content, response.status_code, response.headers


class StripeGateway:
    """Stripe as a ``PaymentGateway``. One object per process; ``close`` ends its connections."""

    name = GATEWAY_NAME
    capabilities = GatewayCapabilities(
        saved_payment_methods=True,
        off_session=True,
        authorization=True,
        refund=True,
        minimum=MINIMUM_CHARGE,
    )

    def __init__(
        self, *, api_key: str, base_url: str | None = None, return_url: str = "https://localhost/billing/return"
    ) -> None:
        """Initialize.

        Args:
            return_url: Where the customer returns after authenticating a payment.
        """
        timeout = httpx.Timeout(READ_SECONDS, connect=CONNECT_SECONDS)
        self._http = _HttpClient(timeout=timeout)
        self._return_url = return_url
        self._client = StripeClient(
            api_key,
            base_addresses={"api": base_url} if base_url else None,
            http_client=self._http,
            max_network_retries=0,
        )

    async def close(self) -> None:
        await self._http.close_async()  # type: ignore[no-untyped-call]  # the library leaves it untyped

    async def create_customer(self, organization_id: str, *, key: str) -> str:
        customer = await _translate_errors(
            self._client.v1.customers.create_async(
                {"metadata": {"berth_organization": organization_id}}, {"idempotency_key": key}
            )
        )
        return customer.id

    async def attach_payment_method(self, token: str, customer: str, *, key: str) -> SavedCard:
        method = await _translate_errors(
            self._client.v1.payment_methods.attach_async(token, {"customer": customer}, {"idempotency_key": key})
        )
        card = optional(method, "card")
        if card is None:
            raise GatewayRejected("not_a_card")
        return SavedCard(
            reference=method.id,
            brand=optional(card, "brand") or "",
            last4=optional(card, "last4") or "",
            exp_month=optional(card, "exp_month"),
            exp_year=optional(card, "exp_year"),
            fingerprint=optional(card, "fingerprint"),
        )

    async def detach_payment_method(self, reference: str) -> None:
        try:
            method = await _translate_errors(self._client.v1.payment_methods.retrieve_async(reference))
            if optional(method, "customer") is not None:
                await _translate_errors(self._client.v1.payment_methods.detach_async(reference))
        except GatewayRejected as error:
            # Nothing is left to detach: its customer was deleted at Stripe, or the account is another one.
            if error.code != "resource_missing":
                raise

    async def charge(self, request: ChargeRequest) -> GatewayPayment:
        params: dict[str, Any] = {
            "amount": to_gateway_amount(GATEWAY_NAME, request.amount),
            "currency": request.amount.currency.lower(),
            "customer": request.customer,
            "confirm": True,
            "capture_method": "manual" if request.manual_capture else "automatic",
            "payment_method_types": ["card"],
            "metadata": {"berth_payment": request.payment_id, "berth_organization": request.organization_id},
        }
        if request.payment_method is not None:
            params["payment_method"] = request.payment_method
        if request.off_session:
            params["off_session"] = True
        else:
            params["return_url"] = self._return_url
        try:
            intent = await _translate_errors(
                self._client.v1.payment_intents.create_async(
                    params,  # type: ignore[arg-type]  # built step by step; the type wants a literal
                    {"idempotency_key": request.idempotency_key},
                )
            )
        except _CardError as refused:
            return refused.to_gateway_payment(request.amount)
        return to_gateway_payment(intent)

    async def find_charge(self, payment_id: str, customer: str) -> GatewayPayment | None:
        # Lists are consistent at once, Stripe's search is not.
        page = await _translate_errors(self._client.v1.payment_intents.list_async({"customer": customer, "limit": 100}))
        async for intent in page.auto_paging_iter():
            if optional(intent, "metadata", "berth_payment") == payment_id:
                return to_gateway_payment(intent)
        return None

    async def retrieve_charge(self, reference: str) -> GatewayPayment:
        return to_gateway_payment(await _translate_errors(self._client.v1.payment_intents.retrieve_async(reference)))

    async def capture(self, reference: str, *, key: str) -> GatewayPayment:
        try:
            intent = await _translate_errors(
                self._client.v1.payment_intents.capture_async(reference, {}, {"idempotency_key": key})
            )
        except (GatewayRejected, _CardError):
            # Already captured, expired or cancelled: return its current state.
            return await self.retrieve_charge(reference)
        return to_gateway_payment(intent)

    async def cancel_charge(self, reference: str, *, key: str) -> GatewayPayment:
        try:
            intent = await _translate_errors(
                self._client.v1.payment_intents.cancel_async(
                    reference, {"cancellation_reason": "abandoned"}, {"idempotency_key": key}
                )
            )
        except GatewayRejected:
            return await self.retrieve_charge(reference)
        return to_gateway_payment(intent)

    async def is_disputed(self, reference: str) -> bool:
        page = await _translate_errors(self._client.v1.disputes.list_async({"payment_intent": reference, "limit": 100}))
        async for dispute in page.auto_paging_iter():
            if may_take_money_back(dispute.status):
                return True
        return False

    async def refund(self, reference: str, amount: Money, *, refund_id: str, key: str) -> GatewayRefund:
        refund = await _translate_errors(
            self._client.v1.refunds.create_async(
                {
                    "payment_intent": reference,
                    "amount": to_gateway_amount(GATEWAY_NAME, amount),
                    "metadata": {"berth_refund": refund_id},
                },
                {"idempotency_key": key},
            )
        )
        return to_gateway_refund(refund)

    async def find_refund(self, reference: str, refund_id: str) -> GatewayRefund | None:
        page = await _translate_errors(self._client.v1.refunds.list_async({"payment_intent": reference, "limit": 100}))
        async for refund in page.auto_paging_iter():
            if optional(refund, "metadata", "berth_refund") == refund_id:
                return to_gateway_refund(refund)
        return None

    async def retrieve_refund(self, reference: str) -> GatewayRefund:
        return to_gateway_refund(await _translate_errors(self._client.v1.refunds.retrieve_async(reference)))


def may_take_money_back(dispute_status: str) -> bool:
    """Return whether the customer has, or may get, the money of a charge by a dispute with this status."""
    return dispute_status not in ENDED_FOR_PLATFORM


def to_gateway_payment(intent: PaymentIntent) -> GatewayPayment:
    """Return the payment of an intent. An intent without a method after an attempt was declined by the issuer."""
    status = PAYMENT_STATUSES.get(intent.status, PaymentStatus.PENDING)
    error, redirect_url = optional(intent, "last_payment_error"), None
    decline_code = optional(error, "decline_code") or optional(error, "code")
    if intent.status == "requires_payment_method" and error is not None:
        status, decline_code = PaymentStatus.FAILED, decline_code or "declined"
    elif intent.status != "canceled":
        decline_code = None
    if intent.status == "requires_action":
        redirect_url = optional(intent, "next_action", "redirect_to_url", "url")
    received = optional(intent, "amount_received") if status is PaymentStatus.SUCCEEDED else None
    amount = intent.amount if received is None else received
    return GatewayPayment(
        reference=intent.id,
        status=status,
        amount=from_gateway_amount(GATEWAY_NAME, amount, intent.currency),
        decline_code=decline_code,
        redirect_url=redirect_url,
    )


def to_gateway_refund(refund: stripe.Refund) -> GatewayRefund:
    reported = optional(refund, "status") or "pending"
    status = STRIPE_REFUND_STATUSES.get(reported, RefundStatus.PENDING)
    failure_code = optional(refund, "failure_reason") or (reported if reported == "canceled" else None)
    return GatewayRefund(reference=refund.id, status=status, failure_code=failure_code)


def optional(resource: object, *path: str) -> Any:
    """Return the field at ``path``; None if it, or an object on the way to it, is absent.

    The library raises AttributeError for a field that the response does not contain.
    """
    value: Any = resource
    for name in path:
        value = getattr(value, name, None)
    return value


class _CardError(CardDeclined):
    """A decline that may have left an intent behind."""

    def __init__(self, error: stripe.CardError) -> None:
        super().__init__(optional(error, "error", "decline_code") or error.code or "declined")
        self._reference: str | None = optional(error, "error", "payment_intent", "id")

    def to_gateway_payment(self, amount: Money) -> GatewayPayment:
        if self._reference is None:
            raise GatewayRejected(self.decline_code)
        return GatewayPayment(
            reference=self._reference, status=PaymentStatus.FAILED, amount=amount, decline_code=self.decline_code
        )


async def _translate_errors(request: Awaitable[T]) -> T:
    try:
        return await request
    except stripe.CardError as error:
        raise _CardError(error) from error
    except stripe.InvalidRequestError as error:
        if error.code == "lock_timeout":
            raise GatewayUnavailable(error.code) from error
        raise GatewayRejected(error.code or "invalid_request") from error
    except stripe.StripeError as error:
        # Connection, rate limit, an idempotency key that is in use or belongs to another request, authentication,
        # permission, a fault of Stripe: none of them proves that an earlier attempt had no effect.
        raise GatewayUnavailable(type(error).__name__) from error
