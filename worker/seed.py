"""``berth seed``: the catalogue from the service templates, and the two demonstration accounts. Again is harmless."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from datetime import UTC, datetime
from pathlib import Path

from api.passwords import Passwords
from db.session import create_engine, session_factory
from worker import catalogue
from worker.accounts import Account, accounts, ensure


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--services", type=Path, default=catalogue.SERVICES, help="folder of the service templates")
    parser.epilog = (
        "The database is BERTH_OWNER_DATABASE_URL; BERTH_{ADMIN,CUSTOMER}_{EMAIL,PASSWORD} are the accounts."
    )


def run(told: argparse.Namespace) -> int:
    url = os.environ.get("BERTH_OWNER_DATABASE_URL")
    if not url:
        raise SystemExit("BERTH_OWNER_DATABASE_URL is not set: the seed writes as the owner of the schema")
    sys.stdout.write(asyncio.run(seed(url, told.services, accounts(os.environ), datetime.now(UTC))) + "\n")
    return 0


async def seed(url: str, services: Path, people: list[Account], now: datetime) -> str:
    """Write everything in one transaction and say what was done. ``url`` is SQLAlchemy's."""
    offered = catalogue.offers(services)
    engine = create_engine(url, pool_size=1)
    try:
        async with session_factory(engine).begin() as session:
            written = await catalogue.write(session, offered, now)
            created = 0
            if people:
                passwords = Passwords()
                for account in people:
                    created += await ensure(session, account, passwords, now)
    finally:
        await engine.dispose()
    return (
        f"{written.services} services, {written.plans} plans, {written.prices} new prices;"
        f" {len(people)} accounts, {created} new"
    )
