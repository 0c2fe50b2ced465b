"""Stripe: cards on file, off-session charges, manual capture, refunds.

Errors are told apart by the library's types and by codes, never by their texts. The library does not retry: Temporal
does, with the same idempotency key.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from typing import Any, TypeVar

import httpx
import stripe
from stripe import HTTPXClient, PaymentIntent, StripeClient

from activities.gateways.base import (
    Capabilities,
    Card,
    ChargeRequest,
    Declined,
    RefundSeen,
    RefundStatus,
    Rejected,
    Unavailable,
)
from workflows.rules.gateway_amounts import from_gateway, to_gateway
from workflows.rules.money import Money
from workflows.rules.payment import PaymentStatus, Seen

NAME = "stripe"

CONNECT_SECONDS, READ_SECONDS = 3.0, 8.0

# Published minimum charges in minor units; where a currency is not listed, Stripe converts its minimum itself.
MINIMUM = {"USD": 50, "EUR": 50, "GBP": 30, "JPY": 50, "CAD": 50, "AUD": 50, "CHF": 50, "SGD": 50, "INR": 50}

STATUS = {
    "requires_payment_method": PaymentStatus.PENDING,
    "requires_confirmation": PaymentStatus.PENDING,
    "requires_action": PaymentStatus.PENDING,
    "processing": PaymentStatus.PENDING,
    "requires_capture": PaymentStatus.AUTHORIZED,
    "succeeded": PaymentStatus.SUCCEEDED,
    "canceled": PaymentStatus.CANCELLED,
}

REFUND_STATUS = {
    "succeeded": RefundStatus.SUCCEEDED,
    "pending": RefundStatus.PENDING,
    "requires_action": RefundStatus.PENDING,
    "failed": RefundStatus.FAILED,
    "canceled": RefundStatus.FAILED,
}

T = TypeVar("T")


class _Http(HTTPXClient):
    """The library's client hands form bodies to httpx in a deprecated way, and calls every exception a lost
    connection; here a body is content, and only httpx's own errors are about the connection."""

    async def request_async(
        self, method: str, url: str, headers: Mapping[str, str], post_data: str | None = None
    ) -> tuple[bytes, int, Mapping[str, str]]:
        try:
            answer = await self._client_async.request(
                method, url, headers=dict(headers), content=post_data or b"", timeout=self._timeout
            )
        except httpx.HTTPError as error:
            lost = stripe.APIConnectionError(type(error).__name__)  # type: ignore[no-untyped-call]  # untyped library
            raise lost from error
        return answer.content, answer.status_code, answer.headers


class StripeGateway:
    """Implements ``Gateway``. One object per process; its connections live as long as it."""

    name = NAME
    capabilities = Capabilities(
        saved_methods=True,
        off_session=True,
        authorization=True,
        refund=True,
        partial_refund=True,
        redirect=True,
        minimum=MINIMUM,
    )

    def __init__(
        self, *, api_key: str, base_url: str | None = None, return_url: str = "https://localhost/billing/return"
    ) -> None:
        """``return_url`` is where a customer comes back to after authenticating a payment."""
        timeout = httpx.Timeout(READ_SECONDS, connect=CONNECT_SECONDS)
        self._http = _Http(timeout=timeout)
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
        customer = await _call(
            self._client.v1.customers.create_async(
                {"metadata": {"berth_organization": organization_id}}, {"idempotency_key": key}
            )
        )
        return customer.id

    async def attach(self, token: str, customer: str, *, key: str) -> Card:
        method = await _call(
            self._client.v1.payment_methods.attach_async(token, {"customer": customer}, {"idempotency_key": key})
        )
        card = method.card
        if card is None:
            raise Rejected("not_a_card")
        return Card(
            reference=method.id,
            brand=card.brand,
            last4=card.last4 or "",
            exp_month=card.exp_month,
            exp_year=card.exp_year,
            fingerprint=card.fingerprint,
        )

    async def detach(self, reference: str) -> None:
        method = await _call(self._client.v1.payment_methods.retrieve_async(reference))
        if method.customer is not None:
            await _call(self._client.v1.payment_methods.detach_async(reference))

    async def charge(self, request: ChargeRequest) -> Seen:
        params: dict[str, Any] = {
            "amount": to_gateway(NAME, request.amount),
            "currency": request.amount.currency.lower(),
            "customer": request.customer,
            "confirm": True,
            "capture_method": "manual" if request.manual_capture else "automatic",
            "payment_method_types": ["card"],
            "metadata": {"berth_payment": request.payment_id, "berth_organization": request.organization_id},
        }
        if request.method is not None:
            params["payment_method"] = request.method
        if request.off_session:
            params["off_session"] = True
        else:
            params["return_url"] = self._return_url
        try:
            intent = await _call(
                self._client.v1.payment_intents.create_async(
                    params,  # type: ignore[arg-type]  # built step by step; the type wants a literal
                    {"idempotency_key": request.key},
                )
            )
        except _CardError as refused:
            return refused.seen(request.amount)
        return seen(intent)

    async def find(self, payment_id: str, customer: str) -> Seen | None:
        # Lists are consistent at once, Stripe's search is not.
        page = await _call(self._client.v1.payment_intents.list_async({"customer": customer, "limit": 100}))
        async for intent in page.auto_paging_iter():
            if getattr(intent.metadata, "berth_payment", None) == payment_id:
                return seen(intent)
        return None

    async def retrieve(self, reference: str) -> Seen:
        return seen(await _call(self._client.v1.payment_intents.retrieve_async(reference)))

    async def capture(self, reference: str, *, key: str) -> Seen:
        try:
            intent = await _call(self._client.v1.payment_intents.capture_async(reference, {}, {"idempotency_key": key}))
        except (Rejected, _CardError):
            # Captured before, expired, cancelled: what it is now is the answer.
            return await self.retrieve(reference)
        return seen(intent)

    async def cancel(self, reference: str, *, key: str) -> Seen:
        try:
            intent = await _call(
                self._client.v1.payment_intents.cancel_async(
                    reference, {"cancellation_reason": "abandoned"}, {"idempotency_key": key}
                )
            )
        except Rejected:
            return await self.retrieve(reference)
        return seen(intent)

    async def refund(self, reference: str, amount: Money, *, refund_id: str, key: str) -> RefundSeen:
        refund = await _call(
            self._client.v1.refunds.create_async(
                {
                    "payment_intent": reference,
                    "amount": to_gateway(NAME, amount),
                    "metadata": {"berth_refund": refund_id},
                },
                {"idempotency_key": key},
            )
        )
        return refund_seen(refund)

    async def retrieve_refund(self, reference: str) -> RefundSeen:
        return refund_seen(await _call(self._client.v1.refunds.retrieve_async(reference)))


def seen(intent: PaymentIntent) -> Seen:
    """Return what an intent says. One that lost its method after an attempt was refused by the issuer."""
    status = STATUS.get(intent.status, PaymentStatus.PENDING)
    error, decline_code, redirect_url = intent.last_payment_error, None, None
    if intent.status == "requires_payment_method" and error is not None:
        status, decline_code = PaymentStatus.FAILED, error.decline_code or error.code or "declined"
    if intent.status == "canceled" and error is not None:
        decline_code = error.decline_code or error.code
    if intent.status == "requires_action" and intent.next_action and intent.next_action.redirect_to_url:
        redirect_url = intent.next_action.redirect_to_url.url
    counted = intent.amount_received if status is PaymentStatus.SUCCEEDED else intent.amount
    return Seen(
        reference=intent.id,
        status=status,
        amount=from_gateway(NAME, counted, intent.currency),
        decline_code=decline_code,
        redirect_url=redirect_url,
    )


def refund_seen(refund: stripe.Refund) -> RefundSeen:
    status = REFUND_STATUS.get(refund.status or "pending", RefundStatus.PENDING)
    return RefundSeen(reference=refund.id, status=status, failure_code=getattr(refund, "failure_reason", None))


class _CardError(Declined):
    """A decline that may have left an intent behind."""

    def __init__(self, error: stripe.CardError) -> None:
        details = error.error
        super().__init__((details.decline_code if details else None) or error.code or "declined")
        intent = getattr(details, "payment_intent", None)
        self._reference: str | None = intent["id"] if intent is not None else None

    def seen(self, amount: Money) -> Seen:
        if self._reference is None:
            raise Rejected(self.decline_code)
        return Seen(
            reference=self._reference, status=PaymentStatus.FAILED, amount=amount, decline_code=self.decline_code
        )


async def _call(request: Awaitable[T]) -> T:
    try:
        return await request
    except stripe.CardError as error:
        raise _CardError(error) from error
    except stripe.InvalidRequestError as error:
        if error.code == "lock_timeout":
            raise Unavailable(error.code) from error
        raise Rejected(error.code or "invalid_request") from error
    except stripe.StripeError as error:
        # Connection, rate limit, a key that is in use or was used for something else, authentication and permission,
        # the gateway's own faults: none of them proves that nothing happened to an earlier try.
        raise Unavailable(type(error).__name__) from error
