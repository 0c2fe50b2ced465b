"""Timeouts of the database roles: a lock, a slow statement or an idle transaction does not block others."""

from __future__ import annotations

from datetime import UTC, datetime

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.ext.asyncio import AsyncSession
from temporalio.testing import ActivityEnvironment

from activities.billing import PostgresBillingActivities
from activities.reconciliation import PostgresReconciliationActivities
from db.queries import ledger
from db.queries.ledger import BalanceMismatch
from db.session import session_factory
from tests.support.databases import DatabaseFixture
from tests.support.inserts import insert_organization
from workflows.ports.billing import AdjustWallet
from workflows.ports.reconciliation import AuditLedger
from workflows.rules.funding import GatewayTerms
from workflows.rules.money import Money

NOW = datetime(2027, 1, 31, 10, tzinfo=UTC)
LIMITS = ("lock_timeout", "statement_timeout", "idle_in_transaction_session_timeout")


async def limits(session: AsyncSession) -> tuple[str, ...]:
    return tuple([str(await session.scalar(text(f"SHOW {name}"))) for name in LIMITS])


async def test_the_roles_of_the_worker_and_the_api_have_limits(database: DatabaseFixture) -> None:
    async with session_factory(database.worker)() as session:
        assert await limits(session) == ("3s", "15s", "10s")
    async with session_factory(database.api)() as session:
        assert await limits(session) == ("3s", "10s", "10s")


async def test_a_statement_beyond_the_limit_is_cancelled(database: DatabaseFixture) -> None:
    async with session_factory(database.api)() as session:
        with pytest.raises(DBAPIError) as cancelled:
            await session.execute(text("SELECT pg_sleep(30)"))
    assert getattr(cancelled.value.orig, "sqlstate", None) == "57014"


async def test_an_activity_that_meets_a_locked_wallet_fails_to_be_retried(database: DatabaseFixture) -> None:
    sessions = session_factory(database.worker)
    billing, organization = (
        PostgresBillingActivities(sessions, {"stripe": GatewayTerms(name="stripe")}),
        await insert_organization(database.owner),
    )

    def adjustment(name: str) -> AdjustWallet:
        return AdjustWallet(
            adjustment_id=name,
            organization_id=organization,
            amount=Money(amount_minor=100, currency="USD"),
            reason="goodwill",
            actor="usr_admin",
            request_id="req_1",
            now=NOW,
        )

    await billing.adjust_wallet(adjustment("first"))
    with psycopg.connect(database.superuser_dsn()) as holder:
        holder.execute("SELECT 1 FROM ledger_accounts WHERE organization_id = %s FOR UPDATE", [organization])
        # An error of the driver, not a rule violation: the activity's policy retries it.
        with pytest.raises(OperationalError) as locked:
            await billing.adjust_wallet(adjustment("second"))
    assert getattr(locked.value.orig, "sqlstate", None) == "55P03"
    await billing.adjust_wallet(adjustment("second"))
    async with sessions() as session:
        assert (await ledger.get_balances(session, organization, "USD")).wallet.amount_minor == 200


async def test_the_audit_reads_longer_in_its_own_pool_and_for_its_transaction_alone(
    database: DatabaseFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits_in_audit: list[tuple[str, ...]] = []

    async def drift(session: AsyncSession) -> list[BalanceMismatch]:
        limits_in_audit.append(await limits(session))
        return []

    monkeypatch.setattr(ledger, "find_balance_mismatches", drift)
    audits = session_factory(database.worker)
    closed = session_factory(database.api)  # this role cannot read every organization: a use of it would fail
    activities = PostgresReconciliationActivities(closed, audits=audits)
    await ActivityEnvironment().run(activities.audit_ledger, AuditLedger(now=NOW))
    assert limits_in_audit == [("3s", "2min", "10s")]
    async with audits() as session:
        assert await limits(session) == ("3s", "15s", "10s")
