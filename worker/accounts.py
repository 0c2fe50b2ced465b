"""The accounts that a stack of its own begins with: an administrator and a customer, verified and ready to sign in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncSession

from api.passwords import Passwords
from db.queries import identity
from db.queries.identity import NewAccount
from workflows.rules.ids import derived

WANTED = (("BERTH_ADMIN", "ADMINISTRATOR", "Administrator"), ("BERTH_CUSTOMER", "USER", "Demo Customer"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """A person with an organisation of their own, in dollars and UTC. ``role`` is the platform's."""

    email: str
    password: str
    role: str
    name: str


def accounts(environ: Mapping[str, str]) -> list[Account]:
    """Those that ``BERTH_ADMIN_*`` and ``BERTH_CUSTOMER_*`` (``EMAIL`` and ``PASSWORD``) name; without, none."""
    found = []
    for prefix, role, name in WANTED:
        email, password = environ.get(f"{prefix}_EMAIL"), environ.get(f"{prefix}_PASSWORD")
        if email and password:
            found.append(Account(email=email, password=password, role=role, name=name))
    return found


async def ensure(session: AsyncSession, account: Account, passwords: Passwords, now: datetime) -> bool:
    """Create it if its address is new; else let its password be the one that is told. True when it was created."""
    known = await identity.sign_in(session, account.email)
    if known is None:
        await identity.create_account(
            session,
            NewAccount(
                user_id=derived("usr", "seed", account.email),
                organization_id=derived("org", "seed", account.email),
                email=account.email,
                name=account.name,
                password_hash=await passwords.hash(account.password),
                organization_name=account.name,
                currency="USD",
                country=None,
                timezone="UTC",
                role=account.role,
                verified=True,
            ),
            now,
        )
        return True
    right, _ = await passwords.verify(account.password, known.password_hash)
    if not right:
        await identity.set_password(session, known.user_id, await passwords.hash(account.password), now)
    return False
