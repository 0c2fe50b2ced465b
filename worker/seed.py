"""``berth seed``: the catalogue from the service templates, and the two demonstration accounts. Again is harmless."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from datetime import UTC, datetime
from pathlib import Path

from api.passwords import PasswordHasher
from db.session import create_database_engine, session_factory
from worker import seed_catalogue
from worker.owner_database import read_owner_database_url, require_schema
from worker.seed_users import SeedUser, create_user, seed_users_from_environment


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--services", type=Path, default=seed_catalogue.SERVICES_DIRECTORY, help="folder of the service templates"
    )
    parser.epilog = (
        "The database is BERTH_OWNER_DATABASE_URL; BERTH_{ADMIN,CUSTOMER}_{EMAIL,PASSWORD} are the accounts, which are"
        " created and never changed. Each variable may be a file that ..._FILE names."
    )


def run(arguments: argparse.Namespace) -> int:
    url = read_owner_database_url()
    require_schema(url)
    sys.stdout.write(
        asyncio.run(seed(url, arguments.services, seed_users_from_environment(os.environ), datetime.now(UTC))) + "\n"
    )
    return 0


async def seed(url: str, services: Path, users: list[SeedUser], now: datetime) -> str:
    """Write everything in one transaction and say what was done. ``url`` is SQLAlchemy's."""
    offered = seed_catalogue.load_catalogue(services)
    engine = create_database_engine(url, pool_size=1)
    try:
        async with session_factory(engine).begin() as session:
            written = await seed_catalogue.upsert_catalogue(session, offered, now)
            created = 0
            if users:
                passwords = PasswordHasher()
                for account in users:
                    created += await create_user(session, account, passwords, now)
    finally:
        await engine.dispose()
    return (
        f"{written.services} services, {written.plans} plans, {written.prices} new prices;"
        f" {len(users)} accounts, {created} new"
    )
