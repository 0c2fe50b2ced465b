"""The credentials of instances' first administrators: kept sealed, handed over once."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime

from sqlalchemy import bindparam, delete, func, null, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from db.driver import DIALECT, DriverStatement, fetch_one_alone
from db.models.identity import AuditEntry
from db.models.instances import Instance, InstanceCredentials


def purpose(instance_id: str) -> str:
    """Return what a sealed text is bound to: one instance's does not open as another's."""
    return f"instance_credentials/{instance_id}"


_INSERTED = insert(InstanceCredentials).values(
    {name: bindparam(name) for name in ("instance_id", "organization_id", "sealed")}
)
_KEEP = str(
    _INSERTED.on_conflict_do_update(
        index_elements=["instance_id"],
        set_={"sealed": _INSERTED.excluded.sealed},
        where=InstanceCredentials.handed_over_at.is_(None),
    )
    .returning(InstanceCredentials.instance_id)
    .compile(dialect=DIALECT)
)


async def keep_and_commit(session: AsyncSession, *, instance_id: str, organization_id: str, sealed: str) -> None:
    """Store sealed credentials, in one round trip. Those that were handed over stay handed over."""
    values = {"instance_id": instance_id, "organization_id": organization_id, "sealed": sealed}
    await fetch_one_alone(session, DriverStatement(_KEEP, values))


async def take(
    session: AsyncSession,
    *,
    instance_id: str,
    organization_id: str,
    user_id: str,
    statuses: Collection[str],
    at: datetime,
    ip: str,
    request_id: str,
) -> str | None:
    """Mark credentials as handed over, append that to the audit log, and return them, sealed; the row keeps none.

    One statement: of two concurrent calls the second waits for the first one's row lock and then finds nothing. The
    last of its transaction, as ``append_audit_entry``.

    Args:
        statuses: Those in which an instance's credentials may be handed over.

    Returns:
        None when there is nothing to hand over (any more, or yet).
    """
    available = (
        select(InstanceCredentials.instance_id, InstanceCredentials.sealed)
        .join(Instance, Instance.id == InstanceCredentials.instance_id)
        .where(
            InstanceCredentials.instance_id == instance_id,
            InstanceCredentials.organization_id == organization_id,
            InstanceCredentials.handed_over_at.is_(None),
            Instance.status.in_(statuses),
        )
        .with_for_update(of=InstanceCredentials)
        .cte("available")
    )
    taken = (
        update(InstanceCredentials)
        .where(InstanceCredentials.instance_id == available.c.instance_id)
        .values(sealed=null(), handed_over_at=func.now(), handed_over_to=user_id)
        .returning(available.c.instance_id, available.c.sealed)
        .cte("taken")
    )
    entry = {
        "organization_id": organization_id,
        "actor": user_id,
        "action": "instance.credentials_handed_over",
        "object_id": instance_id,
        "ip": ip,
        "request_id": request_id,
        "at": at,
    }
    columns = [bindparam(name, value, AuditEntry.__table__.c[name].type) for name, value in entry.items()]
    audited = insert(AuditEntry).from_select(list(entry), select(*columns).select_from(taken)).cte("audited")
    sealed: str | None = await session.scalar(select(taken.c.sealed).add_cte(audited))
    return sealed


async def handed_over_at(session: AsyncSession, instance_id: str) -> datetime | None:
    """Return when an instance's credentials were handed over, None when there are none or they still wait."""
    at: datetime | None = await session.scalar(
        select(InstanceCredentials.handed_over_at).where(InstanceCredentials.instance_id == instance_id)
    )
    return at


async def erase(session: AsyncSession, instance_id: str) -> None:
    """Delete the credentials of an instance that is deleted."""
    await session.execute(delete(InstanceCredentials).where(InstanceCredentials.instance_id == instance_id))
