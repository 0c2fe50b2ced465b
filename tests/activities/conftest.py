"""Fixtures of the activities: billing on a database, payments with the card gateway's sandbox, mails with a mailbox."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from deploy.local.mailbox import Mailbox
from tests.support.billing_fixture import BillingFixture, create_billing_fixture
from tests.support.databases import DatabaseFixture
from tests.support.notification_fixture import RECIPIENT, NotificationFixture
from tests.support.payment_fixture import PaymentFixture, create_payment_fixture
from tests.support.sandboxes import StripeEndpoint


@pytest_asyncio.fixture
async def payments(database: DatabaseFixture, stripe: StripeEndpoint) -> AsyncIterator[PaymentFixture]:
    async with create_payment_fixture(database, stripe) as opened:
        yield opened


@pytest_asyncio.fixture
async def billing(database: DatabaseFixture) -> AsyncIterator[BillingFixture]:
    """Open the billing fixture. Assert at the end that the ledger and the allocations agree with the invoices."""
    fixture = await create_billing_fixture(database)
    yield fixture
    await fixture.assert_ledger_balanced()
    await fixture.assert_allocations_match_invoices()


@pytest_asyncio.fixture
async def mailbox() -> AsyncIterator[Mailbox]:
    async with Mailbox() as opened:
        yield opened


@pytest.fixture
def notifications(database: DatabaseFixture, mailbox: Mailbox) -> NotificationFixture:
    fixture = NotificationFixture(database, mailbox.smtp_port)
    fixture.insert_user(RECIPIENT)
    return fixture
