"""Just enough of an API client to set up a control plane, without any vendor's library."""

from __future__ import annotations

import http.client
import json
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit


class ApiRefused(RuntimeError):
    """An answer that was not expected."""


class Api:
    """One connection per call: it is used at the start and by the provisioner, a few times a second at most."""

    def __init__(self, url: str, authority: Path, token: str) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "", parts.port
        self._tls = ssl.create_default_context(cafile=str(authority))
        self._headers = {"Authorization": f"Bearer {token}", "Accept": "application/json"}

    def _connection(self, timeout: float) -> http.client.HTTPSConnection:
        return http.client.HTTPSConnection(self._host, self._port, context=self._tls, timeout=timeout)

    def call(self, method: str, path: str, body: Any = None, *, kind: str = "application/json") -> tuple[int, Any]:
        """Status and parsed body. Raises OSError where nobody answers."""
        connection = self._connection(10.0)
        try:
            data = None if body is None else json.dumps(body)
            connection.request(method, path, data, {**self._headers, "Content-Type": kind})
            answer = connection.getresponse()
            text = answer.read()
        except http.client.HTTPException as exc:
            raise ApiRefused(f"{method} {path}: {exc!r}") from exc
        finally:
            connection.close()
        try:
            return answer.status, json.loads(text or b"null")
        except json.JSONDecodeError:
            return answer.status, text.decode()

    def ensure(self, path: str, name: str, obj: Any) -> None:
        """Create unless it is there."""
        status, answer = self.call("POST", path, obj)
        if status not in (200, 201, 409):
            raise ApiRefused(f"{path}/{name}: {status} {answer}")

    def watch(self, path: str, seconds: int) -> Iterator[dict[str, Any]]:
        """Events of a watch from now back, until its timeout."""
        connection = self._connection(seconds + 10.0)
        try:
            connection.request("GET", f"{path}?watch=true&timeoutSeconds={seconds}", headers=self._headers)
            answer = connection.getresponse()
            while line := answer.readline():
                yield json.loads(line)
        except http.client.HTTPException as exc:
            raise ApiRefused(f"watch {path}: {exc!r}") from exc
        finally:
            connection.close()
