"""The statements of a change set. Their rows come as JSON, their columns from the models."""

from __future__ import annotations

import re

from db.driver import driver_sql
from db.models.invoices import Invoice, InvoiceAllocation, InvoiceLine, PlanChangeCredit
from db.models.ledger import LedgerEntryRow, LedgerTransactionRow
from db.models.notifications import Notification
from db.models.subscriptions import SubscriptionChange, TimelineEvent
from db.queries.invoices import NEXT_INVOICE_NUMBER
from db.queries.json_inserts import JsonInsert

UPDATABLE_COLUMNS = (
    "plan_id", "price_id", "status", "price_minor", "coupon_remaining_periods", "coupon_redeemed", "billing_anchor",
    "current_period_start", "current_period_end", "trial_end", "cancel_at_period_end", "pending_plan_id",
    "past_due_since", "cancelled_at", "data_deletion_at", "updated_at",
)  # fmt: skip
"""Columns of a subscription that its life changes; the others stand as it was ordered."""

_UPDATED_COLUMNS = ",".join(UPDATABLE_COLUMNS)

_AVAILABLE_AT = "now()+coalesce(scheduled_for-:now,'0')"

INSERTS = (
    JsonInsert(SubscriptionChange),
    JsonInsert(TimelineEvent, on_conflict_do_nothing=True),
    JsonInsert(
        Notification,
        expressions={
            "request_id": "request_id",
            "priority": "priority",
            "requires_render": "scheduled_for IS NOT NULL",
            "available_at": _AVAILABLE_AT,
            "next_attempt_at": _AVAILABLE_AT,
        },
        without=("recipient_addresses", "claim_id", "sent_at", "message_id", "error"),
        on_conflict_do_nothing=True,
    ),
    JsonInsert(LedgerTransactionRow, without=("sequence_number", "balance_after_minor")),
    JsonInsert(LedgerEntryRow),
)
INVOICE_INSERTS = (
    JsonInsert(
        Invoice,
        expressions={"number": "(SELECT number FROM numbered)", "explanation": "explanation"},
        without=("voided_at",),
    ),
    JsonInsert(InvoiceLine),
    JsonInsert(InvoiceAllocation, without=("credit_note_id",)),
)
CREDIT_INSERT = JsonInsert(PlanChangeCredit)
_TRANSACTIONS, _ENTRIES = len(INSERTS) - 2, len(INSERTS) - 1
INSERT_BY_TABLE = {insert.table.name: insert for insert in (*INSERTS, *INVOICE_INSERTS, CREDIT_INSERT)}

_WRITTEN = "WITH written AS (SELECT CAST(:rows AS jsonb) AS rows)"


def _write_sql(statement: str) -> str:
    # psycopg keeps what it has worked out about a statement only up to 4,096 characters: no space that is not needed.
    return driver_sql(re.sub(r" ?([(),=|+]+) ?", r"\1", " ".join(statement.split())))


WRITE = _write_sql(f"""
{_WRITTEN}, subscription AS (
    UPDATE subscriptions AS s SET ({_UPDATED_COLUMNS}) =
    (SELECT {_UPDATED_COLUMNS} FROM jsonb_populate_record(s, CAST(:columns AS jsonb)))
    WHERE s.id = :updated_id
), {", ".join(f"i{place} AS ({insert.sql(place)})" for place, insert in enumerate(INSERTS[:_TRANSACTIONS]))},
posted AS ({INSERTS[_TRANSACTIONS].sql(_TRANSACTIONS)} RETURNING id)
{INSERTS[_ENTRIES].sql(_ENTRIES)} WHERE (SELECT count(*) FROM posted) >= 0
""")
# The entries' insert reads ``posted``. A CTE that it does not read runs after it, and then the accounts' rows would be
# locked before the customer's balance, against the order of every other posting.

WRITE_INVOICE = _write_sql(f"""
{_WRITTEN}, numbered AS (
    {NEXT_INVOICE_NUMBER}
), invoice AS ({INVOICE_INSERTS[0].sql(0)}), line AS ({INVOICE_INSERTS[1].sql(1)})
{INVOICE_INSERTS[2].sql(2)}
""")

WRITE_CREDITS = driver_sql(f"{_WRITTEN} {CREDIT_INSERT.sql(0)}")
"""Credit of a plan change. Rare, therefore a separate statement."""

VOID_REMINDERS = driver_sql(
    "UPDATE notifications SET status = 'voided' WHERE subscription_id = :subscription_id AND status = 'pending'"
    " AND scheduled_for > :now AND id <> ALL(:keep)"
)
