"""The same order under the same key is done once and answered the same, whatever happens meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import httpx
import pytest
import structlog
from fastapi import APIRouter
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.responses import Response

from api.errors import ApiError, unavailable_error
from api.idempotency import WAIT_SECONDS, OptionalIdempotency, RequiredIdempotency
from api.response_envelope import JsonResponse, RequestModel, success
from db.queries import identity
from tests.support.api import ApiFixture, parse_error
from tests.support.databases import DatabaseFixture
from tests.support.fake_workflow_client import PRO, STARTER, ApiWithCatalogue, insert_payment_method
from tests.support.wait import DEFAULT_TIMEOUT, scale_timeout, wait_until
from workflows.rules.errors import ErrorCode, RuleViolation


class OrderBody(RequestModel):
    amount: int = 1
    note: str = ""


async def wait_for_claim(api: ApiFixture) -> None:
    """Wait until the claim of the only key is committed: that happens beside the work."""
    await wait_until(
        lambda: api.query_as_superuser("SELECT 1 FROM idempotency_records"), description="the claim is committed"
    )


async def prepare_nothing(_: AsyncSession) -> None:
    return None


class OrderRoutes:
    """Routes that count how often their work runs. ``work`` replaces what the work does."""

    def __init__(self, api: ApiFixture) -> None:
        self.done = 0
        self.work: Callable[[], Awaitable[None]] = self._do_nothing
        router = APIRouter()

        @router.post("/api/v1/orders/{name}", status_code=201)
        async def order(name: str, body: OrderBody, once: RequiredIdempotency) -> Response:
            async def work() -> JsonResponse:
                self.done += 1
                number = self.done
                await self.work()
                return success({"number": number, "amount": body.amount}, status=201)

            return await once.run(prepare_nothing, lambda _: work())

        @router.post("/api/v1/may/{name}")
        async def may(name: str, body: OrderBody, once: OptionalIdempotency) -> Response:
            async def work() -> JsonResponse:
                self.done += 1
                return success({"number": self.done})

            return await once.run(prepare_nothing, lambda _: work())

        @router.post("/api/v1/presented", status_code=201)
        async def presented(body: OrderBody, once: RequiredIdempotency) -> Response:
            async def work(_: None) -> int:
                self.done += 1
                return self.done

            async def present(_: AsyncSession, __: None, number: int) -> JsonResponse:
                return success({"number": number}, status=201)

            return await once.run_and_present(prepare_nothing, work, present)

        @router.post("/api/v1/disconnected", status_code=201)
        async def disconnected(body: OrderBody, once: RequiredIdempotency) -> Response:
            async def lose_the_connection(session: AsyncSession) -> None:
                pid = (await session.execute(text("SELECT pg_backend_pid()"))).scalar_one()
                api.query_as_superuser("SELECT pg_terminate_backend(%s, 10000)", pid)

            async def work() -> JsonResponse:
                return success({"id": once.derive_id("ord")}, status=201)

            return await once.run(lose_the_connection, lambda _: work())

        @router.post("/api/v1/prepared", status_code=201)
        async def prepared(body: OrderBody, once: RequiredIdempotency) -> Response:
            async def prepare(session: AsyncSession) -> str:
                if body.amount < 0:
                    raise ApiError(404, "NOT_FOUND", "There is no such plan.")
                organization_names = await session.execute(text("SELECT name FROM organizations"))
                return str(organization_names.scalar_one())

            async def work(name: str) -> JsonResponse:
                self.done += 1
                return success({"name": name}, status=201)

            return await once.run(prepare, work)

        api.app.include_router(router)

    @staticmethod
    async def _do_nothing() -> None:
        return None


@pytest.fixture
def routes(api: ApiFixture) -> OrderRoutes:
    return OrderRoutes(api)


KEY = {"Idempotency-Key": "the-key"}


async def test_a_repeated_request_returns_the_first_response(api: ApiFixture, routes: OrderRoutes) -> None:
    ada = await api.register_verified_user()
    first = await ada.http.post("/orders/a", json={"amount": 5, "note": "x"}, headers=KEY)
    assert (first.status_code, "Idempotent-Replayed" in first.headers) == (201, False)
    repeated = await ada.http.post("/orders/a", content=b'{ "note":"x","amount" : 5 }', headers=KEY | JSON)
    assert (repeated.status_code, repeated.headers["Idempotent-Replayed"]) == (201, "true")
    assert repeated.content == first.content
    assert repeated.headers["Content-Type"] == first.headers["Content-Type"]
    assert routes.done == 1


JSON = {"Content-Type": "application/json"}


async def test_another_body_under_the_same_key_is_rejected(api: ApiFixture, routes: OrderRoutes) -> None:
    ada = await api.register_verified_user()
    await ada.http.post("/orders/a", json={"amount": 5}, headers=KEY)
    refused = await ada.http.post("/orders/a", json={"amount": 6}, headers=KEY)
    assert (refused.status_code, parse_error(refused)["code"]) == (422, "IDEMPOTENCY_KEY_REUSED")
    assert routes.done == 1


async def test_a_key_belongs_to_its_account_and_its_path(api: ApiFixture, routes: OrderRoutes) -> None:
    ada, eve = await api.register_verified_user(), await api.register_verified_user()
    numbers = [
        (await client.post(path, json={}, headers=KEY)).json()["data"]["number"]
        for client, path in ((ada.http, "/orders/a"), (eve.http, "/orders/a"), (ada.http, "/orders/b"))
    ]
    assert numbers == [1, 2, 3]


async def test_a_key_is_required_or_optional_by_route_and_is_validated(api: ApiFixture, routes: OrderRoutes) -> None:
    ada = await api.register_verified_user()
    refused = await ada.http.post("/orders/a", json={})
    assert (refused.status_code, parse_error(refused)["code"]) == (400, "IDEMPOTENCY_KEY_REQUIRED")
    for key in ("", "x" * 256, "a\tb"):
        assert (await ada.http.post("/orders/a", json={}, headers={"Idempotency-Key": key})).status_code == 400
    assert routes.done == 0
    for expected in (1, 2):
        assert (await ada.http.post("/may/a", json={})).json()["data"]["number"] == expected
    for expected in (3, 3):
        assert (await ada.http.post("/may/a", json={}, headers=KEY)).json()["data"]["number"] == expected


@pytest.mark.parametrize(
    ("error", "status", "is_stored"),
    [
        (RuleViolation(ErrorCode.INSUFFICIENT_FUNDS, "Too little."), 402, True),
        (ApiError(403, "FORBIDDEN", "Not you."), 403, True),
        (ApiError(404, "NOT_FOUND", "There is no such plan."), 404, True),
        (ApiError(410, "EXPIRED", "Too late."), 410, True),
        (RuleViolation(ErrorCode.ILLEGAL_MOVE, "Not now."), 409, True),
        (ApiError(422, "VALIDATION_ERROR", "No."), 422, True),
        (unavailable_error("It"), 503, False),
        (ApiError(429, "RATE_LIMITED", "Wait."), 429, False),
        (ZeroDivisionError(), 500, False),
    ],
)
async def test_final_errors_are_stored_and_transient_ones_are_not(
    api: ApiFixture, routes: OrderRoutes, error: Exception, status: int, is_stored: bool
) -> None:
    async def fails() -> None:
        raise error

    ada = await api.register_verified_user()
    routes.work = fails
    first = await ada.http.post("/orders/a", json={}, headers=KEY)
    assert first.status_code == status
    routes.work = routes._do_nothing
    repeated = await ada.http.post("/orders/a", json={}, headers=KEY)
    assert repeated.status_code == (status if is_stored else 201)
    assert (repeated.content == first.content) is is_stored
    assert routes.done == (1 if is_stored else 2)


async def test_only_the_response_of_work_that_was_done_is_stored_without_waiting_for_the_disk(
    api: ApiFixture, routes: OrderRoutes
) -> None:
    ada = await api.register_verified_user()
    for statement in (
        "ALTER ROLE berth_api IN DATABASE {database} SET synchronous_commit = 'on'",
        "CREATE TABLE commits (response_status bigint, waits text)",
        "GRANT INSERT ON commits TO berth_api",
        "CREATE FUNCTION note_commit() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO commits"
        " VALUES (NEW.response_status, current_setting('synchronous_commit')); RETURN NEW; END $$",
        "CREATE TRIGGER note_commit AFTER UPDATE ON idempotency_records FOR EACH ROW EXECUTE FUNCTION note_commit()",
    ):
        ((name,),) = [tuple(row.values()) for row in api.query_as_superuser("SELECT current_database()")]
        api.execute(statement.format(database=f'"{name}"'))
    # The setting of a role holds for new connections.
    await api.context.engine.dispose()
    assert (await ada.http.post("/orders/done", json={}, headers=KEY)).status_code == 201

    async def refuse() -> None:
        raise RuleViolation(ErrorCode.INSUFFICIENT_FUNDS, "no")

    routes.work = refuse
    assert (await ada.http.post("/orders/refused", json={}, headers=KEY)).status_code == 402
    await api.context.wait_for_tasks_after_responses()
    rows = api.query_as_superuser("SELECT response_status, waits FROM commits")
    assert {(row["response_status"], row["waits"]) for row in rows} == {(201, "off"), (402, "on")}


async def test_concurrent_requests_run_once_and_return_the_same_response(api: ApiFixture, routes: OrderRoutes) -> None:
    async def takes_a_moment() -> None:
        while api.query_as_superuser("SELECT count(*) AS n FROM idempotency_records")[0]["n"] == 0:
            await asyncio.sleep(0.01)

    ada = await api.register_verified_user()
    routes.work = takes_a_moment
    responses = await asyncio.gather(*(ada.http.post("/orders/a", json={}, headers=KEY) for _ in range(8)))
    assert {response.content for response in responses} == {responses[0].content}
    assert [response.status_code for response in responses] == [201] * 8
    assert sum("Idempotent-Replayed" in response.headers for response in responses) == 7
    assert routes.done == 1


async def test_another_body_at_the_same_time_is_rejected_without_waiting(api: ApiFixture, routes: OrderRoutes) -> None:
    proceed, started = asyncio.Event(), asyncio.Event()

    async def waits() -> None:
        started.set()
        await proceed.wait()

    ada = await api.register_verified_user()
    routes.work = waits
    first = asyncio.create_task(ada.http.post("/orders/a", json={"amount": 1}, headers=KEY))
    await asyncio.wait_for(started.wait(), DEFAULT_TIMEOUT)
    refused = await asyncio.wait_for(ada.http.post("/orders/a", json={"amount": 2}, headers=KEY), scale_timeout(3))
    assert (refused.status_code, parse_error(refused)["code"]) == (422, "IDEMPOTENCY_KEY_REUSED")
    proceed.set()
    assert (await first).status_code == 201


async def test_a_claim_outlives_the_longest_request(api: ApiFixture, routes: OrderRoutes) -> None:
    leases: list[float] = []

    async def read_lease() -> None:
        await wait_for_claim(api)
        (row,) = api.query_as_superuser(
            "SELECT extract(epoch FROM claimed_until - now())::float AS seconds FROM idempotency_records"
        )
        leases.append(row["seconds"])

    ada = await api.register_verified_user()
    routes.work = read_lease
    assert (await ada.http.post("/orders/a", json={}, headers=KEY)).status_code == 201
    (lease,) = leases
    timeout = api.context.settings.request_timeout_seconds
    # After a crash the key answers 409 until the lease ends.
    assert timeout < lease < 2 * timeout


async def test_work_whose_claim_cannot_be_committed_is_found_by_its_ids(api: ApiFixture, routes: OrderRoutes) -> None:
    ada = await api.register_verified_user()
    with structlog.testing.capture_logs() as logs:
        first, second = [await ada.http.post("/disconnected", json={}, headers=KEY) for _ in range(2)]
        await api.context.wait_for_tasks_after_responses()
    assert (first.status_code, second.status_code) == (201, 201)
    assert first.json()["data"] == second.json()["data"]
    reported = [log["error"] for log in logs if log["event"] == "idempotency.claim_not_committed"]
    assert reported == 2 * ["OperationalError"]
    assert api.query_as_superuser("SELECT 1 FROM idempotency_records") == []


async def test_a_response_is_stored_after_a_claim_that_is_slow_to_commit(
    api: ApiFixture, routes: OrderRoutes, monkeypatch: pytest.MonkeyPatch
) -> None:
    ada = await api.register_verified_user()
    commit, delays = AsyncSession.commit, iter([0.3])

    async def commit_slowly(session: AsyncSession) -> None:
        await asyncio.sleep(next(delays, 0.0))
        await commit(session)

    monkeypatch.setattr(AsyncSession, "commit", commit_slowly)
    first, second = [await ada.http.post("/presented", json={}, headers=KEY) for _ in range(2)]
    assert (first.status_code, second.content, routes.done) == (201, first.content, 1)


async def test_a_claim_whose_process_died_is_taken_over(api: ApiFixture, routes: OrderRoutes) -> None:
    ada = await api.register_verified_user()
    await ada.http.post("/orders/a", json={}, headers=KEY)
    await api.context.wait_for_tasks_after_responses()
    api.execute(
        "UPDATE idempotency_records"
        " SET response_status = NULL, response_body = NULL, is_final = false, claimed_until = now() - interval '1 s'"
    )
    assert (await ada.http.post("/orders/a", json={}, headers=KEY)).json()["data"]["number"] == 2


async def test_a_claim_that_was_taken_over_stores_nothing(api: ApiFixture, routes: OrderRoutes) -> None:
    ada = await api.register_verified_user()
    responses: list[httpx.Response] = []

    async def outlive_the_claim() -> None:
        routes.work = routes._do_nothing
        await wait_for_claim(api)
        api.execute("UPDATE idempotency_records SET claimed_until = now() - interval '1 s'")
        responses.append(await ada.http.post("/orders/a", json={}, headers=KEY))

    routes.work = outlive_the_claim
    first = await ada.http.post("/orders/a", json={}, headers=KEY)
    (second,) = responses
    assert (first.json()["data"]["number"], second.json()["data"]["number"]) == (1, 2)
    repeated = await ada.http.post("/orders/a", json={}, headers=KEY)
    assert (repeated.content, routes.done) == (second.content, 2)


async def test_a_request_that_waits_too_long_for_another_is_refused(api: ApiFixture, routes: OrderRoutes) -> None:
    ada = await api.register_verified_user()
    responses: list[httpx.Response] = []

    async def work_until_the_other_is_answered() -> None:
        responses.append(
            await asyncio.wait_for(ada.http.post("/orders/a", json={}, headers=KEY), scale_timeout(WAIT_SECONDS))
        )

    routes.work = work_until_the_other_is_answered
    first = await ada.http.post("/orders/a", json={}, headers=KEY)
    (waiting,) = responses
    assert (first.status_code, waiting.status_code, parse_error(waiting)["code"]) == (201, 409, "CONFLICT")
    repeated = await ada.http.post("/orders/a", json={}, headers=KEY)
    assert (repeated.content, routes.done) == (first.content, 1)


async def test_a_key_is_retained_as_long_as_what_it_created(api: ApiFixture, routes: OrderRoutes) -> None:
    ada = await api.register_verified_user()
    first = await ada.http.post("/orders/a", json={"amount": 1}, headers=KEY)
    async with api.context.sessions() as session:
        await identity.delete_expired(session, batch_size=100)
    repeated = await ada.http.post("/orders/a", json={"amount": 1}, headers=KEY)
    assert (repeated.content, repeated.headers["Idempotent-Replayed"]) == (first.content, "true")
    refused = await ada.http.post("/orders/a", json={"amount": 9}, headers=KEY)
    assert (refused.status_code, parse_error(refused)["code"]) == (422, "IDEMPOTENCY_KEY_REUSED")
    assert routes.done == 1


async def test_a_key_of_a_failed_request_rejects_another_body(api: ApiFixture, routes: OrderRoutes) -> None:
    """What the failed request started may exist under ids that are derived from the key."""

    async def fails() -> None:
        raise unavailable_error("It")

    ada = await api.register_verified_user()
    routes.work = fails
    assert (await ada.http.post("/orders/a", json={"amount": 1}, headers=KEY)).status_code == 503
    routes.work = routes._do_nothing
    refused = await ada.http.post("/orders/a", json={"amount": 9}, headers=KEY)
    assert (refused.status_code, parse_error(refused)["code"]) == (422, "IDEMPOTENCY_KEY_REUSED")
    assert (await ada.http.post("/orders/a", json={"amount": 1}, headers=KEY)).status_code == 201


async def test_the_same_key_on_two_routes_derives_two_ids(seeded_api: ApiWithCatalogue) -> None:
    insert_payment_method(seeded_api.api, seeded_api.customer)
    body = {"amount_minor": 2000, "currency": "USD", "gateway": "stripe"}
    ids = [
        (await seeded_api.customer.http.post(path, json=body, headers=KEY)).json()["data"]["id"]
        for path in ("/billing/topups", "/payments/create-intent")
    ]
    assert len(set(ids)) == 2


async def test_a_retry_after_202_waits_again_and_returns_the_order(seeded_api: ApiWithCatalogue) -> None:
    order = {"plan_id": STARTER}
    seeded_api.workflows.times_out = True
    accepted, repeated = [
        await seeded_api.customer.http.post("/subscriptions", json=order, headers=KEY) for _ in range(2)
    ]
    assert (accepted.status_code, repeated.status_code, "Idempotent-Replayed" in repeated.headers) == (202, 202, False)
    read = await seeded_api.customer.http.get(f"/subscriptions/{accepted.json()['data']['id']}")
    assert read.json()["data"] == accepted.json()["data"]
    seeded_api.workflows.times_out = False
    created = await seeded_api.customer.http.post("/subscriptions", json=order, headers=KEY)
    assert (created.status_code, created.json()["data"]["status"]) == (201, "provisioning")
    assert created.json()["data"]["id"] == accepted.json()["data"]["id"]
    assert len({command.subscription_id for command in seeded_api.workflows.commands_of("create_subscription")}) == 1
    replayed = await seeded_api.customer.http.post("/subscriptions", json=order, headers=KEY)
    assert (replayed.content, replayed.headers["Idempotent-Replayed"]) == (created.content, "true")
    other = await seeded_api.customer.http.post("/subscriptions", json={"plan_id": PRO}, headers=KEY)
    assert parse_error(other)["code"] == "IDEMPOTENCY_KEY_REUSED"


async def test_prepared_reads_are_scoped_to_the_caller_and_a_rejection_frees_the_key(
    api: ApiFixture, routes: OrderRoutes
) -> None:
    await api.register_verified_user(name="Eve")
    ada = await api.register_verified_user(name="Ada")
    refused = await ada.http.post("/prepared", json={"amount": -1}, headers=KEY)
    assert refused.status_code == 404
    assert api.query_as_superuser("SELECT * FROM idempotency_records") == []
    # One organization is visible, although nothing in the query names it.
    done = await ada.http.post("/prepared", json={}, headers=KEY)
    assert done.json()["data"] == {"name": "Ada"}
    # An administrator's own requests see one organization as well.
    administrator = await api.administrator()
    assert (await administrator.http.post("/prepared", json={}, headers=KEY)).status_code == 201


async def test_a_cancelled_request_frees_its_key(
    api: ApiFixture, routes: OrderRoutes, database: DatabaseFixture
) -> None:
    """A cancelled request releases its key, so that the retry does not have to wait."""
    started = asyncio.Event()

    async def waits() -> None:
        started.set()
        await asyncio.Event().wait()

    ada = await api.register_verified_user()
    routes.work = waits
    leaving = asyncio.create_task(ada.http.post("/orders/a", json={}, headers=KEY))
    await asyncio.wait_for(started.wait(), DEFAULT_TIMEOUT)
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    routes.work = routes._do_nothing
    repeated = await asyncio.wait_for(ada.http.post("/orders/a", json={}, headers=KEY), DEFAULT_TIMEOUT)
    assert repeated.status_code == 201


@pytest.mark.scenario("S10")
@pytest.mark.parametrize("content_type", ["text/plain", "application/jsonx", ""])
async def test_a_deeply_nested_body_of_another_type_is_no_server_error(
    seeded_api: ApiWithCatalogue, content_type: str
) -> None:
    for path in ("/subscriptions", f"/subscriptions/{seeded_api.insert_subscription()}/pause"):
        response = await seeded_api.customer.http.post(
            path, content=b"[" * 100_000, headers=KEY | ({"Content-Type": content_type} if content_type else {})
        )
        assert response.status_code < 500, response.text
