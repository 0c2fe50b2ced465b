"""The transaction that claims an idempotency key."""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import make_url, text

from db.queries.idempotency import claim_key
from db.session import create_database_engine, session_factory
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
