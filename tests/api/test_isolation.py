"""S1 over HTTP: somebody else's object does not exist, also where a query forgot to ask whose it is."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import delete, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from api.deps import unit_of_work
from db.models.identity import LoginSession, Membership, Organization, User
from db.queries import identity
from tests.support.api import Api, error_of


@pytest.mark.scenario("S1")
async def test_somebody_elses_session_is_not_found_and_stays(api: Api) -> None:
    ada, eve = await api.customer(), await api.customer()
    (listed,) = (await ada.http.get("/users/me/sessions")).json()["data"]
    refused = await eve.http.delete(f"/users/me/sessions/{listed['id']}")
    never = await eve.http.delete("/users/me/sessions/ses_neverexisted")
    assert (refused.status_code, never.status_code) == (404, 404)
    assert error_of(refused)["message"] == error_of(never)["message"]
    assert (await ada.http.get("/users/me")).status_code == 200
    assert (await eve.http.get("/users/me/sessions")).json()["meta"]["total"] == 1


@pytest.mark.scenario("S1")
async def test_a_body_that_names_another_account_changes_ones_own(api: Api) -> None:
    ada, eve = await api.customer(name="Ada"), await api.customer(name="Eve")
    body = {"id": ada.user_id, "name": "Mallory", "organization": {"id": ada.organization_id, "name": "Mallory"}}
    assert (await eve.http.patch("/users/me", json=body)).status_code == 200
    me = (await ada.http.get("/users/me")).json()["data"]
    assert (me["name"], me["organization"]["name"]) == ("Ada", "Ada")


@pytest.mark.scenario("S1")
async def test_with_every_where_removed_row_level_security_alone_holds(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    ada, eve = await api.customer(name="Ada"), await api.customer(name="Eve")

    async def careless_profile(session: AsyncSession, *_: str) -> tuple[User, Organization] | None:
        users = (await session.scalars(select(User))).all()
        organizations = (await session.scalars(select(Organization))).all()
        assert (len(users), len(organizations)) == (1, 1)
        return users[0], organizations[0]

    async def careless_sessions(session: AsyncSession, *_: Any) -> Any:
        return (await session.scalars(select(LoginSession))).all()

    monkeypatch.setattr(identity, "profile", careless_profile)
    monkeypatch.setattr(identity, "open_sessions", careless_sessions)
    for somebody, name in ((ada, "Ada"), (eve, "Eve")):
        assert (await somebody.http.get("/users/me")).json()["data"]["name"] == name
        assert (await somebody.http.get("/users/me/sessions")).json()["meta"]["total"] == 1


@pytest.mark.scenario("S1")
async def test_a_careless_write_reaches_ones_own_rows_only(api: Api) -> None:
    ada, eve = await api.customer(name="Ada"), await api.customer(name="Eve")
    caller = api.context.tokens.read(eve.tokens["access_token"])
    async with unit_of_work(api.context, caller) as session:
        await session.execute(update(User).values(name="Mallory"))
        await session.execute(update(Organization).values(name="Mallory"))
        await session.execute(update(LoginSession).values(revoked_because="mine"))
    found = {row["id"]: row["name"] for row in api.rows("SELECT id, name FROM users")}
    assert found == {ada.user_id: "Ada", eve.user_id: "Mallory"}
    assert api.rows("SELECT user_id FROM sessions WHERE revoked_because = 'mine'") == [{"user_id": eve.user_id}]


async def test_an_administrator_is_a_customer_too_until_they_say_otherwise(api: Api) -> None:
    await api.customer()
    root = await api.administrator()
    caller = api.context.tokens.read(root.tokens["access_token"])
    async with unit_of_work(api.context, caller) as session:
        assert len((await session.scalars(select(User))).all()) == 1
    async with unit_of_work(api.context, caller, as_administrator=True) as session:
        assert len((await session.scalars(select(User))).all()) == 2
    ordinary = api.context.tokens.read((await api.customer()).tokens["access_token"])
    async with unit_of_work(api.context, ordinary, as_administrator=True) as session:
        assert len((await session.scalars(select(User))).all()) == 1


async def test_the_api_cannot_remove_anybody(api: Api) -> None:
    root = await api.administrator()
    caller = api.context.tokens.read(root.tokens["access_token"])
    for table in (User, Organization, Membership):
        with pytest.raises(Exception, match="permission denied"):
            async with unit_of_work(api.context, caller, as_administrator=True) as session:
                await session.execute(delete(table))
