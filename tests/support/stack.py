"""The whole one-machine stack as a child process, found through its card, as an outsider finds it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
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

from deploy.local.ports import free_ports
from tests.support.wait import eventually_sync

ROOT = Path(__file__).resolve().parents[2]
READY_WITHIN = 120
STOPPED_WITHIN = 30

Json = dict[str, Any]


@dataclass
class Customer:
    """Somebody signed in. ``call`` returns the status and the whole envelope."""

    api: str
    credentials: Json
    token: str = ""
    http: httpx.Client = field(default_factory=lambda: httpx.Client(timeout=30))

    def sign_in(self) -> None:
        status, answer = self.call("POST", "/api/v1/auth/login", self.credentials)
        assert status == 200, answer
        self.token = answer["data"]["access_token"]

    def call(self, method: str, path: str, body: Json | None = None, *, key: str | None = None) -> tuple[int, Json]:
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        if key is not None:
            headers["Idempotency-Key"] = key
        response = self.http.request(method, f"{self.api}{path}", json=body, headers=headers)
        return response.status_code, response.json()

    def get(self, path: str) -> Any:
        status, answer = self.call("GET", path)
        assert status == 200, answer
        return answer["data"]

    def top_up(self, amount_minor: int, key: str | None = None, currency: str = "USD") -> Json:
        body = {
            "amount_minor": amount_minor,
            "currency": currency,
            "gateway": "stripe",
            "payment_method": "pm_card_visa",
        }
        status, answer = self.call("POST", "/api/v1/billing/topups", body, key=key or uuid.uuid4().hex)
        assert status == 201, answer
        found: Json = answer["data"]
        return found

    def plan(self, code: str, service: str = "n8n") -> str:
        plans = self.get(f"/api/v1/services/{service}")["plans"]
        return str(next(plan["id"] for plan in plans if plan["code"] == code))

    def order(self, code: str = "n8n-starter", **more: Any) -> Json:
        body = {"plan_id": self.plan(code), **more}
        status, answer = self.call("POST", "/api/v1/subscriptions", body, key=uuid.uuid4().hex)
        assert status in (201, 202), answer
        found: Json = answer["data"]
        return found

    def until(self, subscription_id: str, *statuses: str, timeout: float = 60) -> Json:
        def there() -> Json | None:
            found: Json = self.get(f"/api/v1/subscriptions/{subscription_id}")
            return found if found["status"] in statuses else None

        found = eventually_sync(there, timeout=timeout, what=f"{subscription_id} is {statuses}")
        assert found is not None
        return found

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
    _customers: list[Customer] = field(default_factory=list)

    @property
    def card(self) -> Json:
        found: Json = json.loads((self.home / "card.json").read_text())
        return found

    @property
    def api(self) -> str:
        return str(self.card["urls"]["api"])

    def customer(self) -> Customer:
        """The demonstration customer, signed in."""
        return self._signed_in(self.card["accounts"]["customer"])

    def administrator(self) -> Customer:
        return self._signed_in(self.card["accounts"]["administrator"])

    def _signed_in(self, credentials: Json) -> Customer:
        customer = self.visitor(credentials)
        customer.sign_in()
        return customer

    def visitor(self, credentials: Json | None = None) -> Customer:
        """Somebody who has not signed in yet."""
        customer = Customer(self.api, credentials or {})
        self._customers.append(customer)
        return customer

    def register(self, *, currency: str = "USD", timezone: str = "UTC") -> Customer:
        """A new customer, registered and verified by mail."""
        email = f"{uuid.uuid4().hex[:12]}@customer.example"
        credentials = {"email": email, "password": "correct horse battery staple"}
        customer = self.visitor(credentials)
        body = {**credentials, "name": "Test Customer", "currency": currency, "timezone": timezone}
        status, answer = customer.call("POST", "/api/v1/auth/register", body)
        assert status == 201, answer
        token = self.token_in_mail(email)
        status, answer = customer.call("POST", "/api/v1/auth/verify-email", {"token": token})
        assert status == 200, answer
        customer.sign_in()
        return customer

    def token_in_mail(self, email: str) -> str:
        def look() -> str | None:
            for mail in self.mails(email):
                _, found, rest = mail["text"].partition("token=")
                if found:
                    return str(rest.split()[0].rstrip(").,>"))
            return None

        token = eventually_sync(look, what="the mail with a token")
        assert token is not None
        return token

    def mails(self, to: str | None = None) -> list[Json]:
        url = f"{self.card['urls']['mailbox']}/messages"
        found: list[Json] = httpx.get(url, params={"to": to} if to else None, timeout=20).json()
        return found

    def charges(self) -> list[Json]:
        """What the card gateway believes."""
        found: list[Json] = httpx.get(f"{self.card['urls']['stripe']}/sandbox/charges", timeout=20).json()
        return found

    def kill(self, name: str) -> int:
        """kill -9 one process of the stack; returns its pid."""
        pid = int(self.card["processes"][name])
        os.kill(pid, signal.SIGKILL)
        return pid

    def rows(self, statement: str, *parameters: Any) -> list[Json]:
        """Ask the database as its superuser: for looking at results only."""
        with psycopg.connect(self.card["database"]["url"], row_factory=dict_row, connect_timeout=5) as connection:
            return connection.execute(statement, parameters or None).fetchall()

    def stop(self) -> int:
        for customer in self._customers:
            customer.http.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=STOPPED_WITHIN)


def start(home: Path, port: int, **environment: str) -> RunningStack:
    """Start a stack and wait until its card says that it serves."""
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

    def serves() -> bool:
        assert process.poll() is None, log.read_text()[-4000:]
        try:
            return bool(stack.card["ready"]) and stack.card["processes"]["supervisor"] == process.pid
        except (FileNotFoundError, KeyError):
            return False

    eventually_sync(serves, timeout=READY_WITHIN, what="the stack serves")
    return stack


@contextmanager
def running_stack(**environment: str) -> Iterator[RunningStack]:
    """A stack on a home of its own that is removed afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="berth-stack-"))
    stack = start(folder / "home", free_ports(1)[0], **environment)
    try:
        yield stack
    finally:
        try:
            assert stack.stop() == 0
        finally:
            rmtree(folder, ignore_errors=True)
