"""Rows that no workflow writes: the database refuses them to the worker, the API and the owner of the schema."""

from __future__ import annotations

import pytest

from db.errors import violated_constraint
from tests.support.databases import DatabaseFixture
from tests.support.statements import (
    CHANGE,
    CHECK,
    EVENT,
    HOLD,
    OPERATION,
    RECEIVE,
    REDEMPTION,
    REFUND,
    RESTRICT,
    TRANSACTION,
    execute_in_transaction,
    fill,
    invoice,
    line,
    payment,
)

USD_REFUND = REFUND.replace("{currency}", "USD")
WHOLE_REFUND = f"{RECEIVE}; {USD_REFUND}; UPDATE payments SET refunded_minor = 100 WHERE id = 'pay_1'"
SENT_REFUND = f"{WHOLE_REFUND}; UPDATE refunds SET status = 'succeeded'".replace("'wallet'", "'source'")
EMPTY_TRANSACTION = (
    TRANSACTION.replace("{id}", "tx_2").replace("{delta}", "0").replace("'key'", "'key2'").replace(" 2, ", " {count}, ")
)
NUMBERS = "INSERT INTO invoice_number_sequences (issuer, year, last_number) VALUES ('OTHER', 2027, 5)"
OPERATION_DONE = OPERATION.replace("{id}", "op_1").replace("{status}", "succeeded")
EVENT_RECEIVED = (
    "INSERT INTO webhook_events (gateway, event_id, event_type, amount_minor, currency, payload_sha256, status,"
    " received_at) VALUES ('stripe', 'evt_1', 'x', 100, 'USD', '', 'received', now())"
)
CARD = (
    "INSERT INTO payment_methods (id, organization_id, gateway, gateway_reference, gateway_customer_reference, brand,"
    " last4, exp_month, is_default, charge_order, created_at)"
    " VALUES ('pm_2', '{organization}', 'stripe', 'pm_2', 'cus_1', 'visa', '{last4}', {month}, false, 1, now())"
)


def period(reason: str, start: str, end: str, *, number: int) -> str:
    """Return an ``INSERT`` of an open invoice of a period."""
    statement = invoice(id=f"inv_{number}", number=f"'BERTH-{number}'", end=end).replace("'plan_change'", f"'{reason}'")
    return statement.replace("'2027-01-31', '" + end, f"'{start}', '{end}")


YEAR = period("order", "2027-01-31", "2028-01-31", number=11)

REFUSED_CHANGES = [
    # A payment is refunded once, what was captured of it at most, and its refunds are what it has refunded.
    (USD_REFUND, CHECK, "payment_refunds_agree"),
    (f"{RECEIVE}; {USD_REFUND}", CHECK, "payment_refunds_agree"),
    (f"{WHOLE_REFUND}; {USD_REFUND.replace('re_1', 're_2')}", CHECK, "payment_refunds_agree"),
    (
        f"{WHOLE_REFUND}; {USD_REFUND.replace('re_1', 're_2')};"
        " UPDATE payments SET refunded_minor = 200 WHERE id = 'pay_1'",
        CHECK,
        "ck_payments_valid_captured_and_refunded",
    ),
    (f"{RECEIVE}; UPDATE payments SET refunded_minor = 100 WHERE id = 'pay_1'", CHECK, "payment_refunds_agree"),
    (f"{WHOLE_REFUND}; UPDATE refunds SET status = 'failed'", CHECK, "payment_refunds_agree"),
    (f"{WHOLE_REFUND}; UPDATE payments SET refunded_minor = 0 WHERE id = 'pay_1'", CHECK, "payment_refunds_agree"),
    (f"{WHOLE_REFUND}; UPDATE refunds SET reason = 'other'", RESTRICT, ""),
    # No bank rejects what went to the wallet, and a refund that failed is over.
    (f"{WHOLE_REFUND}; UPDATE refunds SET status = 'succeeded'; UPDATE refunds SET status = 'failed'", RESTRICT, ""),
    (f"{SENT_REFUND}; UPDATE refunds SET status = 'pending'", RESTRICT, ""),
    (f"{SENT_REFUND}; UPDATE refunds SET status = 'failed'", CHECK, "payment_refunds_agree"),
    (
        f"{SENT_REFUND}; UPDATE refunds SET status = 'failed'; UPDATE refunds SET status = 'succeeded'",
        RESTRICT,
        "",
    ),
    (
        f"{WHOLE_REFUND}; UPDATE refunds SET gateway_reference = 're_a'; UPDATE refunds SET gateway_reference = 're_b'",
        RESTRICT,
        "",
    ),
    # A payment keeps what it is for, its charge at the gateway, and where its money went.
    ("UPDATE payments SET purpose = 'top_up'", RESTRICT, ""),
    ("UPDATE payments SET invoice_id = 'inv_paid'", RESTRICT, ""),
    ("UPDATE payments SET subscription_id = NULL", RESTRICT, ""),
    ("UPDATE payments SET payment_method_id = NULL", RESTRICT, ""),
    ("UPDATE payments SET gateway_reference = 'a'; UPDATE payments SET gateway_reference = 'b'", RESTRICT, ""),
    ("UPDATE payments SET gateway_reference = 'a'; UPDATE payments SET gateway_reference = NULL", RESTRICT, ""),
    (
        "UPDATE payments SET credited_to_wallet = true; UPDATE payments SET credited_to_wallet = false",
        RESTRICT,
        "",
    ),
    ("UPDATE payments SET status = 'succeeded'", CHECK, "ck_payments_received"),
    (f"{RECEIVE}; UPDATE payments SET status = 'failed'", CHECK, "ck_payments_received"),
    (f"{RECEIVE}; UPDATE payments SET succeeded_at = NULL", CHECK, "ck_payments_received"),
    ("UPDATE payment_methods SET gateway_reference = 'pm_x'", RESTRICT, ""),
    (CARD.replace("{last4}", "4242424242424242").replace("{month}", "1"), CHECK, "ck_payment_methods_last4"),
    (CARD.replace("{last4}", "4242").replace("{month}", "13"), CHECK, "ck_payment_methods_expiry"),
    (f"{EVENT_RECEIVED}; UPDATE webhook_events SET amount_minor = 1", RESTRICT, ""),
    # A subscription keeps its owner and its currency, and ends once.
    ("UPDATE subscriptions SET currency = 'EUR'", RESTRICT, ""),
    ("UPDATE subscriptions SET user_id = 'usr_2'", RESTRICT, ""),
    (
        "UPDATE subscriptions SET status = 'terminated'; UPDATE subscriptions SET status = 'active'",
        RESTRICT,
        "",
    ),
    ("UPDATE subscriptions SET status = 'failed'; UPDATE subscriptions SET status = 'cancelled'", RESTRICT, ""),
    ("UPDATE subscriptions SET status = 'expired'; UPDATE subscriptions SET status = 'provisioning'", RESTRICT, ""),
    ("UPDATE subscriptions SET status = 'cancelled'; UPDATE subscriptions SET status = 'active'", RESTRICT, ""),
    ("UPDATE subscriptions SET status = 'pending'", RESTRICT, ""),
    (
        "UPDATE subscriptions SET current_period_start = '2027-01-31', current_period_end = '2027-01-31'",
        CHECK,
        "ck_subscriptions_period",
    ),
    ("UPDATE subscriptions SET current_period_start = '2027-01-31'", CHECK, "ck_subscriptions_period"),
    ("UPDATE subscriptions SET coupon_remaining_periods = -1", CHECK, "ck_subscriptions_coupon_periods"),
    # A period is not empty.
    (invoice(end="2027-01-31"), CHECK, "ck_invoices_period"),
    # An invoice is paid once; a void one has nothing due; its lines are what they multiply to.
    ("UPDATE invoices SET status = 'open' WHERE id = 'inv_paid'", RESTRICT, ""),
    ("UPDATE invoices SET currency = 'EUR' WHERE id = 'inv_draft'", RESTRICT, ""),
    ("UPDATE invoices SET status = 'void', amount_due_minor = 0 WHERE id = 'inv_draft'", CHECK, "ck_invoices_void"),
    ("UPDATE invoices SET status = 'void', voided_at = now() WHERE id = 'inv_draft'", CHECK, "ck_invoices_void"),
    ("UPDATE invoices SET voided_at = now() WHERE id = 'inv_draft'", CHECK, "ck_invoices_void"),
    (line("inv_draft", position=1).replace("0, 100, '2027", "0, 70, '2027"), CHECK, "ck_invoice_lines_amount"),
    (line("inv_draft", position=1).replace("2027-02-28", "2027-01-30"), CHECK, "ck_invoice_lines_period"),
    (f"{NUMBERS}; UPDATE invoice_number_sequences SET last_number = 4", RESTRICT, ""),
    # A hold, a redemption and an operation end once; a hold keeps its amounts.
    ("UPDATE holds SET wallet_minor = 500", RESTRICT, ""),
    ("UPDATE holds SET currency = 'EUR'", RESTRICT, ""),
    ("UPDATE holds SET status = 'released'; UPDATE holds SET status = 'captured'", RESTRICT, ""),
    ("UPDATE holds SET status = 'captured'; UPDATE holds SET status = 'held'", RESTRICT, ""),
    (
        f"{REDEMPTION}; UPDATE coupon_redemptions SET status = 'redeemed';"
        " UPDATE coupon_redemptions SET status = 'reserved'",
        RESTRICT,
        "",
    ),
    (f"{OPERATION_DONE}; UPDATE instance_operations SET status = 'running'", RESTRICT, ""),
    # What happened to a subscription is appended to.
    (f"{CHANGE}; UPDATE subscription_changes SET actor = 'other'", RESTRICT, ""),
    (f"{EVENT}; UPDATE timeline_events SET message = 'other'", RESTRICT, ""),
    # A ledger transaction has a known kind and currency, and two entries at least.
    (
        EMPTY_TRANSACTION.replace("{count}", "0").replace("{currency}", "USD"),
        CHECK,
        "ck_ledger_transactions_entry_count",
    ),
    (EMPTY_TRANSACTION.replace("{count}", "2").replace("{currency}", "usd"), CHECK, "ck_ledger_transactions_currency"),
    (
        EMPTY_TRANSACTION.replace("{count}", "2").replace("{currency}", "USD").replace("'top_up'", "'banana'"),
        CHECK,
        "ck_ledger_transactions_kind",
    ),
]

ACCEPTED_CHANGES = [
    WHOLE_REFUND,
    f"{WHOLE_REFUND}; UPDATE refunds SET status = 'succeeded'; UPDATE payments SET status = 'refunded'",
    f"{WHOLE_REFUND}; UPDATE refunds SET status = 'failed'; UPDATE payments SET refunded_minor = 0",
    # The bank rejects what the gateway has sent.
    f"{SENT_REFUND}; UPDATE refunds SET status = 'failed', failure_code = 'lost_or_stolen_card';"
    " UPDATE payments SET refunded_minor = 0",
    "UPDATE payments SET gateway_reference = 'a'; UPDATE payments SET gateway_reference = 'a'",
    "UPDATE payments SET credited_to_wallet = true",
    "UPDATE subscriptions SET status = 'cancelled'; UPDATE subscriptions SET status = 'terminated'",
    "UPDATE subscriptions SET current_period_start = '2027-01-31', current_period_end = '2027-02-28'",
    # A renewal at the end of a period; a resumption or a shorter interval inside one, and a renewal after it.
    f"{YEAR}; {period('renewal', '2028-01-31', '2028-02-29', number=12)}",
    f"{YEAR}; {period('resumption', '2027-03-01', '2027-04-01', number=12)};"
    f" {period('renewal', '2027-04-01', '2027-05-01', number=13)}",
    f"{YEAR}; {period('plan_change', '2027-03-01', '2027-04-01', number=12)};"
    f" {period('renewal', '2027-04-01', '2027-05-01', number=13)}",
    f"{YEAR}; UPDATE invoices SET status = 'void', voided_at = now(), amount_due_minor = 0 WHERE id = 'inv_11';"
    f" {period('renewal', '2027-02-28', '2027-03-31', number=12)}",
    "UPDATE invoices SET status = 'void', voided_at = now(), amount_due_minor = 0 WHERE id = 'inv_draft'",
    f"{NUMBERS}; UPDATE invoice_number_sequences SET last_number = 6",
    CARD.replace("{last4}", "").replace("{month}", "NULL"),
    f"{EVENT_RECEIVED}; UPDATE webhook_events SET status = 'delivered', delivered_at = now()",
    payment(invoice="'inv_paid'"),
    HOLD.replace("{key}", "second").replace("{status}", "released"),
]
"""The refusals above are those of the statement's content, not of the table."""


@pytest.mark.parametrize("role", ["worker", "owner"])
async def test_rows_that_no_workflow_writes_are_refused(
    database: DatabaseFixture, ids: dict[str, str], role: str
) -> None:
    unexpected = []
    for statement, sqlstate, constraint in REFUSED_CHANGES:
        error = await execute_in_transaction(getattr(database, role), fill(statement, ids))
        outcome = (getattr(error.orig, "sqlstate", None), violated_constraint(error)) if error else None
        if outcome != (sqlstate, constraint):
            unexpected.append((statement, outcome, (sqlstate, constraint)))
    assert unexpected == []


async def test_changes_that_workflows_make_are_accepted(database: DatabaseFixture, ids: dict[str, str]) -> None:
    for statement in ACCEPTED_CHANGES:
        assert await execute_in_transaction(database.worker, fill(statement, ids)) is None, statement


async def test_the_api_changes_no_row_of_billing(database: DatabaseFixture, ids: dict[str, str]) -> None:
    """The API writes the inbox of webhooks alone, and no event that it has recorded."""
    accepted = []
    for statement, *_ in REFUSED_CHANGES:
        if await execute_in_transaction(database.api, fill(statement, ids)) is None:
            accepted.append(statement)
    assert accepted == []


async def test_an_organization_that_is_billed_keeps_its_currency(
    database: DatabaseFixture, ids: dict[str, str]
) -> None:
    statement = "UPDATE organizations SET currency = 'EUR' WHERE id = '{organization}'"
    refused = await execute_in_transaction(database.owner, fill(statement, ids))
    assert refused is not None
    assert getattr(refused.orig, "sqlstate", None) == RESTRICT
    unbilled = fill(statement.replace("{organization}", "{other}"), ids)
    assert await execute_in_transaction(database.owner, unbilled) is None


async def test_the_message_of_a_rejected_statement_names_the_row(
    database: DatabaseFixture, ids: dict[str, str]
) -> None:
    error = await execute_in_transaction(database.worker, "UPDATE payments SET purpose = 'top_up'")
    assert "payments pay_1: purpose, " in str(error)
