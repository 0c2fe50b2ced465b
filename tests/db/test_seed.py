"""``berth seed`` and ``berth migrate``, first and repeated."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import psycopg
import pytest

from api.environment import ConfigurationError
from tests.support.api import serve_api, settings
from tests.support.databases import DatabaseFixture
from worker import migrate, seed, seed_catalogue
from worker.seed_users import SeedUser, seed_users_from_environment

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
ADMINISTRATOR = SeedUser(email="admin@berth.example", password="first password", role="ADMINISTRATOR", name="Root")
CUSTOMER = SeedUser(email="customer@berth.example", password="second password", role="USER", name="Customer")


def test_seed_users_come_from_the_environment() -> None:
    environ = {"BERTH_ADMIN_EMAIL": "a@b.example", "BERTH_ADMIN_PASSWORD": "password"}
    assert [(account.email, account.role) for account in seed_users_from_environment(environ)] == [
        ("a@b.example", "ADMINISTRATOR")
    ]


@pytest.mark.parametrize(("name", "missing"), [("EMAIL", "PASSWORD"), ("PASSWORD", "EMAIL")])
def test_half_a_seed_user_is_refused(name: str, missing: str) -> None:
    """A typing error in one name left an installation without an administrator, and without a word."""
    with pytest.raises(ConfigurationError) as refused:
        seed_users_from_environment({f"BERTH_ADMIN_{name}": "a@b.example"})
    assert refused.value.faults == [f"BERTH_ADMIN_{missing} is not set, but the other of the two is."]


def test_a_seed_user_signs_in_as_a_registered_one_would() -> None:
    """The first administrator of an installation has no weaker password than a customer."""
    environ = {"BERTH_ADMIN_EMAIL": "administrator", "BERTH_ADMIN_PASSWORD": "abc"}
    with pytest.raises(ConfigurationError) as refused:
        seed_users_from_environment(environ)
    assert refused.value.faults == [
        "BERTH_ADMIN_EMAIL is not a mail address.",
        "BERTH_ADMIN_PASSWORD must have 8 to 256 characters.",
    ]
    (account,) = seed_users_from_environment(
        {"BERTH_ADMIN_EMAIL": " a@B.Example", "BERTH_ADMIN_PASSWORD": "long enough"}
    )
    assert account.email == "a@b.example"


def test_secrets_of_seed_users_may_be_files(tmp_path: Path) -> None:
    secret = tmp_path / "password"
    secret.write_text("from a file\n")
    environ = {"BERTH_ADMIN_EMAIL": "a@b.example", "BERTH_ADMIN_PASSWORD_FILE": str(secret)}
    assert [account.password for account in seed_users_from_environment(environ)] == ["from a file"]
    assert seed_users_from_environment(environ | {"BERTH_ADMIN_PASSWORD": "set there"})[0].password == "set there"
    with pytest.raises(ConfigurationError, match=r"^BERTH_ADMIN_PASSWORD_FILE names a file that cannot be read: "):
        seed_users_from_environment(environ | {"BERTH_ADMIN_PASSWORD_FILE": str(tmp_path / "missing")})


async def test_seeded_users_sign_in_with_their_roles_and_keep_their_passwords(database: DatabaseFixture) -> None:
    summary = await seed.seed(database.owner_url, seed_catalogue.SERVICES_DIRECTORY, [ADMINISTRATOR, CUSTOMER], NOW)
    assert summary.endswith("2 accounts, 2 new")
    other = replace(ADMINISTRATOR, password="a password of another seed")
    summary = await seed.seed(database.owner_url, seed_catalogue.SERVICES_DIRECTORY, [other, CUSTOMER], NOW)
    assert summary.endswith("0 new prices; 2 accounts, 0 new")
    async with serve_api(settings(database.api_url), database.superuser_dsn()) as api:
        for account, role in ((ADMINISTRATOR, "ADMINISTRATOR"), (CUSTOMER, "USER")):
            credentials = {"email": account.email, "password": account.password}
            token = (await api.http.post("/auth/login", json=credentials)).json()["data"]["access_token"]
            me = (await api.client(Authorization=f"Bearer {token}").get("/users/me")).json()["data"]
            assert (me["role"], me["email_verified"], me["organization"]["currency"]) == (role, True, "USD")


def test_migrating_again_finds_nothing_to_do(database: DatabaseFixture) -> None:
    before, after = migrate.migrate(database.owner_url)
    assert before == after
    with psycopg.connect(database.superuser_dsn()) as connection:
        revisions = connection.execute("SELECT version_num FROM alembic_version").fetchall()
    assert revisions == [(after,)]
