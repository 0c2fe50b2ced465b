"""The sandbox as a process: what survives its death, what dies with it, and what lives beside it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import psutil
import pytest

from deploy.local.ports import free_ports
from deploy.local.stripe import StripeSandbox
from tests.contracts.stripe.support import KEY, SECRET, Endpoint, client
from tests.support.wait import eventually, eventually_sync, in_time

# stripe 16 hands httpx its form bodies in a way that httpx 0.28 has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


class Served:
    """`python -m deploy.local.stripe` as the stack starts it."""

    def __init__(self, state: Path, webhook_url: str | None = None) -> None:
        (port,) = free_ports(1)
        self.url = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-m", "deploy.local.stripe", "--port", str(port), "--state", str(state)]
        command += ["--webhook-secret", SECRET, *(["--webhook-url", webhook_url] if webhook_url else [])]
        with (state.parent / "log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)

        def answers() -> bool:
            assert self.process.poll() is None
            try:
                return httpx.get(f"{self.url}/health").status_code == 200
            except httpx.TransportError:
                return False

        try:
            eventually_sync(answers)
        except BaseException:
            self.process.kill()
            self.process.wait()
            raise

    def end(self, number: int) -> int:
        self.process.send_signal(number)
        return self.process.wait(timeout=10)

    def localstripe(self) -> int:
        """Pid of the process behind, once it serves."""
        eventually_sync(lambda: httpx.get(f"{self.url}/health").json()["localstripe"] == "up")
        (child,) = psutil.Process(self.process.pid).children()
        return child.pid


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.mark.scenario("B23")
async def test_kill_9_loses_no_charge_no_key_and_no_event(tmp_path: Path, endpoint: Endpoint) -> None:
    state = tmp_path / "state"
    endpoint.answers = [503] * 50
    served = Served(state, endpoint.url)
    wish = {"amount": "1200", "currency": "usd", "payment_method": "pm_card_visa", "confirm": "true"}
    headers = {"Authorization": f"Bearer {KEY}", "Idempotency-Key": "k"}
    async with httpx.AsyncClient() as caller:
        first = await caller.post(f"{served.url}/v1/payment_intents", data=wish, headers=headers)
        served.end(signal.SIGKILL)
        endpoint.answers.clear()
        served = Served(state, endpoint.url)
        again = await caller.post(f"{served.url}/v1/payment_intents", data=wish, headers=headers)
        assert (again.content, again.headers["Idempotent-Replayed"]) == (first.content, "true")
        assert len((await caller.get(f"{served.url}/sandbox/charges")).json()) == 1
    await endpoint.until("payment_intent.created", "payment_intent.succeeded", subject=first.json()["id"])
    assert served.end(signal.SIGTERM) == 0


@pytest.mark.scenario("B23")
async def test_kill_9_amid_a_busy_run_charges_every_key_once(tmp_path: Path, endpoint: Endpoint) -> None:
    served = Served(tmp_path / "state", endpoint.url)
    wish = {"amount": "1200", "currency": "usd", "payment_method": "pm_card_visa", "confirm": "true"}
    keys = [f"order-{number}" for number in range(60)]

    async def order(caller: httpx.AsyncClient, key: str) -> str:
        """The intent's id; empty when the connection broke."""
        headers = {"Authorization": f"Bearer {KEY}", "Idempotency-Key": key}
        try:
            answer = await caller.post(f"{served.url}/v1/payment_intents", data=wish, headers=headers)
        except httpx.TransportError:
            return ""
        return str(answer.json()["id"])

    async with httpx.AsyncClient(timeout=20) as caller:
        running = [asyncio.create_task(order(caller, key)) for key in keys]
        await eventually(lambda: sum(task.done() for task in running) >= 10)
        served.end(signal.SIGKILL)
        told = dict(zip(keys, await asyncio.gather(*running), strict=True))
        served = Served(tmp_path / "state", endpoint.url)
        intents = {key: await order(caller, key) for key in keys}
        assert all(intents[key] == known for key, known in told.items() if known)
        charges = (await caller.get(f"{served.url}/sandbox/charges")).json()
        assert sorted(charge["idempotency_key"] for charge in charges) == sorted(keys)
        assert {charge["payment_intent"] for charge in charges} == set(intents.values())
    for intent in intents.values():
        await endpoint.until("payment_intent.succeeded", subject=intent)
    assert served.end(signal.SIGTERM) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_signal_ends_everything_within_three_seconds(tmp_path: Path, number: int) -> None:
    served = Served(tmp_path / "state")
    child = served.localstripe()
    before = time.monotonic()
    assert served.end(number) == 0
    assert time.monotonic() - before < in_time(3)
    assert gone(child)


def test_localstripe_dies_with_a_killed_sandbox_and_its_store_is_found_again(tmp_path: Path) -> None:
    served = Served(tmp_path / "state")
    child = served.localstripe()
    made = client(served.url).v1.products.create({"name": "Ghost"})
    served.end(signal.SIGKILL)
    eventually_sync(lambda: gone(child))
    served = Served(tmp_path / "state")
    served.localstripe()
    assert client(served.url).v1.products.retrieve(made.id).name == "Ghost"
    assert served.end(signal.SIGTERM) == 0


def test_two_sandboxes_live_side_by_side(tmp_path: Path) -> None:
    fixed = Path("/tmp/localstripe.pickle")
    stamp = fixed.stat().st_mtime_ns if fixed.exists() else None
    one, two = Served(tmp_path / "one"), Served(tmp_path / "two")
    one.localstripe()
    two.localstripe()
    client(one.url).v1.products.create({"name": "Ghost"})
    assert client(two.url).v1.products.list().data == []
    assert [product.name for product in client(one.url).v1.products.list().data] == ["Ghost"]
    listening = {
        connection.laddr.ip
        for served in (one, two)
        for child in psutil.Process(served.process.pid).children()
        for connection in child.net_connections(kind="inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening == {"127.0.0.1"}
    assert [one.end(signal.SIGTERM), two.end(signal.SIGTERM)] == [0, 0]
    assert (fixed.stat().st_mtime_ns if fixed.exists() else None) == stamp


async def test_a_localstripe_that_dies_is_started_again(tmp_path: Path) -> None:
    async with StripeSandbox(state_dir=tmp_path) as sandbox:
        gateway = client(sandbox.url)
        await gateway.v1.products.create_async({"name": "Ghost"}, {"idempotency_key": "p"})
        pid = sandbox.localstripe_pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        await eventually(lambda: sandbox.localstripe_pid != pid)
        found = await eventually(lambda: gateway.v1.products.list_async())
        assert [product.name for product in found.data] == ["Ghost"]
        again = await gateway.v1.products.create_async({"name": "Ghost"}, {"idempotency_key": "p"})
        assert again.id == found.data[0].id


async def test_one_state_folder_serves_one_sandbox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploy.local.stripe.sandbox._LOCK_SECONDS", 0.1)
    async with StripeSandbox(state_dir=tmp_path, localstripe=False):
        with pytest.raises(RuntimeError, match="another sandbox"):
            async with StripeSandbox(state_dir=tmp_path, localstripe=False):
                raise AssertionError("opened twice")
