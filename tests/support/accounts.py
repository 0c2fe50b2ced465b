"""Accounts and what they owe, put straight into the database for tests of what is done with them."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta
from itertools import count

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from db.session import Sessions, session_factory

NOW = datetime(2027, 1, 31, 10, tzinfo=UTC)

_numbers = count(1)


def sessions_of(engine: AsyncEngine) -> Sessions:
    return session_factory(engine)


async def account(engine: AsyncEngine, *, currency: str = "USD") -> str:
    """Insert an organisation and return its id."""
    # Gateways outlive a test's database, so ids do not repeat.
    organization_id = f"org_{uuid.uuid4().hex[:12]}"
    async with engine.begin() as connection:
        await connection.execute(text("SELECT set_config('berth.role', 'ADMINISTRATOR', true)"))
        await connection.execute(
            text(
                "INSERT INTO organizations (id, name, currency, timezone, created_at, updated_at)"
                " VALUES (:id, :id, :currency, 'UTC', :now, :now)"
            ),
            {"id": organization_id, "currency": currency, "now": NOW},
        )
    return organization_id


async def subscription(
    engine: AsyncEngine,
    organization_id: str,
    *,
    status: str = "active",
    behind: timedelta | None = None,
    currency: str = "USD",
) -> str:
    """Insert a subscription with a service, a plan and a price of its own; ``behind`` is the age of its debt."""
    number = next(_numbers)
    values = {
        "id": f"sub_{number}",
        "service": f"svc_{number}",
        "plan": f"plan_{number}",
        "price": f"price_{number}",
        "organization": organization_id,
        "currency": currency,
        "status": status,
        "now": NOW,
        "behind": NOW - behind if behind is not None else None,
    }
    async with engine.begin() as connection:
        await connection.execute(text("SELECT set_config('berth.role', 'ADMINISTRATOR', true)"))
        for statement in _SUBSCRIPTION:
            await connection.execute(text(statement), values)
    return str(values["id"])


_SUBSCRIPTION = (
    "INSERT INTO services (id, slug, name, description, category, template, version, icon)"
    " VALUES (:service, :service, 'n8n', '', 'automation', 'n8n', '1', '')",
    "INSERT INTO plans (id, service_id, code, name, interval, cpu_millicores, memory_mib, storage_gib)"
    " VALUES (:plan, :service, :plan, 'Small', 'month', 500, 512, 5)",
    "INSERT INTO prices (id, plan_id, currency, amount_minor, effective_from)"
    " VALUES (:price, :plan, :currency, 1500, :now)",
    "INSERT INTO subscriptions (id, organization_id, user_id, plan_id, price_id, service_id, status, currency,"
    " price_minor, timezone, first_failure_at, workflow_id, created_at, updated_at)"
    " VALUES (:id, :organization, 'usr_1', :plan, :price, :service, :status, :currency, 1500, 'UTC', :behind,"
    " 'subscription/' || :id, :now, :now)",
)
