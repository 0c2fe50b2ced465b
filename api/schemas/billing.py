"""Money, as the API shows it: wallet, transactions, payments, cards, invoices."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from api.envelope import Amount, Body, Instant, Schema
from api.schemas.subscriptions import PeriodOut
from db.models.billing import Invoice, InvoiceLine
from db.models.payments import Payment, PaymentMethod
from db.queries.billing_reads import TransactionRow
from workflows.rules.currencies import LARGEST

Currency = Field(pattern=r"^[A-Z]{3}$", examples=["USD"])


class TopUpIn(Body):
    """``payment_method`` is the id of a card on file, or a token of the gateway's own; absent: the default card."""

    amount_minor: int = Field(gt=0, le=LARGEST, strict=True, examples=[5000])
    currency: str = Currency
    gateway: str = Field(max_length=50, examples=["stripe"])
    payment_method: str | None = Field(default=None, min_length=1, max_length=255, examples=["pm_card_visa"])


class PaymentMethodIn(Body):
    """``token`` is the gateway's own name of the card: card data never reaches us. The first card is the default."""

    gateway: str = Field(max_length=50, examples=["stripe"])
    token: str = Field(min_length=1, max_length=255, examples=["pm_card_visa"])
    default: bool = False


class WalletOut(Schema):
    """By currency. ``balances`` can be spent, ``held`` is set aside for orders and open invoices."""

    balances: list[Amount]
    held: list[Amount]


class TransactionOut(Schema):
    """Signed: what it added to balances and held; ``balance_after`` is their sum in its currency after it."""

    id: str
    kind: str
    amount: Amount
    balance_after: Amount
    at: Instant
    ref: str | None
    description: str


class PaymentOut(Schema):
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


class PaymentMethodOut(Schema):
    """``expires`` is ``MM/YYYY``."""

    id: str
    gateway: str
    brand: str
    last4: str
    expires: str
    default: bool


class InvoiceLineOut(Schema):
    description: str
    quantity: int
    unit_price: Amount
    discount: Amount
    tax: Amount
    amount: Amount
    period: PeriodOut


class InvoiceOut(Schema):
    """``number`` is drawn when the invoice is finalised; a draft has none."""

    id: str
    number: str | None
    status: str
    kind: str
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


class ExplanationOut(Schema):
    """Why an invoice costs what it costs: its lines, how each was computed, what covered it, every payment tried."""

    invoice_id: str
    number: str | None
    status: str
    total: Amount
    lines: list[InvoiceLineOut]
    explanation: dict[str, Any]
    payments: list[PaymentOut]


def transaction_out(row: TransactionRow) -> TransactionOut:
    known = row.transaction
    return TransactionOut(
        id=known.id,
        kind=known.kind,
        amount=Amount(amount_minor=known.effect_minor, currency=known.currency),
        balance_after=Amount(amount_minor=row.balance_after.amount_minor, currency=row.balance_after.currency),
        at=known.at,
        ref=known.ref,
        description=known.description,
    )


def payment_out(row: Payment) -> PaymentOut:
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
        expires=f"{row.exp_month:02d}/{row.exp_year:04d}",
        default=row.is_default,
    )


def invoice_out(row: Invoice) -> InvoiceOut:
    """``row.lines`` are loaded."""

    def amount(minor: int) -> Amount:
        return Amount(amount_minor=minor, currency=row.currency)

    return InvoiceOut(
        id=row.id,
        number=row.number,
        status=row.status,
        kind=row.kind,
        subscription_id=row.subscription_id,
        issued_at=row.issued_at,
        paid_at=row.paid_at,
        period_start=row.period_start,
        period_end=row.period_end,
        lines=[_line(line, row.currency) for line in row.lines],
        subtotal=amount(row.subtotal_minor),
        tax=amount(row.tax_minor),
        total=amount(row.total_minor),
        amount_due=amount(row.amount_due_minor),
    )


def _line(line: InvoiceLine, currency: str) -> InvoiceLineOut:
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


def explanation_out(row: Invoice, payments: list[PaymentOut]) -> ExplanationOut:
    shown = invoice_out(row)
    return ExplanationOut(
        invoice_id=row.id,
        number=row.number,
        status=row.status,
        total=shown.total,
        lines=shown.lines,
        explanation=row.explanation,
        payments=payments,
    )
