"""Logs of an instance in messages: without the values of its Secrets, also of one that the cut divides."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from activities.adapters.kubernetes.redaction import LOG_CHARACTERS, redacted_tail
from activities.service_templates.manifests import InstanceSpec
from tests.support.databases import DatabaseFixture
from tests.support.instance_fixture import SMALL, TEMPLATES, InstanceFixture, create_instance_fixture
from tests.support.sandboxes import ClusterEndpoint
from workflows.ports.instances import InstanceId

MARK = "[secret]"


@pytest_asyncio.fixture
async def instances(database: DatabaseFixture, cluster: ClusterEndpoint) -> AsyncIterator[InstanceFixture]:
    async with create_instance_fixture(database, cluster) as fixture:
        yield fixture


@pytest.mark.parametrize("divided_at", [3, 20])
async def test_a_secret_that_the_cut_divides_is_not_shown(instances: InstanceFixture, divided_at: int) -> None:
    instance_id = await instances.insert_instance()
    await instances.run_activity(instances.cluster_activities.apply, InstanceId(instance_id=instance_id))
    password = await _password(instances, instance_id)
    logs = f"first {password} again {password}{'x' * (LOG_CHARACTERS - divided_at)}"
    tail = await redacted_tail(instances.gateway, _spec(instances, instance_id), logs)
    assert tail == f"first {MARK} again {MARK}{'x' * (LOG_CHARACTERS - divided_at)}"[-LOG_CHARACTERS:]
    assert password[-divided_at:] not in tail


@pytest.mark.parametrize(
    ("values", "logs", "redacted"),
    [
        # The shortest that is replaced, and the longest that is not.
        (["8letters"], "a 8letters b", f"a {MARK} b"),
        (["seven77"], "a seven77 b", "a seven77 b"),
        # A value that is a part of another must not leave the rest of it behind.
        (["8letters", "8letters-and-more", "more-of-8letters"], "8letters-and-more", MARK),
        (["8letters", "8letters-and-more", "more-of-8letters"], "more-of-8letters 8letters", f"{MARK} {MARK}"),
    ],
)
async def test_secrets_are_replaced_whole(
    instances: InstanceFixture, values: list[str], logs: str, redacted: str
) -> None:
    instance_id = await instances.insert_instance()
    await instances.run_activity(instances.cluster_activities.apply, InstanceId(instance_id=instance_id))
    data = {f"value-{place}": base64.b64encode(value.encode()).decode() for place, value in enumerate(values)}
    await instances.gateway.patch("Secret", instances.namespace(instance_id), "app", {"data": data})
    assert await redacted_tail(instances.gateway, _spec(instances, instance_id), logs) == redacted


async def _password(instances: InstanceFixture, instance_id: str) -> str:
    secret = await instances.get_live_object("Secret", instance_id, "app")
    assert secret is not None
    return base64.b64decode(secret["data"]["owner-password"]).decode()


def _spec(instances: InstanceFixture, instance_id: str) -> InstanceSpec:
    return InstanceSpec(
        installation_id=instances.installation_id,
        instance_id=instance_id,
        organization_id=instances.provisioning_inputs[instance_id].organization_id,
        service_slug="n8n",
        version=TEMPLATES.service("n8n").version,
        hostname="shop.example.com",
        namespace=instances.namespace(instance_id),
        resources=SMALL,
    )
