"""The transaction that claims an idempotency key."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import make_url, text

from db.queries.idempotency import CLAIM_LEASE, KeyClaim, StoredResponse, claim_key, store_alone
from db.session import SessionFactory, create_database_engine, session_factory
from tests.support.databases import DatabaseFixture
from tests.support.inserts import insert_organization


async def test_only_the_commit_of_a_claim_does_not_wait_for_the_disk(database: DatabaseFixture) -> None:
    organization_id = await insert_organization(database.owner)
    url = make_url(database.api_url).update_query_dict({"options": "-c synchronous_commit=on"})
    engine = create_database_engine(url.render_as_string(hide_password=False), pool_size=1, explicit_begin=True)
    try:
        async with session_factory(engine)() as session:
            claim, _ = await claim_key(
                session,
                organization_id=organization_id,
                user_id="usr_1",
                role="USER",
                route="POST /api/v1/subscriptions",
                key="key",
                request_hash="hash",
                claim_id="clm_1",
                at=datetime(2027, 1, 31, tzinfo=UTC),
            )
            assert claim.acquired
            assert await session.scalar(text("SHOW synchronous_commit")) == "off"
            await session.commit()
            assert await session.scalar(text("SHOW synchronous_commit")) == "on"
    finally:
        await engine.dispose()


AT = datetime(2027, 1, 31, tzinfo=UTC)
SECOND = timedelta(seconds=1)
INSTANT = timedelta(microseconds=1)


@dataclass(frozen=True)
class Keys:
    """Claims and stores of one key, at any instant."""

    sessions: SessionFactory
    organization_id: str

    async def claim(self, claim_id: str, at: datetime, *, request_hash: str = "hash") -> KeyClaim:
        async with self.sessions() as session:
            claim, _ = await claim_key(
                session,
                organization_id=self.organization_id,
                user_id="usr_1",
                role="USER",
                route="POST /api/v1/subscriptions",
                key="key",
                request_hash=request_hash,
                claim_id=claim_id,
                at=at,
            )
            await session.commit()
            return claim

    async def store(
        self, claim_id: str, status: int | None, *, is_final: bool = True, ends_attempt: bool = False
    ) -> None:
        response = StoredResponse(
            organization_id=self.organization_id,
            route="POST /api/v1/subscriptions",
            key="key",
            claim_id=claim_id,
            status=status,
            body=None if status is None else claim_id,
            is_final=is_final,
            ends_attempt=ends_attempt,
        )
        async with self.sessions() as session:
            await store_alone(session, response)


@asynccontextmanager
async def open_keys(database: DatabaseFixture) -> AsyncIterator[Keys]:
    organization_id = await insert_organization(database.owner)
    engine = create_database_engine(database.api_url, pool_size=1, explicit_begin=True)
    try:
        yield Keys(session_factory(engine), organization_id)
    finally:
        await engine.dispose()


@pytest.mark.parametrize(
    ("after", "request_hash", "acquired"),
    [
        (timedelta(0), "hash", False),
        (CLAIM_LEASE - INSTANT, "hash", False),
        (CLAIM_LEASE, "hash", True),
        (CLAIM_LEASE + SECOND, "hash", True),
        # What the first request began has ids that derive from the key.
        (CLAIM_LEASE + SECOND, "other", False),
    ],
)
async def test_a_claim_is_taken_over_from_the_instant_at_which_its_lease_ends(
    database: DatabaseFixture, after: timedelta, request_hash: str, acquired: bool
) -> None:
    async with open_keys(database) as keys:
        first = await keys.claim("clm_1", AT)
        assert (first.acquired, first.is_retry, first.attempt) == (True, False, 1)
        second = await keys.claim("clm_2", AT + after, request_hash=request_hash)
        assert (second.acquired, second.is_retry) == (acquired, acquired)
        assert (second.is_same_request, second.status, second.attempt) == (request_hash == "hash", None, 1)
        if acquired:
            # The lease is renewed: a third request waits for the second.
            assert not (await keys.claim("clm_3", AT + after)).acquired


async def test_a_claim_that_was_taken_over_neither_stores_nor_releases(database: DatabaseFixture) -> None:
    async with open_keys(database) as keys:
        await keys.claim("clm_1", AT)
        assert (await keys.claim("clm_2", AT + CLAIM_LEASE)).acquired
        for status in (201, None):
            await keys.store("clm_1", status)
            assert not (await keys.claim("clm_3", AT + CLAIM_LEASE)).acquired
        await keys.store("clm_2", 201)
        stored = await keys.claim("clm_4", AT + 10 * CLAIM_LEASE)
        assert (stored.acquired, stored.status, stored.body) == (False, 201, "clm_2")


@pytest.mark.parametrize(
    ("status", "is_final", "ends_attempt", "expected"),
    [
        # acquired, status, attempt, is_retry of the next request
        (201, True, False, (False, 201, 1, False)),
        (409, True, False, (False, 409, 1, False)),
        (202, False, False, (True, None, 1, True)),
        (None, True, False, (True, None, 1, True)),
        (None, True, True, (True, None, 2, False)),
    ],
)
async def test_only_a_final_response_is_returned_again_and_only_an_error_that_passes_begins_an_attempt(
    database: DatabaseFixture,
    status: int | None,
    is_final: bool,
    ends_attempt: bool,
    expected: tuple[bool, int | None, int, bool],
) -> None:
    async with open_keys(database) as keys:
        await keys.claim("clm_1", AT)
        await keys.store("clm_1", status, is_final=is_final, ends_attempt=ends_attempt)
        following = await keys.claim("clm_2", AT + INSTANT)
        assert (following.acquired, following.status, following.attempt, following.is_retry) == expected
        other = await keys.claim("clm_3", AT + CLAIM_LEASE + SECOND, request_hash="other")
        assert (other.acquired, other.is_same_request) == (False, False)
