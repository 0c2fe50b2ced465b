"""Declined cards are limited: an account is no place to try stolen cards, and good cards are not held up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest_asyncio

from tests.support.api import ApiFixture, RegisteredUser, parse_error
from tests.support.databases import DatabaseFixture
from tests.support.fake_workflow_client import (
    ApiWithCatalogue,
    insert_payment,
    insert_payment_method,
    serve_api_with_catalogue,
)
from workflows.ports.payments import PaymentOutcome
from workflows.rules.errors import ErrorCode, RuleViolation
from workflows.rules.payment import PaymentStatus

TOP_UP = {"amount_minor": 5000, "currency": "USD", "gateway": "stripe", "payment_method": "pm_card_visa"}
CARD = {"gateway": "stripe", "token": "pm_card_visa"}
DECLINED = PaymentOutcome(payment_id="p", status=PaymentStatus.FAILED, decline_code="generic_decline")


@pytest_asyncio.fixture
async def limited_api(database: DatabaseFixture) -> AsyncIterator[ApiWithCatalogue]:
    async with serve_api_with_catalogue(database, rate_limit="on") as fixture:
        yield fixture


async def _save_card(user: RegisteredUser) -> int:
    return (await user.http.post("/billing/payment-methods", json=CARD)).status_code


async def _top_up(user: RegisteredUser, **headers: str) -> httpx.Response:
    return await user.http.post("/billing/topups", json=TOP_UP, headers=headers or user.idempotency_header())


def _decline(api: ApiWithCatalogue) -> None:
    api.workflows.payment = DECLINED
    api.workflows.raises = RuleViolation(ErrorCode.PAYMENT_DECLINED, "The card was declined.")


def _accept(api: ApiWithCatalogue) -> None:
    api.workflows.payment, api.workflows.raises = None, None


async def _login_from(api: ApiFixture, user: RegisteredUser, address: str) -> RegisteredUser:
    await api.login(user)
    user.http = httpx.AsyncClient(
        transport=httpx.ASGITransport(api.app, client=(address, 1)),
        base_url="http://api/api/v1",
        headers={"Authorization": f"Bearer {user.tokens['access_token']}"},
    )
    return user


async def test_an_unverified_user_tries_five_declined_cards_an_hour(limited_api: ApiWithCatalogue) -> None:
    eve = await limited_api.api.login(await limited_api.api.register())
    _decline(limited_api)
    assert [await _save_card(eve) for _ in range(3)] == [402] * 3
    limited_api.workflows.raises = None
    assert [(await _top_up(eve)).status_code for _ in range(2)] == [402] * 2
    calls = len(limited_api.workflows.calls)
    refused = await _top_up(eve)
    assert (refused.status_code, parse_error(refused)["code"]) == (429, "RATE_LIMITED")
    assert 0 < int(refused.headers["Retry-After"]) <= 3600
    assert await _save_card(eve) == 429
    # Repeating the request under its key is another try.
    key = eve.idempotency_header()
    assert [(await _top_up(eve, **key)).status_code for _ in range(2)] == [429] * 2
    assert len(limited_api.workflows.calls) == calls


async def test_good_cards_of_an_unverified_user_are_not_counted(limited_api: ApiWithCatalogue) -> None:
    bob = await limited_api.api.login(await limited_api.api.register())
    assert [(await _top_up(bob)).status_code for _ in range(7)] == [201] * 7
    assert [await _save_card(bob) for _ in range(7)] == [201] * 7


async def test_a_declined_top_up_is_counted_once_however_often_it_is_repeated(limited_api: ApiWithCatalogue) -> None:
    bob = await limited_api.api.login(await limited_api.api.register())
    _decline(limited_api)
    limited_api.workflows.raises = None
    key = bob.idempotency_header()
    assert [(await _top_up(bob, **key)).status_code for _ in range(8)] == [402] * 8
    _accept(limited_api)
    assert (await _top_up(bob)).status_code == 201


async def test_a_verified_user_has_more_tries_and_they_end_too(limited_api: ApiWithCatalogue) -> None:
    customer = limited_api.customer
    _decline(limited_api)
    assert [await _save_card(customer) for _ in range(21)] == [402] * 20 + [429]


async def test_tries_of_a_verified_user_are_bounded_while_none_is_declined_yet(limited_api: ApiWithCatalogue) -> None:
    assert [await _save_card(limited_api.customer) for _ in range(22)] == [201] * 20 + [429] * 2


async def test_many_verified_organizations_at_one_address_share_a_limit(limited_api: ApiWithCatalogue) -> None:
    api = limited_api.api
    users = []
    for number in range(6):
        transport = httpx.ASGITransport(api.app, client=(f"10.0.0.{number}", 1))
        api.http = httpx.AsyncClient(transport=transport, base_url="http://api/api/v1")
        user = await api.register()
        await api.verify(user)
        users.append(await _login_from(api, user, "10.9.9.9"))
    _decline(limited_api)
    for user in users[:5]:
        assert [await _save_card(user) for _ in range(20)] == [402] * 20
    assert await _save_card(users[5]) == 429
    assert await _save_card(await _login_from(api, users[5], "10.9.9.10")) == 402


async def test_verifying_the_address_lifts_the_lower_limit_without_a_new_token(limited_api: ApiWithCatalogue) -> None:
    bob = await limited_api.api.login(await limited_api.api.register())
    _decline(limited_api)
    assert [await _save_card(bob) for _ in range(6)] == [402] * 5 + [429]
    await limited_api.api.verify(bob)
    _accept(limited_api)
    assert await _save_card(bob) == 201


async def test_many_unverified_organizations_at_one_address_share_a_limit(limited_api: ApiWithCatalogue) -> None:
    api = limited_api.api
    users = []
    for number in range(5):
        transport = httpx.ASGITransport(api.app, client=(f"10.0.0.{number}", 1))
        api.http = httpx.AsyncClient(transport=transport, base_url="http://api/api/v1")
        users.append(await _login_from(api, await api.register(), "10.9.9.9"))
    _decline(limited_api)
    for user in users[:4]:
        assert [await _save_card(user) for _ in range(5)] == [402] * 5
    assert await _save_card(users[4]) == 429
    elsewhere = await _login_from(api, users[4], "10.9.9.10")
    assert await _save_card(elsewhere) == 402


async def test_organizations_at_the_addresses_of_one_ipv6_network_share_a_limit(limited_api: ApiWithCatalogue) -> None:
    """One client may use a whole /64."""
    api = limited_api.api
    users = []
    for number in range(5):
        transport = httpx.ASGITransport(api.app, client=(f"10.0.0.{number}", 1))
        api.http = httpx.AsyncClient(transport=transport, base_url="http://api/api/v1")
        users.append(await _login_from(api, await api.register(), f"2001:db8:0:1::{number}"))
    _decline(limited_api)
    for user in users[:4]:
        assert [await _save_card(user) for _ in range(5)] == [402] * 5
    assert await _save_card(users[4]) == 429
    assert await _save_card(await _login_from(api, users[4], "2001:db8:0:2::4")) == 402


async def test_tries_at_the_same_time_are_bounded(limited_api: ApiWithCatalogue) -> None:
    eve = await limited_api.api.login(await limited_api.api.register())
    _decline(limited_api)
    statuses = await asyncio.gather(*(_save_card(eve) for _ in range(40)))
    assert set(statuses) == {402, 429}
    assert statuses.count(402) <= 20


def _rewrite(api: ApiWithCatalogue, statement: str, *values: object) -> None:
    """Change columns of payments that stand as they were inserted, so that rows of other days can be arranged."""
    api.api.execute("ALTER TABLE payments DISABLE TRIGGER keeps_columns")
    api.api.execute(statement, *values)
    api.api.execute("ALTER TABLE payments ENABLE TRIGGER keeps_columns")


def _decline_later(api: ApiWithCatalogue, user: RegisteredUser, payment_id: str | None = None) -> None:
    """Record a top-up that its gateway declined after the API had answered, or with the id of one that it answered."""
    inserted = insert_payment(api.api, user, status="failed", payment_id=payment_id)
    _rewrite(api, "UPDATE payments SET created_at = now(), updated_at = now() WHERE id = %s", inserted)


async def test_a_top_up_that_is_declined_after_its_response_is_counted(limited_api: ApiWithCatalogue) -> None:
    eve = await limited_api.api.login(await limited_api.api.register())
    limited_api.workflows.times_out = True
    for _ in range(5):
        assert (await _top_up(eve)).status_code == 202
        _decline_later(limited_api, eve)
    calls = len(limited_api.workflows.calls)
    assert (await _top_up(eve)).status_code == 429
    assert await _save_card(eve) == 429
    assert len(limited_api.workflows.calls) == calls
    # It is counted for its organization alone.
    bob = await limited_api.api.login(await limited_api.api.register())
    assert (await _top_up(bob)).status_code == 202


async def test_a_declined_top_up_is_counted_once_by_its_response_and_its_row(limited_api: ApiWithCatalogue) -> None:
    eve = await limited_api.api.login(await limited_api.api.register())
    _decline(limited_api)
    limited_api.workflows.raises = None
    for _ in range(5):
        declined = await _top_up(eve)
        assert declined.status_code == 402
        _decline_later(limited_api, eve, parse_error(declined)["details"]["payment_id"])
    assert (await _top_up(eve)).status_code == 429


async def test_a_decline_of_an_earlier_hour_is_not_counted(limited_api: ApiWithCatalogue) -> None:
    eve = await limited_api.api.login(await limited_api.api.register())
    for _ in range(5):
        _decline_later(limited_api, eve)
    limited_api.api.execute("UPDATE payments SET updated_at = now() - interval '61 minutes'")
    assert (await _top_up(eve)).status_code == 201


def _decline_saved_card(api: ApiWithCatalogue, purpose: str, card_id: str) -> None:
    payment_id = insert_payment(api.api, api.customer, status="failed")
    _rewrite(
        api, "UPDATE payments SET purpose = %s, payment_method_id = %s WHERE id = %s", purpose, card_id, payment_id
    )


async def test_saved_cards_that_orders_and_invoices_find_declined_are_counted_once_each(
    limited_api: ApiWithCatalogue,
) -> None:
    for number in range(20):
        card_id = insert_payment_method(limited_api.api, limited_api.customer, default=False)
        for _ in range(2):
            _decline_saved_card(limited_api, "order" if number % 2 else "invoice", card_id)
        if number == 18:
            assert await _save_card(limited_api.customer) == 201
    assert await _save_card(limited_api.customer) == 429


async def test_renewals_that_a_card_with_payments_does_not_pay_are_not_counted(limited_api: ApiWithCatalogue) -> None:
    for _ in range(25):
        card_id = insert_payment_method(limited_api.api, limited_api.customer, default=False)
        paid = insert_payment(limited_api.api, limited_api.customer)
        _rewrite(limited_api, "UPDATE payments SET payment_method_id = %s WHERE id = %s", card_id, paid)
        _decline_saved_card(limited_api, "invoice", card_id)
    assert await _save_card(limited_api.customer) == 201


async def test_an_organization_orders_ten_trials_an_hour(limited_api: ApiWithCatalogue) -> None:
    """A trial that did not start can be ordered again, and costs nothing; a plan that is paid is not limited."""
    limited_api.workflows.inserts_subscription = False
    ada = limited_api.customer

    async def order(plan: str, **headers: str) -> int:
        headers = headers or ada.idempotency_header()
        return (await ada.http.post("/subscriptions", json={"plan_id": plan}, headers=headers)).status_code

    key = ada.idempotency_header()
    assert [await order("n8n-trial", **key) for _ in range(12)] == [202] * 12, "a retry is the same order"
    assert [await order("n8n-trial") for _ in range(10)] == [202] * 9 + [429]
    refused = ada.idempotency_header()
    assert [await order("n8n-trial", **refused) for _ in range(2)] == [429] * 2, "a repetition is refused as well"
    assert await order("n8n-starter") == 202
