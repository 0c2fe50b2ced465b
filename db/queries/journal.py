"""What one fact writes, collected and written by one statement.

A fact moves the subscription and money, writes an invoice, tells the timeline, leaves a change record and queues mails.
Doing that row by row is ten round trips; here it is one, which is also the last of its transaction: the series that an
invoice's number is drawn from is locked for one commit.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import orjson
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from db.queries.invoices import DRAW, drawn_at
from db.queries.outbox import Notice, enqueue_values
from workflows.rules import ids
from workflows.rules.errors import Refusal, RuleBroken
from workflows.rules.ledger import OF_THE_CUSTOMER, OF_THE_ORGANIZATION, Posting

_ORDER = {account: place for place, account in enumerate(OF_THE_ORGANIZATION)}

_NOTHING: dict[str, list[Any]] = {
    name: [] for name in ("changes", "events", "notices", "invoices", "lines", "transactions", "entries")
}

CHANGEABLE = (
    "plan_id", "price_id", "status", "price_minor", "coupon_periods_left", "coupon_used", "anchor",
    "current_period_start", "current_period_end", "trial_end", "cancel_at_period_end", "pending_plan_id",
    "first_failure_at", "cancelled_at", "delete_at", "updated_at",
)  # fmt: skip
"""Columns of a subscription that its life changes; the others stand as it was ordered."""

_UPDATED = ", ".join(CHANGEABLE)

_STATEMENT = f"""
WITH told AS MATERIALIZED (SELECT CAST(:fact AS jsonb) AS fact), subscription AS (
    UPDATE subscriptions AS s SET ({_UPDATED}) = (SELECT {_UPDATED} FROM jsonb_populate_record(s, fact->'columns'))
    FROM told WHERE s.id = :subscription_id AND fact->'columns' <> '{{}}'
), numbered AS (
    {DRAW}
), changes AS (
    INSERT INTO subscription_changes (organization_id, subscription_id, at, actor, what, before, after, reason, run_id)
    SELECT r.* FROM told, jsonb_to_recordset(fact->'changes') AS r(
        organization_id text, subscription_id text, at timestamptz, actor text, what text, before text, after text,
        reason text, run_id text)
), events AS (
    INSERT INTO timeline_events (organization_id, subscription_id, at, kind, message, ref, fact)
    SELECT r.* FROM told, jsonb_to_recordset(fact->'events') AS r(
        organization_id text, subscription_id text, at timestamptz, kind text, message text, ref text, fact text)
    ON CONFLICT DO NOTHING
), notices AS (
    INSERT INTO notifications
        (id, organization_id, user_id, kind, channel, fact, context, secret_context, request_id, business_at)
    SELECT r.* FROM told, jsonb_to_recordset(fact->'notices') AS r(
        id text, organization_id text, user_id text, kind text, channel text, fact text,
        context jsonb, secret_context text, request_id text, business_at timestamptz)
    ON CONFLICT DO NOTHING
), invoice AS (
    INSERT INTO invoices (id, organization_id, subscription_id, kind, number, status, currency, period_start,
        period_end, subtotal_minor, tax_minor, total_minor, amount_due_minor, issued_at, paid_at, created_at,
        order_id, explanation)
    SELECT id, organization_id, subscription_id, kind, (SELECT number FROM numbered), status, currency,
        period_start, period_end, subtotal_minor, tax_minor, total_minor, amount_due_minor, issued_at, paid_at,
        created_at, order_id, explanation
    FROM told, jsonb_to_recordset(fact->'invoices') AS r(
        id text, organization_id text, subscription_id text, kind text, status text, currency text,
        period_start timestamptz, period_end timestamptz, subtotal_minor bigint, tax_minor bigint, total_minor bigint,
        amount_due_minor bigint, issued_at timestamptz, paid_at timestamptz, created_at timestamptz, order_id text,
        explanation jsonb)
), lines AS (
    INSERT INTO invoice_lines (invoice_id, position, organization_id, description, quantity, unit_price_minor,
        discount_minor, tax_minor, amount_minor, price_id, period_start, period_end)
    SELECT r.* FROM told, jsonb_to_recordset(fact->'lines') AS r(
        invoice_id text, position bigint, organization_id text, description text, quantity bigint,
        unit_price_minor bigint, discount_minor bigint, tax_minor bigint, amount_minor bigint, price_id text,
        period_start timestamptz, period_end timestamptz)
), transactions AS (
    INSERT INTO ledger_transactions
        (id, organization_id, kind, currency, effect_minor, at, ref, description, idempotency_key)
    SELECT r.* FROM told, jsonb_to_recordset(fact->'transactions') AS r(
        id text, organization_id text, kind text, currency text, effect_minor bigint, at timestamptz, ref text,
        description text, idempotency_key text)
)
INSERT INTO ledger_entries (transaction_id, organization_id, account, currency, amount_minor)
SELECT r.* FROM told, jsonb_to_recordset(fact->'entries') AS r(
    transaction_id text, organization_id text, account text, currency text, amount_minor bigint)
"""

_WRITE = text(" ".join(_STATEMENT.split()))
"""psycopg keeps what it has worked out about a statement only below 4,096 characters."""


@dataclass(slots=True, kw_only=True)
class Journal:
    """Everything that one fact of one subscription writes. ``at`` is the subscription's own clock."""

    organization_id: str
    subscription_id: str
    at: datetime
    actor: str
    run_id: str
    _columns: dict[str, Any] = field(default_factory=dict)
    _draws: bool = False
    _rows: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def change(self, what: str, before: str | None, after: str | None, reason: str = "") -> None:
        self._add(
            "changes",
            organization_id=self.organization_id,
            subscription_id=self.subscription_id,
            at=self.at.isoformat(),
            actor=self.actor,
            what=what,
            before=before,
            after=after,
            reason=reason,
            run_id=self.run_id,
        )

    def tell(self, kind: str, message: str, *, ref: str | None = None, fact: str | None = None) -> None:
        """Add a line to the timeline, once per ``fact`` (default: the kind at this instant)."""
        self._add(
            "events",
            organization_id=self.organization_id,
            subscription_id=self.subscription_id,
            at=self.at.isoformat(),
            kind=kind,
            message=message,
            ref=ref,
            fact=fact or f"{kind}/{self.at.isoformat()}",
        )

    def notify(self, kind: str, context: dict[str, Any], *, fact: str | None = None) -> None:
        """Queue a mail, once per ``fact`` (default: the kind at this instant), and say so in the timeline."""
        name = f"{self.subscription_id}/{fact or f'{kind}/{self.at.isoformat()}'}"
        notice = Notice(
            organization_id=self.organization_id, user_id=None, kind=kind, fact=name, context=context, at=self.at
        )
        self._rows.setdefault("notices", []).append(enqueue_values(notice))
        self.tell("notification.sent", kind, ref=notice.id, fact=f"notice/{notice.id}")

    def post(self, posting: Posting, *, key: str, description: str, ref: str | None = None) -> str:
        """Add a ledger transaction; ``key`` is unique for ever, and its hash is the returned transaction's id."""
        transaction_id = ids.derived("tx", key)
        own = sum(entry.amount.amount_minor for entry in posting.entries if entry.account in OF_THE_CUSTOMER)
        self._add(
            "transactions",
            id=transaction_id,
            organization_id=self.organization_id,
            kind=posting.kind.value,
            currency=posting.entries[0].amount.currency,
            effect_minor=own,
            at=self.at.isoformat(),
            ref=ref,
            description=description,
            idempotency_key=key,
        )
        for entry in sorted(posting.entries, key=lambda entry: _ORDER.get(entry.account, len(_ORDER))):  # type: ignore[call-overload]  # platform accounts are plain strings
            self._add(
                "entries",
                transaction_id=transaction_id,
                organization_id=self.organization_id if entry.account in OF_THE_ORGANIZATION else None,
                account=str(entry.account),
                currency=entry.amount.currency,
                amount_minor=entry.amount.amount_minor,
            )
        return transaction_id

    def update(self, **columns: Any) -> None:
        """Update columns of the subscription; what reads them before ``write`` still sees the old values.

        Raises:
            ValueError: one of them is not ``CHANGEABLE``.
        """
        if fixed := columns.keys() - set(CHANGEABLE):
            raise ValueError(f"a subscription's {', '.join(sorted(fixed))} does not change")
        self._columns |= columns | {"updated_at": self.at}

    def invoice(self, invoice: dict[str, Any], lines: list[dict[str, Any]], *, numbered: bool) -> None:
        """Add the fact's invoice and its lines as JSON-ready rows; ``numbered`` draws the next number for it."""
        self._add("invoices", **invoice)
        self._draws = self._draws or numbered
        for line in lines:
            self._add("lines", **line)

    async def write(self, session: AsyncSession) -> None:
        """Write everything.

        Raises:
            RuleBroken: ``INSUFFICIENT_FUNDS`` when a kept balance would fall below zero.
        """
        fact = orjson.dumps({"columns": self._columns, **_NOTHING, **self._rows}).decode()
        told = {"fact": fact, "subscription_id": self.subscription_id}
        try:
            await session.execute(_WRITE, told | drawn_at(self.at, wanted=self._draws))
        except IntegrityError as error:
            if "never_below_zero" in constraint_of(error):
                raise RuleBroken(Refusal.INSUFFICIENT_FUNDS, "The wallet does not cover this.") from error
            raise
        self._rows.clear()
        self._columns.clear()
        self._draws = False

    def _add(self, table: str, **row: Any) -> None:
        self._rows.setdefault(table, []).append(row)


async def told(session: AsyncSession, subscription_id: str, fact: str) -> bool:
    """Tell whether a fact is in the subscription's timeline."""
    statement = text("SELECT EXISTS (SELECT FROM timeline_events WHERE subscription_id = :id AND fact = :fact)")
    return bool((await session.execute(statement, {"id": subscription_id, "fact": fact})).scalar_one())


def constraint_of(error: IntegrityError) -> str:
    """Return the name of the constraint that was violated, or an empty string."""
    diagnostics = getattr(error.orig, "diag", None)
    return getattr(diagnostics, "constraint_name", None) or ""
