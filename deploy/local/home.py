"""The folder that holds all state of one stack: its lock, its ports, its secrets, what runs."""

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

from deploy.local.process import Identity


class HomeInUse(RuntimeError):
    """Another supervisor holds this home."""


def write_atomically(path: Path, value: object, mode: int = 0o600) -> None:
    """Replace `path` by JSON: a reader sees the old or the new whole, also after a crash."""
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
    """What `write_atomically` wrote; empty when there is nothing (readable)."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def new_secrets() -> dict[str, Any]:
    """Random ones, for one home only."""
    return {
        "jwt_secret": secrets.token_urlsafe(48),
        "encryption_key": base64.b64encode(secrets.token_bytes(32)).decode(),
        "stripe_api_key": f"sk_test_{secrets.token_hex(16)}",
        "stripe_webhook_secret": f"whsec_{secrets.token_hex(24)}",
        # .example is reserved, so no mail of a sandbox can ever reach anybody.
        "administrator": {"email": "admin@berth.example", "password": secrets.token_urlsafe(12)},
        "customer": {"email": "ada@customer.example", "password": secrets.token_urlsafe(12)},
    }


class Home:
    """One BERTH_HOME. Made when absent, for its owner alone."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.logs = self.path / "logs"
        self.card_file = self.path / "card.json"
        self._state_file = self.path / "state.json"
        self._secrets_file = self.path / "secrets.json"
        self._processes_file = self.path / "processes.json"

    def make(self) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        self.path.chmod(0o700)
        self.logs.mkdir(exist_ok=True)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the home; the kernel lets go when this process ends, however it ends. Raises `HomeInUse`."""
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

    # ------------------------------------------------------------ what is remembered

    @property
    def state(self) -> dict[str, Any]:
        return read_json(self._state_file)

    def remember(self, **values: object) -> None:
        write_atomically(self._state_file, self.state | values)

    def secrets(self) -> dict[str, Any]:
        """The secrets of this home, made the first time."""
        known = read_json(self._secrets_file)
        made = new_secrets() | known
        if made != known:
            write_atomically(self._secrets_file, made)
        return made

    def record_processes(self, running: dict[str, Identity]) -> None:
        write_atomically(self._processes_file, {name: asdict(identity) for name, identity in running.items()})

    def recorded_processes(self) -> dict[str, Identity]:
        """What the last supervisor of this home had running."""
        return {
            name: Identity(pid=entry["pid"], born=entry["born"])
            for name, entry in read_json(self._processes_file).items()
        }
