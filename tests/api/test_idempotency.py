"""The same order under the same key is done once and answered the same, whatever happens meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from fastapi import APIRouter
from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.responses import Response

from api.envelope import Body, Json, answer
from api.errors import ApiError, unavailable
from api.idempotency import MaybeOnce, OnlyOnce
from db.queries import identity
from tests.support.api import Api, error_of
from tests.support.databases import Database
from tests.support.wait import PATIENCE, in_time
from workflows.rules.errors import Refusal, RuleBroken


class Wanted(Body):
    amount: int = 1


class Desk:
    """A route that orders, counting how often it is really done; ``deed`` is what happens when it is."""

    def __init__(self, api: Api) -> None:
        self.done = 0
        self.deed: Callable[[], Awaitable[None]] = self._nothing
        router = APIRouter()

        @router.post("/api/v1/orders/{name}", status_code=201)
        async def order(name: str, body: Wanted, once: OnlyOnce) -> Response:
            async def work() -> Json:
                self.done += 1
                number = self.done
                await self.deed()
                return answer({"number": number, "amount": body.amount}, status=201)

            return await once(work)

        @router.post("/api/v1/may/{name}")
        async def may(name: str, body: Wanted, once: MaybeOnce) -> Response:
            async def work() -> Json:
                self.done += 1
                return answer({"number": self.done})

            return await once(work)

        @router.post("/api/v1/prepared", status_code=201)
        async def prepared(body: Wanted, once: OnlyOnce) -> Response:
            async def prepare(session: AsyncSession) -> str:
                if body.amount < 0:
                    raise ApiError(404, "NOT_FOUND", "There is no such plan.")
                found = await session.execute(text("SELECT name FROM organizations"))
                return str(found.scalar_one())

            async def work(name: str) -> Json:
                self.done += 1
                return answer({"name": name}, status=201)

            return await once.after(prepare, work)

        api.app.include_router(router)

    @staticmethod
    async def _nothing() -> None:
        return None


@pytest.fixture
def desk(api: Api) -> Desk:
    return Desk(api)


KEY = {"Idempotency-Key": "the-key"}


async def test_the_second_time_is_the_first_answer_again(api: Api, desk: Desk) -> None:
    ada = await api.customer()
    first = await ada.http.post("/orders/a", json={"amount": 5, "x": 1}, headers=KEY)
    assert (first.status_code, "Idempotent-Replayed" in first.headers) == (201, False)
    again = await ada.http.post("/orders/a", content=b'{ "x":1,"amount" : 5 }', headers=KEY | JSON)
    assert (again.status_code, again.headers["Idempotent-Replayed"]) == (201, "true")
    assert again.content == first.content
    assert again.headers["Content-Type"] == first.headers["Content-Type"]
    assert desk.done == 1


JSON = {"Content-Type": "application/json"}


async def test_another_body_under_the_same_key_is_refused(api: Api, desk: Desk) -> None:
    ada = await api.customer()
    await ada.http.post("/orders/a", json={"amount": 5}, headers=KEY)
    refused = await ada.http.post("/orders/a", json={"amount": 6}, headers=KEY)
    assert (refused.status_code, error_of(refused)["code"]) == (422, "IDEMPOTENCY_KEY_REUSED")
    assert desk.done == 1


async def test_a_key_belongs_to_its_account_and_its_address(api: Api, desk: Desk) -> None:
    ada, eve = await api.customer(), await api.customer()
    numbers = [
        (await client.post(path, json={}, headers=KEY)).json()["data"]["number"]
        for client, path in ((ada.http, "/orders/a"), (eve.http, "/orders/a"), (ada.http, "/orders/b"))
    ]
    assert numbers == [1, 2, 3]


async def test_a_key_is_required_or_honoured_and_has_a_form(api: Api, desk: Desk) -> None:
    ada = await api.customer()
    refused = await ada.http.post("/orders/a", json={})
    assert (refused.status_code, error_of(refused)["code"]) == (400, "IDEMPOTENCY_KEY_REQUIRED")
    for key in ("", "x" * 256, "a\tb"):
        assert (await ada.http.post("/orders/a", json={}, headers={"Idempotency-Key": key})).status_code == 400
    assert desk.done == 0
    for expected in (1, 2):
        assert (await ada.http.post("/may/a", json={})).json()["data"]["number"] == expected
    for expected in (3, 3):
        assert (await ada.http.post("/may/a", json={}, headers=KEY)).json()["data"]["number"] == expected


@pytest.mark.parametrize(
    ("error", "status", "kept"),
    [
        (RuleBroken(Refusal.INSUFFICIENT_FUNDS, "Too little."), 402, True),
        (RuleBroken(Refusal.ILLEGAL_MOVE, "Not now."), 409, True),
        (ApiError(422, "VALIDATION_ERROR", "No."), 422, True),
        (unavailable("It"), 503, False),
        (ApiError(429, "RATE_LIMITED", "Wait."), 429, False),
        (ZeroDivisionError(), 500, False),
    ],
)
async def test_final_refusals_are_kept_and_passing_ones_are_not(
    api: Api, desk: Desk, error: Exception, status: int, kept: bool
) -> None:
    async def fails() -> None:
        raise error

    ada = await api.customer()
    desk.deed = fails
    first = await ada.http.post("/orders/a", json={}, headers=KEY)
    assert first.status_code == status
    desk.deed = desk._nothing
    again = await ada.http.post("/orders/a", json={}, headers=KEY)
    assert again.status_code == (status if kept else 201)
    assert (again.content == first.content) is kept
    assert desk.done == (1 if kept else 2)


async def test_of_many_at_once_one_does_it_and_all_hear_the_same(api: Api, desk: Desk) -> None:
    async def takes_a_moment() -> None:
        while api.rows("SELECT count(*) AS n FROM idempotency_records")[0]["n"] == 0:
            await asyncio.sleep(0.01)

    ada = await api.customer()
    desk.deed = takes_a_moment
    answers = await asyncio.gather(*(ada.http.post("/orders/a", json={}, headers=KEY) for _ in range(8)))
    assert {found.content for found in answers} == {answers[0].content}
    assert [found.status_code for found in answers] == [201] * 8
    assert sum("Idempotent-Replayed" in found.headers for found in answers) == 7
    assert desk.done == 1


async def test_another_body_at_the_same_time_is_refused_without_waiting(api: Api, desk: Desk) -> None:
    proceed, begun = asyncio.Event(), asyncio.Event()

    async def waits() -> None:
        begun.set()
        await proceed.wait()

    ada = await api.customer()
    desk.deed = waits
    first = asyncio.create_task(ada.http.post("/orders/a", json={"amount": 1}, headers=KEY))
    await asyncio.wait_for(begun.wait(), PATIENCE)
    refused = await asyncio.wait_for(ada.http.post("/orders/a", json={"amount": 2}, headers=KEY), in_time(3))
    assert (refused.status_code, error_of(refused)["code"]) == (422, "IDEMPOTENCY_KEY_REUSED")
    proceed.set()
    assert (await first).status_code == 201


async def test_a_claim_whose_process_died_is_taken_over(api: Api, desk: Desk) -> None:
    ada = await api.customer()
    await ada.http.post("/orders/a", json={}, headers=KEY)
    api.execute("UPDATE idempotency_records SET status = NULL, body = NULL, claimed_until = now() - interval '1 s'")
    assert (await ada.http.post("/orders/a", json={}, headers=KEY)).json()["data"]["number"] == 2


async def test_a_key_is_forgotten_after_a_day(api: Api, desk: Desk) -> None:
    ada = await api.customer()
    await ada.http.post("/orders/a", json={}, headers=KEY)
    (row,) = api.rows("SELECT expires_at - now() AS left FROM idempotency_records")
    assert 23.9 < row["left"].total_seconds() / 3600 <= 24
    api.execute("UPDATE idempotency_records SET expires_at = now() - interval '1 s'")
    fresh = await ada.http.post("/orders/a", json={"amount": 9}, headers=KEY)
    assert fresh.json()["data"] == {"number": 2, "amount": 9}
    api.execute("UPDATE idempotency_records SET expires_at = now() - interval '1 s'")
    async with api.context.sessions.begin() as session:
        await identity.purge(session, datetime.now(UTC))
    assert api.rows("SELECT * FROM idempotency_records") == []


async def test_what_is_read_first_is_read_for_the_caller_and_frees_the_key_where_it_refuses(
    api: Api, desk: Desk
) -> None:
    await api.customer(name="Eve")
    ada = await api.customer(name="Ada")
    refused = await ada.http.post("/prepared", json={"amount": -1}, headers=KEY)
    assert refused.status_code == 404
    assert api.rows("SELECT * FROM idempotency_records") == []
    # One organisation is visible, although nothing in the query names it.
    done = await ada.http.post("/prepared", json={}, headers=KEY)
    assert done.json()["data"] == {"name": "Ada"}


async def test_an_order_costs_three_statements_and_two_transactions(api: Api, desk: Desk) -> None:
    ada = await api.customer()
    counted = Counted(api)
    await ada.http.post("/prepared", json={}, headers=KEY)
    assert (len(counted.statements), counted.commits) == (3, 2), counted.statements
    counted.reset()
    await ada.http.get("/users/me")
    assert (len(counted.statements), counted.commits) == (2, 1), counted.statements


class Counted:
    """What a request really asks of the database.

    The reading of revocations is not a request's, and it may be under way when the counting begins: a commit counts
    only where a counted statement ran before it.
    """

    def __init__(self, api: Api) -> None:
        self.statements: list[str] = []
        self.commits = 0
        bind: Any = api.context.sessions.kw["bind"]
        event.listen(bind.sync_engine, "before_cursor_execute", self._statement)
        event.listen(bind.sync_engine, "commit", self._commit)

    def reset(self) -> None:
        self.statements.clear()
        self.commits = 0

    def _statement(self, connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        if "revoked_tokens" not in statement:
            connection.info["counted"] = True
            self.statements.append(statement)

    def _commit(self, connection: Any) -> None:
        if connection.info.pop("counted", False):
            self.commits += 1


async def test_the_order_goes_on_when_the_caller_leaves(api: Api, desk: Desk, database: Database) -> None:
    """A request that is cancelled gives its key back, so that the retry is not told to wait."""
    begun = asyncio.Event()

    async def waits() -> None:
        begun.set()
        await asyncio.Event().wait()

    ada = await api.customer()
    desk.deed = waits
    leaving = asyncio.create_task(ada.http.post("/orders/a", json={}, headers=KEY))
    await asyncio.wait_for(begun.wait(), PATIENCE)
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    desk.deed = desk._nothing
    again = await asyncio.wait_for(ada.http.post("/orders/a", json={}, headers=KEY), PATIENCE)
    assert again.status_code == 201
