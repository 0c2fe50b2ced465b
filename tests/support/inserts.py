"""Inserts of organizations, users, subscriptions and paid invoices for tests."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

NOW = datetime(2027, 1, 31, 10, tzinfo=UTC)

_numbers = count(1)


async def insert_organization(engine: AsyncEngine, *, currency: str = "USD") -> str:
    """Insert an organization and return its id."""
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


async def insert_user(engine: AsyncEngine, email: str | None = None) -> str:
    """Insert a user and return its id."""
    user_id = f"usr_{uuid.uuid4().hex[:12]}"
    async with engine.begin() as connection:
        await connection.execute(text("SELECT set_config('berth.role', 'ADMINISTRATOR', true)"))
        await connection.execute(
            text(
                "INSERT INTO users (id, email, name, password_hash, password_changed_at, created_at, updated_at)"
                " VALUES (:id, :email, 'Ada', '!', :now, :now, :now)"
            ),
            {"id": user_id, "email": email or f"{user_id}@example.com", "now": NOW},
        )
    return user_id


async def insert_subscription(
    engine: AsyncEngine,
    organization_id: str,
    *,
    user_id: str = "usr_1",
    entitlements: Mapping[str, Any] | None = None,
    status: str = "active",
    past_due_for: timedelta | None = None,
    currency: str = "USD",
) -> str:
    """Insert a subscription with its service, plan and price; ``past_due_for`` is the age of its debt."""
    number = next(_numbers)
    values = {
        "id": f"sub_{number}",
        "user": user_id,
        "entitlements": json.dumps(entitlements or {}),
        "service": f"svc_{number}",
        "plan": f"plan_{number}",
        "price": f"price_{number}",
        "organization": organization_id,
        "currency": currency,
        "status": status,
        "now": NOW,
        "behind": NOW - past_due_for if past_due_for is not None else None,
    }
    async with engine.begin() as connection:
        await connection.execute(text("SELECT set_config('berth.role', 'ADMINISTRATOR', true)"))
        for statement in INSERT_STATEMENTS:
            await connection.execute(text(statement), values)
    return str(values["id"])


INSERT_STATEMENTS = (
    "INSERT INTO services (id, slug, name, description, category, template_directory, version, icon)"
    " VALUES (:service, :service, 'n8n', '', 'automation', 'n8n', '1', '')",
    "INSERT INTO plans (id, service_id, code, name, interval, cpu_millicores, memory_mib, storage_gib, entitlements)"
    " VALUES (:plan, :service, :plan, 'Small', 'month', 500, 512, 5, CAST(:entitlements AS jsonb))",
    "INSERT INTO prices (id, plan_id, currency, amount_minor, effective_from)"
    " VALUES (:price, :plan, :currency, 1500, :now)",
    "INSERT INTO subscriptions (id, organization_id, user_id, plan_id, price_id, service_id, status, currency,"
    " price_minor, timezone, past_due_since, workflow_id, created_at, updated_at)"
    " VALUES (:id, :organization, :user, :plan, :price, :service, :status, :currency, 1500, 'UTC', :behind,"
    " 'subscription/' || :id, :now, :now)",
)


async def insert_open_invoice(
    engine: AsyncEngine, organization_id: str, subscription_id: str, *, amount_minor: int = 1500, currency: str = "USD"
) -> str:
    """Insert an invoice of which nothing is paid, and return its id."""
    number = next(_numbers)
    values = {
        "id": f"inv_{number}",
        "organization": organization_id,
        "subscription": subscription_id,
        "number": f"BERTH-{number}",
        "currency": currency,
        "amount": amount_minor,
        "now": NOW,
        "later": NOW + timedelta(days=30),
    }
    async with engine.begin() as connection:
        await connection.execute(
            text(
                "INSERT INTO invoices (id, organization_id, subscription_id, billing_reason, number, status, currency,"
                " period_start, period_end, subtotal_minor, tax_minor, total_minor, amount_due_minor, finalized_at,"
                " created_at) VALUES (:id, :organization, :subscription, 'renewal', :number, 'open', :currency, :now,"
                " :later, :amount, 0, :amount, :amount, :now, :now)"
            ),
            values,
        )
    return str(values["id"])


def with_payment_in_full(insert_invoice: str) -> str:
    """Return ``insert_invoice`` as one statement that also records that the wallet paid the invoice, if it is paid.

    Args:
        insert_invoice: An ``INSERT INTO invoices`` without ``RETURNING``.
    """
    return f"""
        WITH invoice AS ({insert_invoice}
            RETURNING id, organization_id, currency, status, total_minor, created_at
        ), paid AS (SELECT * FROM invoice WHERE status = 'paid' AND total_minor > 0
        ), transaction AS (
            INSERT INTO ledger_transactions
                (id, organization_id, kind, currency, customer_delta_minor, entry_count, posted_at, reference_id,
                description, idempotency_key)
            SELECT 'tx_' || id, organization_id, 'invoice', currency, 0, 2, created_at, id, 'paid', 'paid/' || id
            FROM paid
        ), entries AS (
            INSERT INTO ledger_entries (transaction_id, organization_id, account, currency, amount_minor)
            SELECT 'tx_' || id, NULL, account, currency, sign * total_minor
            FROM paid, (VALUES ('adjustments', -1), ('revenue', 1)) AS sides(account, sign)
        )
        INSERT INTO invoice_allocations (id, organization_id, invoice_id, currency, source, amount_minor,
            ledger_transaction_id, allocated_at)
        SELECT 'alc_' || id, organization_id, id, currency, 'wallet', total_minor, 'tx_' || id, created_at FROM paid
    """
