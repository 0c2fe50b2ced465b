"""Any sequence of ledger transactions, on the real database and on a model of the balances."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from itertools import count

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from sqlalchemy import NullPool
from sqlalchemy.ext.asyncio import create_async_engine

from db.queries import ledger
from db.session import session_factory
from tests.support.databases import DatabaseFixture
from tests.support.inserts import insert_organization
from workflows.rules import ledger as rules
from workflows.rules.errors import RuleViolation
from workflows.rules.ids import derive_id
from workflows.rules.ledger import LedgerAccount, LedgerTransaction
from workflows.rules.money import Money, zero_money

AT = datetime(2027, 1, 31, tzinfo=UTC)
AMOUNTS = st.integers(min_value=1, max_value=500)
ZERO = zero_money("USD")


def money(amount: int) -> Money:
    return Money(amount_minor=amount, currency="USD")


async def test_any_sequence_of_transactions_keeps_the_ledger_balanced(database: DatabaseFixture) -> None:
    organizations = count(1)
    organization_ids: dict[int, str] = {}
    # Hypothesis runs in a thread with a separate event loop, which cannot share connections with this loop.
    url = database.worker_url

    for number in range(1, 13):
        organization_ids[number] = await insert_organization(database.owner)

    class LedgerMachine(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.organization = organization_ids[(next(organizations) - 1) % len(organization_ids) + 1]
            self.loop = asyncio.new_event_loop()
            self.sessions = session_factory(create_async_engine(url, poolclass=NullPool))
            self.model = self.loop.run_until_complete(self._stored_balances())
            self.keys: list[tuple[str, LedgerTransaction]] = []
            self.run_name = f"{id(self)}-{next(organizations)}"

        def teardown(self) -> None:
            self.loop.close()

        @rule(amount=AMOUNTS)
        def top_up(self, amount: int) -> None:
            self._post(rules.top_up_transaction("stripe", money(amount)))

        @rule(amount=AMOUNTS)
        def credit(self, amount: int) -> None:
            self._post(rules.promotional_credit_transaction(money(amount)))

        @rule(wallet=AMOUNTS, promotional=st.integers(min_value=0, max_value=200))
        def hold(self, wallet: int, promotional: int) -> None:
            self._post(rules.hold_transaction(wallet=money(wallet), promotional=money(promotional)))

        @rule(amount=AMOUNTS)
        def release(self, amount: int) -> None:
            self._post(rules.release_transaction(wallet=money(amount), promotional=ZERO))

        @rule(amount=AMOUNTS, tax=st.integers(min_value=0, max_value=50))
        def charge(self, amount: int, tax: int) -> None:
            self._post(
                rules.paid_invoice_transaction(promotional=ZERO, wallet=money(amount), held=ZERO, tax=money(tax))
            )

        @rule(amount=AMOUNTS)
        def refund(self, amount: int) -> None:
            paid_out = (rules.LedgerAccount.WALLET, money(-amount)), (rules.clearing_account("stripe"), money(amount))
            self._post(rules.build_transaction(rules.TransactionKind.REFUND, *paid_out))

        @rule(amount=st.integers(min_value=-500, max_value=500).filter(bool))
        def adjust(self, amount: int) -> None:
            self._post(rules.adjustment_transaction(money(amount)))

        @rule(data=st.data())
        def repeat(self, data: st.DataObject) -> None:
            """A repeated key changes nothing."""
            if self.keys:
                key, posting = data.draw(st.sampled_from(self.keys))
                assert self.loop.run_until_complete(self._write(posting, key)) is False

        @invariant()
        def stored_balances_equal_the_model(self) -> None:
            assert self.loop.run_until_complete(self._stored_balances()) == self.model
            assert min(self.model.values()) >= 0
            assert self.loop.run_until_complete(self._find_violations()) == ([], 0)

        def _post(self, posting: LedgerTransaction) -> None:
            after = dict(self.model)
            for entry in posting.entries:
                if entry.account in after:
                    after[entry.account] += entry.amount.amount_minor
            key = f"{self.run_name}-{len(self.keys)}-{posting.kind}"
            try:
                assert self.loop.run_until_complete(self._write(posting, key))
            except RuleViolation:
                assert min(after.values()) < 0, "rejected although the balance covers it"
                return
            self.keys.append((key, posting))
            self.model = after

        async def _write(self, posting: LedgerTransaction, key: str) -> bool:
            async with self.sessions.begin() as session:
                return await ledger.post_transaction(
                    session,
                    posting,
                    transaction_id=derive_id("tx", key),
                    organization_id=self.organization,
                    at=AT,
                    ref=None,
                    description="",
                    idempotency_key=key,
                )

        async def _stored_balances(self) -> dict[str, int]:
            async with self.sessions.begin() as session:
                balances = await ledger.get_balances(session, self.organization, "USD")
            return {
                LedgerAccount.WALLET: balances.wallet.amount_minor,
                LedgerAccount.PROMOTIONAL: balances.promotional.amount_minor,
                LedgerAccount.HELD: balances.held.amount_minor,
            }

        async def _find_violations(self) -> tuple[list[ledger.BalanceMismatch], int]:
            async with self.sessions.begin() as session:
                return await ledger.find_balance_mismatches(session), await ledger.count_unbalanced_transactions(
                    session
                )

    few = settings(
        max_examples=6,
        stateful_step_count=12,
        derandomize=True,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    await asyncio.to_thread(run_state_machine_as_test, LedgerMachine, settings=few)
