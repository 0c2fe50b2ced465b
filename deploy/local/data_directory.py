"""The folder that holds all state of one stack: lock, ports, secrets and running processes."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import secrets
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from deploy.local.process import ProcessIdentity


class HomeInUse(RuntimeError):
    """Another supervisor holds the lock of this data directory; the message is its pid."""


def write_atomically(path: Path, value: object, mode: int = 0o600) -> None:
    """Replace `path` with JSON atomically: a reader sees the old or the new document, also after a crash."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, "w") as out:
        os.fchmod(descriptor, mode)
        json.dump(value, out, indent=2)
        out.write("\n")
        out.flush()
        os.fsync(descriptor)
    partial.replace(path)


def read_json(path: Path) -> dict[str, Any]:
    """Return the document that `write_atomically` wrote; empty when the file is missing or unreadable."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def generate_secrets() -> dict[str, Any]:
    """Return new random secrets for one data directory."""
    return {
        "jwt_secret": secrets.token_urlsafe(48),
        "encryption_key": base64.b64encode(secrets.token_bytes(32)).decode(),
        "stripe_api_key": f"sk_test_{secrets.token_hex(16)}",
        "stripe_webhook_secret": f"whsec_{secrets.token_hex(24)}",
        # .example is reserved, so mails of a sandbox never reach a real mailbox.
        "administrator": {"email": "admin@berth.example", "password": secrets.token_urlsafe(12)},
        "customer": {"email": "ada@customer.example", "password": secrets.token_urlsafe(12)},
    }


class Home:
    """One BERTH_HOME. Created when absent, with mode 0700."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.logs = self.path / "logs"
        self.card_file = self.path / "card.json"
        self._state_file = self.path / "state.json"
        self._secrets_file = self.path / "secrets.json"
        self._processes_file = self.path / "processes.json"

    def create(self) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        self.path.chmod(0o700)
        self.logs.mkdir(exist_ok=True)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock of the data directory. The kernel releases it when this process ends. Raises `HomeInUse`."""
        with (self.path / "lock").open("a+") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as exc:
                lock.seek(0)
                raise HomeInUse(lock.read().strip() or "unknown") from exc
            lock.truncate(0)
            lock.write(f"{os.getpid()}\n")
            lock.flush()
            yield

    # ------------------------------------------------------------ stored state

    @property
    def state(self) -> dict[str, Any]:
        return read_json(self._state_file)

    def save_state(self, **values: object) -> None:
        write_atomically(self._state_file, self.state | values)

    def secrets(self) -> dict[str, Any]:
        """Return the secrets of this data directory; generates them the first time."""
        stored = read_json(self._secrets_file)
        complete = generate_secrets() | stored
        if complete != stored:
            write_atomically(self._secrets_file, complete)
        return complete

    def save_processes(self, running: dict[str, ProcessIdentity]) -> None:
        write_atomically(self._processes_file, {name: asdict(identity) for name, identity in running.items()})

    def load_processes(self) -> dict[str, ProcessIdentity]:
        """Return the processes that the last supervisor of this data directory recorded."""
        return {
            name: ProcessIdentity(pid=entry["pid"], started_at=entry["started_at"])
            for name, entry in read_json(self._processes_file).items()
        }
