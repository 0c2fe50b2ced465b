"""Any sequence of postings, against the real database and a model of five lines."""

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
from tests.support.accounts import account
from tests.support.databases import Database
from workflows.rules import ledger as rules
from workflows.rules.errors import RuleBroken
from workflows.rules.ids import derived
from workflows.rules.ledger import Account, Posting
from workflows.rules.money import Money, zero

AT = datetime(2027, 1, 31, tzinfo=UTC)
AMOUNTS = st.integers(min_value=1, max_value=500)
NOTHING = zero("USD")


def money(amount: int) -> Money:
    return Money(amount_minor=amount, currency="USD")


async def test_any_sequence_of_postings_keeps_the_books(database: Database) -> None:
    organizations = count(1)
    made: dict[int, str] = {}
    # Hypothesis runs synchronously in a thread with a loop of its own: connections cannot be shared with this one's.
    url = database.worker_url

    for number in range(1, 13):
        made[number] = await account(database.owner)

    class Books(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.organization = made[(next(organizations) - 1) % len(made) + 1]
            self.loop = asyncio.new_event_loop()
            self.sessions = session_factory(create_async_engine(url, poolclass=NullPool))
            self.model = self.loop.run_until_complete(self._kept())
            self.keys: list[tuple[str, Posting]] = []
            self.run_name = f"{id(self)}-{next(organizations)}"

        def teardown(self) -> None:
            self.loop.close()

        @rule(amount=AMOUNTS)
        def top_up(self, amount: int) -> None:
            self._post(rules.top_up("stripe", money(amount)))

        @rule(amount=AMOUNTS)
        def credit(self, amount: int) -> None:
            self._post(rules.credit(money(amount)))

        @rule(wallet=AMOUNTS, promotional=st.integers(min_value=0, max_value=200))
        def hold(self, wallet: int, promotional: int) -> None:
            self._post(rules.hold(wallet=money(wallet), promotional=money(promotional)))

        @rule(amount=AMOUNTS)
        def release(self, amount: int) -> None:
            self._post(rules.release(wallet=money(amount), promotional=NOTHING))

        @rule(amount=AMOUNTS, tax=st.integers(min_value=0, max_value=50))
        def charge(self, amount: int, tax: int) -> None:
            self._post(rules.charge(promotional=NOTHING, wallet=money(amount), held=NOTHING, tax=money(tax)))

        @rule(amount=AMOUNTS)
        def refund(self, amount: int) -> None:
            self._post(rules.refund_of_top_up("stripe", money(amount)))

        @rule(amount=st.integers(min_value=-500, max_value=500).filter(bool))
        def adjust(self, amount: int) -> None:
            self._post(rules.adjustment(money(amount)))

        @rule(data=st.data())
        def repeat(self, data: st.DataObject) -> None:
            """A key that was posted before changes nothing, whatever comes with it."""
            if self.keys:
                key, posting = data.draw(st.sampled_from(self.keys))
                assert self.loop.run_until_complete(self._write(posting, key)) is False

        @invariant()
        def kept_balances_are_the_model(self) -> None:
            assert self.loop.run_until_complete(self._kept()) == self.model
            assert min(self.model.values()) >= 0
            assert self.loop.run_until_complete(self._faults()) == ([], 0)

        def _post(self, posting: Posting) -> None:
            after = dict(self.model)
            for entry in posting.entries:
                if entry.account in after:
                    after[entry.account] += entry.amount.amount_minor
            key = f"{self.run_name}-{len(self.keys)}-{posting.kind}"
            try:
                assert self.loop.run_until_complete(self._write(posting, key))
            except RuleBroken:
                assert min(after.values()) < 0, "refused although it was covered"
                return
            self.keys.append((key, posting))
            self.model = after

        async def _write(self, posting: Posting, key: str) -> bool:
            async with self.sessions.begin() as session:
                return await ledger.post(
                    session,
                    posting,
                    transaction_id=derived("tx", key),
                    organization_id=self.organization,
                    at=AT,
                    ref=None,
                    description="",
                    idempotency_key=key,
                )

        async def _kept(self) -> dict[str, int]:
            async with self.sessions.begin() as session:
                kept = await ledger.balances(session, self.organization, "USD")
            return {
                Account.WALLET: kept.wallet.amount_minor,
                Account.PROMOTIONAL: kept.promotional.amount_minor,
                Account.HELD: kept.held.amount_minor,
            }

        async def _faults(self) -> tuple[list[ledger.Drift], int]:
            async with self.sessions.begin() as session:
                return await ledger.drift(session), await ledger.unbalanced(session)

    few = settings(
        max_examples=6,
        stateful_step_count=12,
        derandomize=True,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    await asyncio.to_thread(run_state_machine_as_test, Books, settings=few)
