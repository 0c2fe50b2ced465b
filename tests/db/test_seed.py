"""``berth seed`` and ``berth migrate``: what a second start finds."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import psycopg

from tests.support.api import serving, settings
from tests.support.databases import Database
from worker import catalogue, migrate, seed
from worker.accounts import Account, accounts

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
ADMINISTRATOR = Account(email="admin@berth.example", password="first password", role="ADMINISTRATOR", name="Root")
CUSTOMER = Account(email="customer@berth.example", password="second password", role="USER", name="Customer")


def test_accounts_come_from_the_environment() -> None:
    environ = {"BERTH_ADMIN_EMAIL": "a@b.example", "BERTH_ADMIN_PASSWORD": "p", "BERTH_CUSTOMER_EMAIL": "c@b.example"}
    assert [(account.email, account.role) for account in accounts(environ)] == [("a@b.example", "ADMINISTRATOR")]


async def test_seeded_accounts_sign_in_as_what_they_are(database: Database) -> None:
    said = await seed.seed(database.owner_url, catalogue.SERVICES, [ADMINISTRATOR, CUSTOMER], NOW)
    assert said.endswith("2 accounts, 2 new")
    renewed = replace(CUSTOMER, password="a password that was changed")
    said = await seed.seed(database.owner_url, catalogue.SERVICES, [ADMINISTRATOR, renewed], NOW)
    assert said.endswith("0 new prices; 2 accounts, 0 new")
    async with serving(settings(database.api_url), database.superuser_dsn()) as api:
        for account, role in ((ADMINISTRATOR, "ADMINISTRATOR"), (renewed, "USER")):
            wanted = {"email": account.email, "password": account.password}
            token = (await api.http.post("/auth/login", json=wanted)).json()["data"]["access_token"]
            me = (await api.client(Authorization=f"Bearer {token}").get("/users/me")).json()["data"]
            assert (me["role"], me["email_verified"], me["organization"]["currency"]) == (role, True, "USD")


def test_migrating_again_finds_nothing_to_do(database: Database) -> None:
    before, after = migrate.migrate(database.owner_url)
    assert before == after
    with psycopg.connect(database.superuser_dsn()) as connection:
        found = connection.execute("SELECT version_num FROM alembic_version").fetchall()
    assert found == [(after,)]
