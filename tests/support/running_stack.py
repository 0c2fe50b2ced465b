"""The local stack as a child process. Its addresses are read from its card, as an outside program does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from shutil import rmtree
from typing import Any

import httpx
import psycopg
from psycopg.rows import dict_row

from deploy.ports import free_ports
from tests.support.scratch import scratch_directory
from tests.support.wait import wait_until_sync

ROOT = Path(__file__).resolve().parents[2]
READY_TIMEOUT_SECONDS = 120
STOP_TIMEOUT_SECONDS = 30

Json = dict[str, Any]


@dataclass
class ApiUser:
    """A user of the API. ``request`` returns the status and the whole envelope."""

    api: str
    credentials: Json
    token: str = ""
    http: httpx.Client = field(default_factory=lambda: httpx.Client(timeout=30))

    def sign_in(self) -> None:
        status, response = self.request("POST", "/api/v1/auth/login", self.credentials)
        assert status == 200, response
        self.token = response["data"]["access_token"]

    def request(self, method: str, path: str, body: Json | None = None, *, key: str | None = None) -> tuple[int, Json]:
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        if key is not None:
            headers["Idempotency-Key"] = key
        response = self.http.request(method, f"{self.api}{path}", json=body, headers=headers)
        return response.status_code, response.json()

    def get(self, path: str) -> Any:
        status, response = self.request("GET", path)
        assert status == 200, response
        return response["data"]

    def top_up(self, amount_minor: int, key: str | None = None, currency: str = "USD") -> Json:
        body = {
            "amount_minor": amount_minor,
            "currency": currency,
            "gateway": "stripe",
            "payment_method": "pm_card_visa",
        }
        status, response = self.request("POST", "/api/v1/billing/topups", body, key=key or uuid.uuid4().hex)
        assert status == 201, response
        top_up: Json = response["data"]
        return top_up

    def plan(self, code: str, service: str = "n8n") -> str:
        plans = self.get(f"/api/v1/services/{service}")["plans"]
        return str(next(plan["id"] for plan in plans if plan["code"] == code))

    def create_subscription(self, code: str = "n8n-starter", **more: Any) -> Json:
        body = {"plan_id": self.plan(code), **more}
        status, response = self.request("POST", "/api/v1/subscriptions", body, key=uuid.uuid4().hex)
        assert status in (201, 202), response
        subscription: Json = response["data"]
        return subscription

    def wait_for_status(self, subscription_id: str, *statuses: str, timeout: float = 60) -> Json:
        def has_status() -> Json | None:
            subscription: Json = self.get(f"/api/v1/subscriptions/{subscription_id}")
            return subscription if subscription["status"] in statuses else None

        reached = wait_until_sync(has_status, timeout=timeout, description=f"{subscription_id} is {statuses}")
        assert reached is not None
        return reached

    def advance(self, subscription_id: str, **how: Any) -> str:
        body = {"subscription_id": subscription_id, **how}
        headers = {"Authorization": f"Bearer {self.token}"}
        url = f"{self.api}/api/v1/sandbox/clock/advance"
        response = self.http.post(url, json=body, headers=headers, timeout=180)
        assert response.status_code == 200, response.text
        return str(response.json()["data"]["now"])


@dataclass
class RunningStack:
    home: Path
    process: subprocess.Popen[bytes]
    _customers: list[ApiUser] = field(default_factory=list)

    @property
    def card(self) -> Json:
        card: Json = json.loads((self.home / "card.json").read_text())
        return card

    @property
    def api(self) -> str:
        return str(self.card["urls"]["api"])

    def customer(self) -> ApiUser:
        """Return the demo customer, signed in."""
        return self._sign_in(self.card["accounts"]["customer"])

    def administrator(self) -> ApiUser:
        return self._sign_in(self.card["accounts"]["administrator"])

    def _sign_in(self, credentials: Json) -> ApiUser:
        customer = self.anonymous(credentials)
        customer.sign_in()
        return customer

    def anonymous(self, credentials: Json | None = None) -> ApiUser:
        """Return a user who has not signed in."""
        customer = ApiUser(self.api, credentials or {})
        self._customers.append(customer)
        return customer

    def register(self, *, currency: str = "USD", timezone: str = "UTC") -> ApiUser:
        """Return a new customer, registered, verified by mail and signed in."""
        email = f"{uuid.uuid4().hex[:12]}@customer.example"
        credentials = {"email": email, "password": "correct horse battery staple"}
        customer = self.anonymous(credentials)
        body = {**credentials, "name": "Test Customer", "currency": currency, "timezone": timezone}
        status, response = customer.request("POST", "/api/v1/auth/register", body)
        assert status == 201, response
        token = self.token_in_mail(email)
        status, response = customer.request("POST", "/api/v1/auth/verify-email", {"token": token})
        assert status == 200, response
        customer.sign_in()
        return customer

    def token_in_mail(self, email: str) -> str:
        def find_token() -> str | None:
            for mail in self.mails(email):
                _, separator, remainder = mail["text"].partition("token=")
                if separator:
                    return str(remainder.split()[0].rstrip(").,>"))
            return None

        token = wait_until_sync(find_token, description="the mail with a token")
        assert token is not None
        return token

    def mails(self, to: str | None = None) -> list[Json]:
        url = f"{self.card['urls']['mailbox']}/messages"
        mails: list[Json] = httpx.get(url, params={"to": to} if to else None, timeout=20).json()
        return mails

    def charges(self) -> list[Json]:
        """Return the charges of the simulated card gateway."""
        charges: list[Json] = httpx.get(f"{self.card['urls']['stripe']}/sandbox/charges", timeout=20).json()
        return charges

    def kill(self, name: str) -> int:
        """Kill one process of the stack with SIGKILL; return its pid."""
        pid = int(self.card["processes"][name])
        os.kill(pid, signal.SIGKILL)
        return pid

    def query_as_superuser(self, statement: str, *parameters: Any) -> list[Json]:
        """Query as the superuser, without row-level security: for checking results only."""
        with psycopg.connect(self.card["database"]["url"], row_factory=dict_row, connect_timeout=5) as connection:
            return connection.execute(statement, parameters or None).fetchall()

    def stop(self) -> int:
        for customer in self._customers:
            customer.http.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=STOP_TIMEOUT_SECONDS)


def start_stack(home: Path, port: int, **environment: str) -> RunningStack:
    """Start a stack and wait until its card says that it is ready."""
    log = home.parent / f"{home.name}.log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "deploy.local.supervisor"],
            cwd=ROOT,
            stdout=output,
            stderr=output,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            env={
                **os.environ,
                "BERTH_HOME": str(home),
                "BERTH_PORT": str(port),
                "BERTH_DEMO": "0",
                "BERTH_RATE_LIMIT": "off",
                **environment,
            },
        )
    stack = RunningStack(home, process)

    def is_ready() -> bool:
        assert process.poll() is None, log.read_text()[-4000:]
        try:
            return bool(stack.card["ready"]) and stack.card["processes"]["supervisor"] == process.pid
        except (FileNotFoundError, KeyError):
            return False

    wait_until_sync(is_ready, timeout=READY_TIMEOUT_SECONDS, description="the stack is ready")
    return stack


@contextmanager
def running_stack(**environment: str) -> Iterator[RunningStack]:
    """Start a stack with a temporary home that is removed afterwards."""
    folder = scratch_directory("berth-stack-")
    stack = start_stack(folder / "home", free_ports(1)[0], **environment)
    try:
        yield stack
    finally:
        try:
            assert stack.stop() == 0
        finally:
            rmtree(folder, ignore_errors=True)
