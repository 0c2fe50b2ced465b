"""A workflow that puts personal data into every payload of its history."""

from __future__ import annotations

from datetime import timedelta

from temporalio import activity, workflow
from temporalio.common import RetryPolicy
from temporalio.exceptions import ActivityError, ApplicationError

NAME, EMAIL, PASSWORD, TOKEN = "Ada Lovelace", "ada@customer.example", "correct horse", "tok-4711-secret"


@activity.defn(name="codec.fail")
async def fail_with_personal_data(person: dict[str, str]) -> None:
    raise ApplicationError(f"{person['name']} could not be reached", person, type="UNREACHABLE")


@workflow.defn(name="Confidential")
class PersonalDataWorkflow:
    """Carries personal data in input, memo, signal, update, activity, and in messages and details of failures."""

    def __init__(self) -> None:
        self._token = ""

    @workflow.run
    async def run(self, person: dict[str, str]) -> dict[str, str]:
        await workflow.wait_condition(lambda: bool(self._token))
        try:
            await workflow.execute_activity(
                "codec.fail",
                person,
                start_to_close_timeout=timedelta(seconds=5),
                retry_policy=RetryPolicy(maximum_attempts=2, initial_interval=timedelta(milliseconds=10)),
            )
        except ActivityError as error:
            workflow.upsert_memo({"last": f"{person['email']} failed"})
            raise ApplicationError(f"{person['name']} <{person['email']}>", person, non_retryable=True) from error
        return person

    @workflow.update
    async def rename(self, name: str) -> str:
        return f"{name} was {NAME}"

    @workflow.signal
    def go(self, token: str) -> None:
        self._token = token
