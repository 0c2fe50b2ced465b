"""A second organization with money of every kind, which no command on the first organization may change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import psycopg
from psycopg.rows import tuple_row

from db.queries import ledger as ledger_queries
from tests.support.billing_commands import usd
from tests.support.billing_fixture import ORDERED_AT, BillingFixture, insert_payment_method
from workflows.ports.billing import StartPeriod
from workflows.rules import ledger
from workflows.rules.funding import CollectionMethod
from workflows.rules.ids import derive_id
from workflows.rules.renewal import PeriodKind

OTHER_ORGANIZATION = "org_other"

# In the order of their foreign keys, which are not checked while the rows are restored.
TABLES = (
    "subscriptions", "instances", "invoices", "invoice_lines", "invoice_allocations", "payment_methods",
    "ledger_accounts", "ledger_transactions", "ledger_entries", "customer_balances",
)  # fmt: skip
PLATFORM_TABLES = frozenset({"invoice_lines"})
"""Tables without a column ``organization_id``."""


@dataclass(frozen=True, slots=True)
class OtherOrganization:
    """The organization's rows as JSON.

    Attributes:
        stored: By table; includes the platform's accounts.
    """

    stored: Mapping[str, list[str]]
    owned: list[str]
    subscription_ids: frozenset[str]

    def restore(self, connection: psycopg.Connection[dict[str, Any]]) -> None:
        """Insert the rows into emptied tables."""
        for table, rows in self.stored.items():
            connection.execute(
                f"INSERT INTO {table} OVERRIDING SYSTEM VALUE"
                f" SELECT (jsonb_populate_record(NULL::{table}, r::jsonb)).* FROM unnest(%s::text[]) r",
                [rows],
            )

    def assert_unchanged(self, connection: psycopg.Connection[dict[str, Any]]) -> None:
        """Assert that the rows are those that were inserted."""
        assert _read_owned(connection) == self.owned


async def create_other_organization(
    billing: BillingFixture, connection: psycopg.Connection[dict[str, Any]], small_coupon: str
) -> OtherOrganization:
    """Create the organization: wallet, promotional credit, a card, carried debt, an open invoice.

    Args:
        small_coupon: Leaves less than the gateway's minimum of the price of ``starter``.
    """
    connection.execute(
        "INSERT INTO organizations (id, name, currency, timezone, created_at, updated_at)"
        " VALUES (%s, 'Other', 'USD', 'UTC', %s, %s)",
        [OTHER_ORGANIZATION, ORDERED_AT, ORDERED_AT],
    )
    await insert_payment_method(billing.sessions, organization=OTHER_ORGANIZATION)
    subscription_ids = frozenset({await _order(billing, coupon=small_coupon), await _order_and_leave_unpaid(billing)})
    await _post(billing, ledger.adjustment_transaction(usd(900)), "adjustment/other")
    await _post(billing, ledger.promotional_credit_transaction(usd(170)), "promotional/other")
    organization = OtherOrganization(
        stored={table: _read(connection, f"SELECT to_jsonb(t)::text FROM {table} t ORDER BY 1") for table in TABLES},
        owned=_read_owned(connection),
        subscription_ids=subscription_ids,
    )
    balances = {row["account"]: row["balance_minor"] for row in _accounts(connection)}
    assert {account: amount for account, amount in balances.items() if amount} == {
        "wallet": 900,
        "promotional": 170,
        "debt": -25,
        "receivable": -500,
    }
    return organization


async def _order_and_leave_unpaid(billing: BillingFixture) -> str:
    await _post(billing, ledger.adjustment_transaction(usd(500)), "adjustment/order")
    return await _order(billing, unpaid_renewal=True, collection_method=CollectionMethod.WALLET)


async def _order(billing: BillingFixture, *, unpaid_renewal: bool = False, **more: Any) -> str:
    command = billing.create_command("starter", **more)
    command = replace(command, order=replace(command.order, organization_id=OTHER_ORGANIZATION))
    opened = await billing.subscription_activities.record_order(command)
    activities = billing.billing_activities
    started = await activities.start_first_period(billing.start_first_period_command(command, opened))
    if unpaid_renewal:
        begins = started.state.period_end
        assert begins is not None
        await activities.start_period(
            StartPeriod(
                subscription_id=command.order.subscription_id,
                kind=PeriodKind.RENEWAL,
                period_start=begins,
                anchor=begins,
                terms=opened.terms,
                actor="platform",
                now=begins,
            )
        )
    return command.order.subscription_id


async def _post(billing: BillingFixture, posting: ledger.LedgerTransaction, key: str) -> None:
    async with billing.sessions.begin() as session:
        await ledger_queries.post_transaction(
            session,
            posting,
            transaction_id=derive_id("tx", key),
            organization_id=OTHER_ORGANIZATION,
            at=ORDERED_AT,
            ref=None,
            description="test",
            idempotency_key=key,
        )


def _read_owned(connection: psycopg.Connection[dict[str, Any]]) -> list[str]:
    return _read(connection, f"SELECT r FROM ({_ROWS_STATEMENT}) owned_rows (r) ORDER BY r")


_ROWS_STATEMENT = " UNION ALL ".join(
    f"SELECT '{table}' || to_jsonb(t)::text FROM {table} t WHERE organization_id = '{OTHER_ORGANIZATION}'"
    for table in TABLES
    if table not in PLATFORM_TABLES
)


def _read(connection: psycopg.Connection[dict[str, Any]], statement: str) -> list[str]:
    rows = connection.cursor(row_factory=tuple_row).execute(statement).fetchall()
    return [row for (row,) in rows]


def _accounts(connection: psycopg.Connection[dict[str, Any]]) -> list[Mapping[str, Any]]:
    return [
        *connection.execute(
            "SELECT account, balance_minor FROM ledger_accounts WHERE organization_id = %s", [OTHER_ORGANIZATION]
        ).fetchall()
    ]
