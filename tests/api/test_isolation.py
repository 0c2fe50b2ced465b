"""S1 over HTTP: objects of another account are not found, even if a query lacks the condition on the owner."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import delete, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from api.dependencies.transactions import transaction
from db.models.identity import Membership, Organization, User, UserSession
from db.queries import identity
from tests.support.api import ApiFixture, parse_error


@pytest.mark.scenario("S1")
async def test_a_session_of_another_user_is_not_found_and_stays(api: ApiFixture) -> None:
    ada, eve = await api.register_verified_user(), await api.register_verified_user()
    (listed,) = (await ada.http.get("/users/me/sessions")).json()["data"]
    refused = await eve.http.delete(f"/users/me/sessions/{listed['id']}")
    never = await eve.http.delete("/users/me/sessions/ses_neverexisted")
    assert (refused.status_code, never.status_code) == (404, 404)
    assert parse_error(refused)["message"] == parse_error(never)["message"]
    assert (await ada.http.get("/users/me")).status_code == 200
    assert (await eve.http.get("/users/me/sessions")).json()["meta"]["total"] == 1


@pytest.mark.scenario("S1")
async def test_ids_in_a_body_do_not_change_another_account(api: ApiFixture) -> None:
    ada, eve = await api.register_verified_user(name="Ada"), await api.register_verified_user(name="Eve")
    for body in (
        {"id": ada.user_id, "name": "Mallory"},
        {"organization": {"id": ada.organization_id, "name": "Mallory"}},
    ):
        assert (await eve.http.patch("/users/me", json=body)).status_code == 422
    me = (await ada.http.get("/users/me")).json()["data"]
    assert (me["name"], me["organization"]["name"]) == ("Ada", "Ada")


@pytest.mark.scenario("S1")
async def test_row_level_security_isolates_reads_without_conditions(
    api: ApiFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    ada, eve = await api.register_verified_user(name="Ada"), await api.register_verified_user(name="Eve")

    async def careless_profile(session: AsyncSession, *_: str) -> tuple[User, Organization] | None:
        users = (await session.scalars(select(User))).all()
        organizations = (await session.scalars(select(Organization))).all()
        assert (len(users), len(organizations)) == (1, 1)
        return users[0], organizations[0]

    async def careless_sessions(session: AsyncSession, *_: Any) -> Any:
        return (await session.scalars(select(UserSession))).all()

    monkeypatch.setattr(identity, "get_user_and_organization", careless_profile)
    monkeypatch.setattr(identity, "list_active_sessions", careless_sessions)
    for user, name in ((ada, "Ada"), (eve, "Eve")):
        assert (await user.http.get("/users/me")).json()["data"]["name"] == name
        assert (await user.http.get("/users/me/sessions")).json()["meta"]["total"] == 1


@pytest.mark.scenario("S1")
async def test_row_level_security_isolates_writes_without_conditions(api: ApiFixture) -> None:
    ada, eve = await api.register_verified_user(name="Ada"), await api.register_verified_user(name="Eve")
    caller = api.context.tokens.verify(eve.tokens["access_token"])
    async with transaction(api.context, caller) as session:
        await session.execute(update(User).values(name="Mallory"))
        await session.execute(update(Organization).values(name="Mallory"))
        await session.execute(update(UserSession).values(revocation_reason="mine"))
    names = {row["id"]: row["name"] for row in api.query_as_superuser("SELECT id, name FROM users")}
    assert names == {ada.user_id: "Ada", eve.user_id: "Mallory"}
    assert api.query_as_superuser("SELECT user_id FROM user_sessions WHERE revocation_reason = 'mine'") == [
        {"user_id": eve.user_id}
    ]


async def test_administrators_read_all_rows_only_in_administrator_transactions(api: ApiFixture) -> None:
    await api.register_verified_user()
    administrator = await api.administrator()
    caller = api.context.tokens.verify(administrator.tokens["access_token"])
    async with transaction(api.context, caller) as session:
        assert len((await session.scalars(select(User))).all()) == 1
    async with transaction(api.context, caller, as_administrator=True) as session:
        assert len((await session.scalars(select(User))).all()) == 2
    ordinary = api.context.tokens.verify((await api.register_verified_user()).tokens["access_token"])
    async with transaction(api.context, ordinary, as_administrator=True) as session:
        assert len((await session.scalars(select(User))).all()) == 1


async def test_the_api_role_cannot_delete_accounts(api: ApiFixture) -> None:
    administrator = await api.administrator()
    caller = api.context.tokens.verify(administrator.tokens["access_token"])
    for table in (User, Organization, Membership):
        with pytest.raises(Exception, match="permission denied"):
            async with transaction(api.context, caller, as_administrator=True) as session:
                await session.execute(delete(table))
