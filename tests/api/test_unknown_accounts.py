"""An account that does not exist is answered with the same work as one whose password is wrong."""

from __future__ import annotations

import json
from typing import Any

import pytest
from argon2 import low_level

from api.logs import configure_logging
from tests.support.api import PASSWORD, ApiFixture
from tests.support.log_capture import capture_log


@pytest.mark.scenario("S4")
async def test_a_sign_in_computes_one_hash_whether_the_account_exists_or_not(
    api: ApiFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    ada = await api.register()
    verified: list[bytes] = []
    verify_secret = low_level.verify_secret

    def count(hashed: bytes, *arguments: Any) -> bool:
        verified.append(hashed)
        return verify_secret(hashed, *arguments)

    monkeypatch.setattr(low_level, "verify_secret", count)
    attempts = ((ada.email, "not this one"), ("unknown@customer.example", "not this one"), (ada.email, PASSWORD))
    for number, (email, password) in enumerate(attempts, start=1):
        response = await api.http.post("/auth/login", json={"email": email, "password": password})
        assert response.status_code == (200 if password == PASSWORD else 401)
        assert len(verified) == number
    # The same algorithm with the same cost: the parameters precede the salt.
    assert len({hashed.rsplit(b"$", 2)[0] for hashed in verified}) == 1


async def test_work_after_a_response_that_fails_is_logged(api: ApiFixture) -> None:
    async def store() -> None:
        raise OSError("the connection was reset")

    with capture_log(configure_logging, level="INFO") as written:
        api.context.run_after_response(store())
        await api.context.wait_for_tasks_after_responses()
    lines = [json.loads(line) for line in written.getvalue().splitlines()]
    (line,) = [line for line in lines if line["event"] == "response.not_stored"]
    assert (line["level"], line["error"]) == ("warning", "OSError")
