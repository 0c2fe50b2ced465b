"""The sandbox as a process: what survives its death, what dies with it, and what lives beside it."""

from __future__ import annotations

import asyncio
import signal
import time
from pathlib import Path

import httpx
import psutil
import pytest
import stripe

from deploy.local.stripe import StripeSandbox
from deploy.ports import free_ports
from tests.contracts.stripe.support import KEY, SECRET, WebhookReceiver, client
from tests.support.http_process import HttpProcess
from tests.support.wait import scale_timeout, wait_until

# stripe 16 hands httpx its form bodies in a way that httpx 0.28 has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


class SandboxProcess(HttpProcess):
    def __init__(self, state: Path, webhook_url: str | None = None) -> None:
        (port,) = free_ports(1)
        webhook = ("--webhook-secret", SECRET, *(("--webhook-url", webhook_url) if webhook_url else ()))
        arguments = ("--port", str(port), "--state", str(state), *webhook)
        super().__init__("deploy.local.stripe", *arguments, port=port, log=state.parent / "log")


@pytest.mark.scenario("B23")
async def test_kill_9_loses_no_charge_no_key_and_no_event(tmp_path: Path, endpoint: WebhookReceiver) -> None:
    state = tmp_path / "state"
    endpoint.statuses = [503] * 50
    served = SandboxProcess(state, endpoint.url)
    params = {"amount": "1200", "currency": "usd", "payment_method": "pm_card_visa", "confirm": "true"}
    headers = {"Authorization": f"Bearer {KEY}", "Idempotency-Key": "k"}
    async with httpx.AsyncClient() as caller:
        first = await caller.post(f"{served.url}/v1/payment_intents", data=params, headers=headers)
        served.end(signal.SIGKILL)
        endpoint.statuses.clear()
        served = SandboxProcess(state, endpoint.url)
        repeated = await caller.post(f"{served.url}/v1/payment_intents", data=params, headers=headers)
        assert (repeated.content, repeated.headers["Idempotent-Replayed"]) == (first.content, "true")
        assert len((await caller.get(f"{served.url}/sandbox/charges")).json()) == 1
    await endpoint.until("payment_intent.created", "payment_intent.succeeded", subject=first.json()["id"])
    assert served.end(signal.SIGTERM) == 0


@pytest.mark.scenario("B23")
async def test_kill_9_amid_a_busy_run_charges_every_key_once(tmp_path: Path, endpoint: WebhookReceiver) -> None:
    served = SandboxProcess(tmp_path / "state", endpoint.url)
    params = {"amount": "1200", "currency": "usd", "payment_method": "pm_card_visa", "confirm": "true"}
    keys = [f"order-{number}" for number in range(60)]

    async def order(caller: httpx.AsyncClient, key: str) -> str:
        """The intent's id; empty when the connection broke."""
        headers = {"Authorization": f"Bearer {KEY}", "Idempotency-Key": key}
        try:
            response = await caller.post(f"{served.url}/v1/payment_intents", data=params, headers=headers)
        except httpx.TransportError:
            return ""
        return str(response.json()["id"])

    async with httpx.AsyncClient(timeout=20) as caller:
        running = [asyncio.create_task(order(caller, key)) for key in keys]
        await wait_until(lambda: sum(task.done() for task in running) >= 10)
        served.end(signal.SIGKILL)
        first_ids = dict(zip(keys, await asyncio.gather(*running), strict=True))
        served = SandboxProcess(tmp_path / "state", endpoint.url)
        intents = {key: await order(caller, key) for key in keys}
        assert all(intents[key] == first_id for key, first_id in first_ids.items() if first_id)
        charges = (await caller.get(f"{served.url}/sandbox/charges")).json()
        assert sorted(charge["idempotency_key"] for charge in charges) == sorted(keys)
        assert {charge["payment_intent"] for charge in charges} == set(intents.values())
    for intent in intents.values():
        await endpoint.until("payment_intent.succeeded", subject=intent)
    assert served.end(signal.SIGTERM) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_signal_stops_the_sandbox_within_three_seconds(tmp_path: Path, number: int) -> None:
    served = SandboxProcess(tmp_path / "state")
    before = time.monotonic()
    assert served.end(number) == 0
    assert time.monotonic() - before < scale_timeout(3)


def test_two_sandboxes_run_in_parallel(tmp_path: Path) -> None:
    first, second = SandboxProcess(tmp_path / "one"), SandboxProcess(tmp_path / "two")
    created = client(first.url).v1.customers.create({"name": "Ada"})
    assert client(second.url).v1.customers.list().data == []
    assert [customer.id for customer in client(first.url).v1.customers.list().data] == [created.id]
    listening = {
        connection.laddr.ip
        for served in (first, second)
        for connection in psutil.Process(served.process.pid).net_connections(kind="inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening == {"127.0.0.1"}
    assert [first.end(signal.SIGTERM), second.end(signal.SIGTERM)] == [0, 0]


def test_unsupported_resources_are_unknown(tmp_path: Path) -> None:
    served = SandboxProcess(tmp_path / "state")
    with pytest.raises(stripe.InvalidRequestError, match="Unrecognized request URL"):
        client(served.url).v1.products.list()
    assert served.end(signal.SIGTERM) == 0


async def test_one_state_folder_serves_one_sandbox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploy.local.stripe.sandbox._LOCK_SECONDS", 0.1)
    async with StripeSandbox(state_dir=tmp_path):
        with pytest.raises(RuntimeError, match="another sandbox"):
            async with StripeSandbox(state_dir=tmp_path):
                raise AssertionError("opened twice")
