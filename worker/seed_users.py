"""The accounts of a new local stack: an administrator and a customer, verified and ready to sign in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from pydantic import TypeAdapter, ValidationError
from sqlalchemy.ext.asyncio import AsyncSession

from api.environment import ConfigurationError, read_variable
from api.passwords import PasswordHasher
from api.schemas.identity import MAX_PASSWORD_LENGTH, MIN_PASSWORD_LENGTH, Email, NewPassword
from db.queries import identity
from db.queries.identity import NewAccount
from db.session import set_rls_context
from workflows.rules.ids import derive_id

SEED_USERS = (("BERTH_ADMIN", "ADMINISTRATOR", "Administrator"), ("BERTH_CUSTOMER", "USER", "Demo Customer"))

_EMAIL: TypeAdapter[str] = TypeAdapter(Email)
_PASSWORD: TypeAdapter[str] = TypeAdapter(NewPassword)


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedUser:
    """A user with one organization in US dollars and UTC. ``role`` is the role on the platform."""

    email: str
    password: str
    role: str
    name: str


def seed_users_from_environment(environ: Mapping[str, str]) -> list[SeedUser]:
    """Those that ``BERTH_ADMIN_*`` and ``BERTH_CUSTOMER_*`` (``EMAIL`` and ``PASSWORD``, or ``…_FILE``) name.

    Raises:
        ConfigurationError: A file cannot be read; one of the two is missing; no address, or a password that a
            registration would refuse.
    """
    users, faults = [], []
    for prefix, role, name in SEED_USERS:
        email, password = (read_variable(f"{prefix}_{field}", environ) for field in ("EMAIL", "PASSWORD"))
        if not email and not password:
            continue
        if not email or not password:
            faults.append(f"{prefix}_{'PASSWORD' if email else 'EMAIL'} is not set, but the other of the two is.")
            continue
        try:
            email = _EMAIL.validate_python(email)
        except ValidationError:
            faults.append(f"{prefix}_EMAIL is not a mail address.")
        try:
            _PASSWORD.validate_python(password)
        except ValidationError:
            faults.append(f"{prefix}_PASSWORD must have {MIN_PASSWORD_LENGTH} to {MAX_PASSWORD_LENGTH} characters.")
        users.append(SeedUser(email=email, password=password, role=role, name=name))
    if faults:
        raise ConfigurationError(faults)
    return users


async def create_user(session: AsyncSession, account: SeedUser, passwords: PasswordHasher, now: datetime) -> bool:
    """Create the account, and return True. An existing one stays as it is, with its password: False."""
    if await identity.find_credentials(session, account.email) is not None:
        return False
    user_id, organization_id = derive_id("usr", "seed", account.email), derive_id("org", "seed", account.email)
    await set_rls_context(session, organization_id=organization_id, user_id=user_id, role=None)
    await identity.create_user_with_organization(
        session,
        NewAccount(
            user_id=user_id,
            organization_id=organization_id,
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
