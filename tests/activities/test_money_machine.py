"""Every sequence of commands keeps the money: what an invoice receives is allocated, and returns to its source."""

from __future__ import annotations

import asyncio

import psycopg
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import (
    run_state_machine_as_test,
)
from psycopg.rows import dict_row

from deploy.local.postgres import Postgres
from tests.support.databases import fresh_database
from tests.support.money_machine import MoneyMachine
from tests.support.money_steps import build_account

REQUIRED_OUTCOMES = {
    "a plan change is applied with an invoice",
    "a plan change is applied without an invoice",
    "a plan change is rolled back",
    "a card payment is declined",
    "a card payment is paid",
    "a card payment of a plan change is paid",
    "a refund to the source is failed",
    "a refund that succeeded is failed",
    "a subscription is cancelled",
    "a subscription is paused",
    "debt is carried",
    "debt is repaid",
}
"""What the drawn sequences reach together. The other outcomes have their own tests."""


@pytest.mark.scenario("B35")
def test_no_sequence_of_commands_loses_or_creates_money(postgres_server: Postgres) -> None:
    with asyncio.Runner() as runner:
        opened = fresh_database(postgres_server)
        database = runner.run(opened.__aenter__())
        try:
            with psycopg.connect(database.superuser_dsn(), autocommit=True, row_factory=dict_row) as rows:
                account = build_account(runner, database, rows)

                class MachineOfAccount(MoneyMachine):
                    def __init__(self) -> None:
                        super().__init__(account)

                run_state_machine_as_test(
                    MachineOfAccount,
                    settings=settings(
                        max_examples=50,
                        stateful_step_count=12,
                        # A failing sequence is short enough to read; shrinking it takes minutes.
                        phases=[Phase.generate],
                        derandomize=True,
                        database=None,
                        deadline=None,
                        suppress_health_check=list(HealthCheck),
                    ),
                )
                assert REQUIRED_OUTCOMES - account.outcomes.keys() == set(), account.outcomes
        finally:
            runner.run(opened.__aexit__(None, None, None))
