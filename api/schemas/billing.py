"""Money, as the API shows it: wallet, transactions, payments, cards, invoices."""

from __future__ import annotations

from typing import Any

from pydantic import Field
from typing_extensions import TypedDict

from api.response_envelope import Amount, Instant, RequestModel, ResponseModel
from api.schemas.currencies import CurrencyField
from api.schemas.subscriptions import PeriodOut
from db.models.payments import PaymentMethod
from db.queries.billing_reads import TransactionDetails
from db.queries.invoice_reads import InvoiceDetails, InvoiceLineDetails, InvoiceWithPayments
from db.queries.payment_reads import PaymentDetails
from workflows.rules.currencies import MAX_AMOUNT_MINOR
from workflows.rules.invoice import BillingReason, covered_amounts


class TopUpIn(RequestModel):
    """``payment_method`` is the id of a card on file, or a token of the gateway's own; absent: the default card."""

    amount_minor: int = Field(gt=0, le=MAX_AMOUNT_MINOR, strict=True, examples=[5000])
    currency: CurrencyField
    gateway: str = Field(max_length=50, examples=["stripe"])
    payment_method: str | None = Field(default=None, min_length=1, max_length=255, examples=["pm_card_visa"])


class PaymentMethodIn(RequestModel):
    """``token`` is the gateway's own name of the card: card data never reaches us. The first card is the default."""

    gateway: str = Field(max_length=50, examples=["stripe"])
    token: str = Field(min_length=1, max_length=255, examples=["pm_card_visa"])
    default: bool = False


class WalletOut(TypedDict):
    """By currency. ``balances`` can be spent, ``held`` is set aside for orders and open invoices."""

    balances: list[Amount]
    held: list[Amount]


class TransactionOut(TypedDict):
    """Signed: what it added to balances and held; ``balance_after`` is their sum in its currency after it."""

    id: str
    kind: str
    amount: Amount
    balance_after: Amount
    at: Instant
    ref: str | None
    description: str


class PaymentOut(ResponseModel):
    """``redirect_url`` is where the customer confirms it, as long as it is pending there."""

    id: str
    status: str
    amount: Amount
    gateway: str
    purpose: str
    refunded: Amount
    redirect_url: str | None
    decline_code: str | None
    payment_method_id: str | None
    subscription_id: str | None
    invoice_id: str | None
    created_at: Instant | None
    workflow_id: str


class PaymentMethodOut(ResponseModel):
    """``expires`` is ``MM/YYYY``, null where the gateway does not state it."""

    id: str
    gateway: str
    brand: str
    last4: str
    expires: str | None
    default: bool


class InvoiceLineOut(TypedDict):
    description: str
    quantity: int
    unit_price: Amount
    discount: Amount
    tax: Amount
    amount: Amount
    period: PeriodOut


class InvoiceOut(TypedDict):
    """``number`` is drawn when the invoice is finalized; a draft has none.

    ``billing_reason`` is why it was written, ``kind`` whether it bills a whole ``period`` or a ``change`` within one.
    """

    id: str
    number: str | None
    status: str
    kind: str
    billing_reason: BillingReason
    subscription_id: str
    issued_at: Instant | None
    paid_at: Instant | None
    period_start: Instant
    period_end: Instant
    lines: list[InvoiceLineOut]
    subtotal: Amount
    tax: Amount
    total: Amount
    amount_due: Amount


class ExplanationOut(ResponseModel):
    """Why an invoice costs what it costs: its lines, how each was computed, what covered it, every payment tried."""

    invoice_id: str
    number: str | None
    status: str
    total: Amount
    lines: list[InvoiceLineOut]
    explanation: dict[str, Any]
    payments: list[PaymentOut]


def transaction_out(row: TransactionDetails) -> TransactionOut:
    return TransactionOut(
        id=row.id,
        kind=row.kind,
        amount=Amount(amount_minor=row.customer_delta_minor, currency=row.currency),
        balance_after=Amount(amount_minor=row.balance_after_minor, currency=row.currency),
        at=row.posted_at,
        ref=row.reference_id,
        description=row.description,
    )


def payment_out(row: PaymentDetails) -> PaymentOut:
    return PaymentOut(
        id=row.id,
        status=row.status,
        amount=Amount(amount_minor=row.amount_minor, currency=row.currency),
        gateway=row.gateway,
        purpose=row.purpose,
        refunded=Amount(amount_minor=row.refunded_minor, currency=row.currency),
        redirect_url=row.redirect_url if row.status == "pending" else None,
        decline_code=row.decline_code,
        payment_method_id=row.payment_method_id,
        subscription_id=row.subscription_id,
        invoice_id=row.invoice_id,
        created_at=row.created_at,
        workflow_id=row.workflow_id,
    )


def payment_method_out(row: PaymentMethod) -> PaymentMethodOut:
    return PaymentMethodOut(
        id=row.id,
        gateway=row.gateway,
        brand=row.brand,
        last4=row.last4,
        expires=row.expires,
        default=row.is_default,
    )


def invoice_out(row: InvoiceDetails) -> InvoiceOut:
    def amount(minor: int) -> Amount:
        return Amount(amount_minor=minor, currency=row.currency)

    reason = BillingReason(row.billing_reason)
    return InvoiceOut(
        id=row.id,
        number=row.number,
        status=row.status,
        kind="period" if reason.starts_period else "change",
        billing_reason=reason,
        subscription_id=row.subscription_id,
        issued_at=row.finalized_at,
        paid_at=row.paid_at,
        period_start=row.period_start,
        period_end=row.period_end,
        lines=[_line(line, row.currency) for line in row.lines],
        subtotal=amount(row.subtotal_minor),
        tax=amount(row.tax_minor),
        total=amount(row.total_minor),
        amount_due=amount(row.amount_due_minor),
    )


def _line(line: InvoiceLineDetails, currency: str) -> InvoiceLineOut:
    def amount(minor: int) -> Amount:
        return Amount(amount_minor=minor, currency=currency)

    return InvoiceLineOut(
        description=line.description,
        quantity=line.quantity,
        unit_price=amount(line.unit_price_minor),
        discount=amount(line.discount_minor),
        tax=amount(line.tax_minor),
        amount=amount(line.amount_minor),
        period=PeriodOut(start=line.period_start, end=line.period_end),
    )


def explanation_out(result: InvoiceWithPayments) -> ExplanationOut:
    row = result.invoice
    invoice = invoice_out(row)
    covered = covered_amounts(result.sources, row.currency)
    return ExplanationOut(
        invoice_id=row.id,
        number=row.number,
        status=row.status,
        total=invoice["total"],
        lines=invoice["lines"],
        explanation={
            **row.explanation,
            "covered": {
                name: Amount(amount_minor=amount.amount_minor, currency=amount.currency)
                for name, amount in covered.items()
            },
        },
        payments=[payment_out(payment) for payment in result.payments],
    )
