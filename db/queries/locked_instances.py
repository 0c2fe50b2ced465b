"""Provisioning's transactions on an instance: one statement locks and reads, one writes and commits.

An order makes each of them while its customer waits; SQLAlchemy would wait four or five times instead of twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from psycopg.types.json import Jsonb
from sqlalchemy import bindparam, select, update
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import AsyncSession

from db.driver import DIALECT, DriverStatement, begin_and_fetch_one, execute_together, fetch_one_alone
from db.models.catalogue import Plan
from db.models.identity import User
from db.models.instances import Instance
from db.models.subscriptions import Subscription
from workflows.rules.errors import ErrorCode, RuleViolation

_COLUMNS = Instance.__table__.columns


@dataclass(frozen=True, slots=True, kw_only=True)
class LockedInstance:
    """An instance and what its order says of it.

    Attributes:
        instance: As its row says; it belongs to no session.
        plan_entitlements: Those of the subscription's present plan.
        customer_email: The address of the user who ordered; empty when the user does not exist.
    """

    instance: Instance
    plan_entitlements: dict[str, Any]
    customer_email: str


_READ = select(*_COLUMNS).where(Instance.id == bindparam("instance_id"))
_LOCK = (
    _READ.add_columns(Plan.entitlements.label("plan_entitlements"), User.email.label("customer_email"))
    .join(Subscription, Subscription.id == Instance.subscription_id)
    .join(Plan, Plan.id == Subscription.plan_id)
    .outerjoin(User, User.id == Subscription.user_id)
    .with_for_update(of=Instance)
)
_READ_SQL, _LOCK_SQL = str(_READ.compile(dialect=DIALECT)), str(_LOCK.compile(dialect=DIALECT))


async def read_instance(session: AsyncSession, instance_id: str) -> Instance | None:
    """Return an instance that belongs to no session, None when there is none; one round trip, no transaction."""
    row = await fetch_one_alone(session, DriverStatement(_READ_SQL, {"instance_id": instance_id}))
    return None if row is None else Instance(**row)


async def begin_with_locked_instance(session: AsyncSession, instance_id: str) -> LockedInstance:
    """Begin a transaction, and lock and return an instance; one round trip.

    Raises:
        RuleViolation: ``NOT_FOUND``.
    """
    row = await begin_and_fetch_one(session, DriverStatement(_LOCK_SQL, {"instance_id": instance_id}))
    if row is None:
        raise RuleViolation(ErrorCode.NOT_FOUND, f"There is no instance {instance_id}.")
    plan_entitlements, email = row.pop("plan_entitlements"), row.pop("customer_email")
    return LockedInstance(instance=Instance(**row), plan_entitlements=plan_entitlements, customer_email=email or "")


async def write_and_commit(session: AsyncSession, instance_id: str, **columns: Any) -> None:
    """Write columns of an instance and commit, in one round trip."""
    values = {name: Jsonb(value) if _is_json(name) else value for name, value in columns.items()}
    statement = DriverStatement(_update_sql(tuple(columns)), {"instance_id": instance_id, **values})
    await execute_together(session, statement, commit=True)


@lru_cache
def _update_sql(columns: tuple[str, ...]) -> str:
    statement = update(Instance).where(Instance.id == bindparam("instance_id"))
    return str(statement.values({name: bindparam(name) for name in columns}).compile(dialect=DIALECT))


def _is_json(column: str) -> bool:
    return isinstance(_COLUMNS[column].type, JSONB)
