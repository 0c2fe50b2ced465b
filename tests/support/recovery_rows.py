"""The recovery's activities, and rows of payments as a lost run leaves them."""

from __future__ import annotations

from typing import Any

from sqlalchemy import text

from activities.recovery import PostgresRecoveryActivities
from tests.support.billing_fixture import ORDERED_AT, ORGANIZATION, BillingFixture
from workflows.rules.funding import GatewayTerms


def recovery_activities(billing: BillingFixture) -> PostgresRecoveryActivities:
    return PostgresRecoveryActivities(billing.sessions, {"stripe": GatewayTerms(name="stripe")})


async def insert_payment(billing: BillingFixture, subscription_id: str, amount: int, **columns: Any) -> None:
    """Insert the row of a card payment, without its ledger transaction."""
    values = {
        "id": "pay_1",
        "organization_id": ORGANIZATION,
        "subscription_id": subscription_id,
        "purpose": "invoice",
        "gateway": "stripe",
        "amount_minor": amount,
        "currency": "USD",
        "idempotency_key": "pay_1:1",
        "workflow_id": "payment/pay_1",
        "created_at": ORDERED_AT,
        "updated_at": ORDERED_AT,
        "succeeded_at": ORDERED_AT if columns.get("captured_minor") else None,
        **columns,
    }
    places = ", ".join(f":{name}" for name in values)
    async with billing.sessions.begin() as session:
        await session.execute(text(f"INSERT INTO payments ({', '.join(values)}) VALUES ({places})"), values)
