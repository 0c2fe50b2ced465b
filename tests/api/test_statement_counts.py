"""Statements, transactions and round trips of each route, counted on the wire between the API and PostgreSQL."""

from __future__ import annotations

import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import httpx
import pytest_asyncio
from fastapi.routing import APIRoute
from pydantic import SecretStr, TypeAdapter
from starlette.routing import Route

from api import routers
from api.pagination import MAX_LIMIT
from db.encryption import FieldEncryption
from db.queries import credentials
from tests.api.statement_costs import COSTS, NOT_MEASURED
from tests.support.api import PASSWORD, RegisteredUser
from tests.support.databases import DatabaseFixture
from tests.support.fake_workflow_client import (
    NOW,
    PRO,
    STARTER,
    ApiWithCatalogue,
    insert_invoice,
    insert_ledger_transaction,
    insert_payment,
    insert_payment_method,
    insert_refund,
    instance_id_for,
    serve_api_with_catalogue,
)
from tests.support.postgres_proxy import PostgresProxy, WireCost, proxy_to
from workflows.rules.ids import derive_id

SECRET, SERVER_KEY = "whsec_of_a_test", "SB-Mid-server-test"
MAX_TRANSACTIONS = 2
MAX_ROUND_TRIPS_OF_A_READ = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Records:
    """One record of each kind, and the API in front of them."""

    proxy: PostgresProxy
    catalogue: ApiWithCatalogue
    administrator: RegisteredUser
    parameters: dict[str, str]

    @property
    def customer(self) -> RegisteredUser:
        return self.catalogue.customer


@pytest_asyncio.fixture
async def records(database: DatabaseFixture) -> AsyncIterator[Records]:
    overrides = {
        "stripe_webhook_secret": SecretStr(SECRET),
        "midtrans_server_key": SecretStr(SERVER_KEY),
        "razorpay_webhook_secret": SecretStr(SECRET),
        "revocation_refresh_seconds": 600,
    }
    async with (
        proxy_to(database.api_url) as proxy,
        serve_api_with_catalogue(database, **overrides, api_database_url=SecretStr(proxy.url)) as catalogue,
    ):
        api, customer = catalogue.api, catalogue.customer
        subscription = catalogue.insert_subscription()
        instance = instance_id_for(subscription)
        invoice = insert_invoice(api, customer, subscription)
        insert_ledger_transaction(api, customer.organization_id, "top_up", 5000)
        operation = derive_id("op", instance)
        api.execute(
            "INSERT INTO instance_operations (id, organization_id, instance_id, kind, status, actor, created_at)"
            " VALUES (%s, %s, %s, 'restart', 'succeeded', 'usr_1', %s)",
            *(operation, customer.organization_id, instance, NOW),
        )
        api.execute(
            "INSERT INTO documents (id, organization_id, kind, subject_id, subject_status, content_sha256, content)"
            " VALUES (%s, %s, 'invoice_pdf', %s, 'paid', 'abc', '%%PDF-1.4')",
            *(derive_id("doc", "invoice_pdf", invoice), customer.organization_id, invoice),
        )
        encryption = FieldEncryption(api.context.settings.encryption_keys)
        api.execute(
            "INSERT INTO instance_credentials (instance_id, organization_id, sealed) VALUES (%s, %s, %s)",
            *(instance, customer.organization_id),
            encryption.encrypt_mapping(
                {"url": "https://n8n.apps.test", "username": "ada", "password": "p"},
                purpose=credentials.purpose(instance),
            ),
        )
        payment = insert_payment(api, customer)
        yield Records(
            proxy=proxy,
            catalogue=catalogue,
            administrator=await api.administrator(),
            parameters={
                "subscription_id": subscription,
                "instance_id": instance,
                "operation_id": operation,
                "kind": "restart",
                "invoice_id": invoice,
                "payment_id": payment,
                "refund_id": insert_refund(api, customer, payment, derive_id("ref", payment)),
                "payment_method_id": insert_payment_method(api, customer),
                "slug": "n8n",
                "plan_id": PRO,
                "code": "WELCOME10",
                "name": "swagger-ui.css",
            },
        )


Body = dict[str, Any]
BodyFactory = Callable[[Records], Awaitable[Body]]


async def _verification(records: Records) -> Body:
    user = await records.catalogue.api.register()
    return {"token": records.catalogue.api.latest_mail_token(user.email)}


async def _password_reset(records: Records) -> Body:
    api = records.catalogue.api
    user = await api.register()
    await api.verify(user)
    await api.http.post("/auth/forgot-password", json={"email": user.email})
    return {"token": api.latest_mail_token(user.email, "password_reset"), "password": "another long password"}


async def _refresh(records: Records) -> Body:
    user = await records.catalogue.api.register_verified_user()
    return {"refresh_token": user.tokens["refresh_token"]}


TOP_UP = {"amount_minor": 5000, "currency": "USD", "gateway": "stripe", "payment_method": "pm_card_visa"}
PLAN = {
    "service": "n8n", "code": "n8n-team", "name": "Team", "interval": "month", "cpu_millicores": 1000,
    "memory_mib": 1024, "storage_gib": 10, "prices": [{"amount_minor": 9900, "currency": "USD"}],
}  # fmt: skip
SERVICE = {
    "slug": "gitea", "name": "Gitea", "description": "Git", "category": "development", "template": "gitea",
    "version": "1",
}  # fmt: skip
COUPON = {"code": "HALF", "kind": "percent", "percent": 50, "duration": "once"}

BODIES: dict[str, Body | BodyFactory] = {
    "POST /api/v1/auth/register": {"email": "new@example.com", "password": PASSWORD, "name": "New"},
    "POST /api/v1/auth/verify-email": _verification,
    "POST /api/v1/auth/refresh": _refresh,
    "POST /api/v1/auth/logout": _refresh,
    "POST /api/v1/auth/reset-password": _password_reset,
    "PATCH /api/v1/users/me": {"name": "Ada L", "organization": {"name": "Analytical Engines"}},
    "POST /api/v1/users/me/password": {"current_password": PASSWORD, "password": "another long password"},
    "POST /api/v1/subscriptions": {"plan_id": STARTER, "parameters": {"timezone": "Europe/Paris"}},
    "POST /api/v1/subscriptions/{subscription_id}/cancel": {"at": "period_end"},
    "POST /api/v1/subscriptions/{subscription_id}/change-plan": {"plan_id": PRO},
    "POST /api/v1/payments/create-intent": TOP_UP,
    "POST /api/v1/billing/topups": TOP_UP,
    "POST /api/v1/billing/payment-methods": {"gateway": "stripe", "token": "pm_card_visa"},
    "POST /api/v1/admin/services": SERVICE,
    "POST /api/v1/admin/plans": PLAN,
    "POST /api/v1/admin/plans/{plan_id}/prices": {"amount_minor": 10900, "currency": "USD"},
    "POST /api/v1/admin/coupons": COUPON,
}
FORMS: dict[str, BodyFactory] = {"POST /verify-email": _verification, "POST /reset-password": _password_reset}
QUERIES = {"GET /api/v1/plans/compare": {"plans": f"{STARTER},{PRO}"}}


def _body(records: Records, key: str) -> Body | BodyFactory | None:
    email = {"email": records.customer.email}
    bodies: dict[str, Body] = {
        "POST /api/v1/auth/login": email | {"password": PASSWORD},
        "POST /api/v1/auth/forgot-password": email,
        "POST /api/v1/admin/billing/adjustments": {
            "organization_id": records.customer.organization_id, "amount_minor": 100, "currency": "USD",
            "reason": "test",
        },
        "POST /api/v1/admin/billing/refunds": {
            "payment_id": records.parameters["payment_id"], "to": "source", "reason": "test",
        },
    }  # fmt: skip
    return bodies.get(key) or BODIES.get(key)


def _webhook(records: Records, key: str) -> tuple[bytes, dict[str, str]]:
    """Return a signed event of a gateway and its headers."""
    payment = records.parameters["payment_id"]
    (row,) = records.catalogue.api.query_as_superuser("SELECT * FROM payments WHERE id = %s", payment)
    if key.endswith("razorpay"):
        entity = {
            "id": row["gateway_reference"], "amount": 1500, "currency": "USD", "order_id": "order_1",
            "notes": {"berth_payment": payment, "berth_organization": row["organization_id"]},
        }  # fmt: skip
        content = json.dumps({"event": "payment.captured", "payload": {"payment": {"entity": entity}}}).encode()
        digest = hmac.new(SECRET.encode(), content, hashlib.sha256).hexdigest()
        return content, {"X-Razorpay-Signature": digest, "X-Razorpay-Event-Id": "evt_r"}
    if key.endswith("midtrans"):
        signed = hashlib.sha512(f"{payment}20015.00{SERVER_KEY}".encode()).hexdigest()
        body = {
            "order_id": payment, "status_code": "200", "gross_amount": "15.00", "signature_key": signed,
            "transaction_id": "tx_1", "transaction_status": "settlement", "currency": "USD", "fraud_status": "accept",
        }  # fmt: skip
        return json.dumps(body).encode(), {}
    intent = {
        "id": row["gateway_reference"], "amount": 1500, "amount_received": 1500, "currency": "usd",
        "metadata": {"berth_payment": payment, "berth_organization": row["organization_id"]},
    }  # fmt: skip
    event = {"id": f"evt {key}", "type": "payment_intent.succeeded", "data": {"object": intent}}
    content, at = json.dumps(event).encode(), str(int(time.time()))
    digest = hmac.new(SECRET.encode(), f"{at}.".encode() + content, hashlib.sha256).hexdigest()
    return content, {"Stripe-Signature": f"t={at},v1={digest}"}


def _routes() -> dict[str, Route]:
    """Return each route of the sandbox by method and path template."""
    return {
        f"{method} {route.path}": route
        for route in routers.all_routes(sandbox=True)
        if isinstance(route, Route)
        for method in (route.methods or set()) - {"HEAD"}
    }


async def _request(records: Records, key: str) -> httpx.Request:
    """Build the request of a route, after whatever its body needs."""
    method, path = key.split(" ")
    user = records.administrator if "/admin/" in path else records.customer
    if key in ("POST /api/v1/users/me/password", "POST /api/v1/auth/logout"):
        user = await records.catalogue.api.register_verified_user()
    parameters = records.parameters | {"session_id": "ses_none"}
    if key.startswith("DELETE /api/v1/users/me/sessions"):
        second_session = await records.catalogue.api.login(user)
        parameters["session_id"] = (
            second_session.tokens["access_token"]
            and records.catalogue.api.query_as_superuser(
                "SELECT id FROM user_sessions WHERE user_id = %s ORDER BY created_at LIMIT 1", user.user_id
            )[0]["id"]
        )
        user = second_session
    target = f"http://api{path.format(**parameters)}"
    query = QUERIES.get(key, {})
    if "/admin/billing/transactions" in path:
        query = {"organization_id": records.customer.organization_id}
    if "/webhook" in path:
        content, headers = _webhook(records, key)
        return httpx.Request(method, target, content=content, headers=headers | {"Content-Type": "application/json"})
    headers = {"Authorization": user.http.headers["Authorization"]}
    if method == "POST" and ("/subscriptions" in path or "/billing/" in path or "/payments/" in path):
        headers |= user.idempotency_header()
    if key in FORMS:
        return httpx.Request(method, target, data=await FORMS[key](records))
    body = _body(records, key)
    if callable(body):
        body = await body(records)
    return httpx.Request(method, target, params=query, json=body, headers=headers)


async def test_each_route_executes_the_counted_statements(records: Records) -> None:
    measured: dict[str, WireCost] = {}
    failed: dict[str, str] = {}
    engine = records.catalogue.api.context.sessions.kw["bind"]
    for key in _routes():
        if key in NOT_MEASURED:
            continue
        request = await _request(records, key)
        # On a connection that is open and has prepared nothing, the cost does not depend on earlier requests.
        await engine.dispose()
        async with engine.connect():
            pass
        records.proxy.reset()
        response = await records.catalogue.api.http.send(request)
        await records.catalogue.api.context.wait_for_tasks_after_responses()
        measured[key] = records.proxy.cost()
        if not response.is_success and not response.is_redirect:
            failed[key] = response.text

    assert failed == {}
    assert measured == COSTS


async def test_each_read_returns_what_its_model_declares(records: Records) -> None:
    returned: dict[str, Any] = {}
    declared: dict[str, Any] = {}
    for key, route in _routes().items():
        if not key.startswith("GET ") or not isinstance(route, APIRoute) or route.response_model is None:
            continue
        response = await records.catalogue.api.http.send(await _request(records, key))
        model: TypeAdapter[Any] = TypeAdapter(route.response_model)
        returned[key] = response.json()
        # Instants are in UTC, and no member is left out or added.
        declared[key] = model.dump_python(
            model.validate_json(response.content, by_alias=False, by_name=True), mode="json"
        )
    assert returned.keys() >= {"GET /api/v1/subscriptions/{subscription_id}", "GET /api/v1/billing/transactions"}
    assert returned == declared


async def test_a_list_without_a_query_is_that_of_the_default_parameters(records: Records) -> None:
    for path in ("/subscriptions", "/instances", "/billing/transactions", "/billing/invoices"):
        without_query = (await records.customer.http.get(path)).json()
        with_defaults = (await records.customer.http.get(path, params={"limit": MAX_LIMIT})).json()
        assert len(without_query["data"]) == 1
        assert (without_query["data"], without_query["meta"]) == (with_defaults["data"], with_defaults["meta"])


def test_the_table_lists_every_route() -> None:
    assert set(_routes()) == COSTS.keys() | NOT_MEASURED.keys()


def test_no_route_takes_three_transactions_and_no_read_takes_four_round_trips() -> None:
    assert {key for key, cost in COSTS.items() if cost.transactions > MAX_TRANSACTIONS} == set()
    reads = {key: cost for key, cost in COSTS.items() if key.startswith("GET ")}
    assert {key for key, cost in reads.items() if cost.round_trips > MAX_ROUND_TRIPS_OF_A_READ} == set()
