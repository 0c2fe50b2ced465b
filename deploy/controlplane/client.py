"""Just enough of an API client to set up a control plane, without any vendor's library."""

from __future__ import annotations

import http.client
import json
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit


class UnexpectedResponse(RuntimeError):
    """The API server returned an unexpected status or broke off its response."""


class KubernetesApi:
    """One connection per call: it is used at the start and by the provisioner, a few times a second at most."""

    def __init__(self, url: str, authority: Path, token: str) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "", parts.port
        self._tls = ssl.create_default_context(cafile=str(authority))
        self._headers = {"Authorization": f"Bearer {token}", "Accept": "application/json"}

    def _connection(self, timeout: float) -> http.client.HTTPSConnection:
        return http.client.HTTPSConnection(self._host, self._port, context=self._tls, timeout=timeout)

    def call(
        self, method: str, path: str, body: Any = None, *, content_type: str = "application/json"
    ) -> tuple[int, Any]:
        """Return the status and the parsed body. Raises OSError when the server is unreachable."""
        connection = self._connection(10.0)
        try:
            data = None if body is None else json.dumps(body)
            connection.request(method, path, data, {**self._headers, "Content-Type": content_type})
            response = connection.getresponse()
            text = response.read()
        except http.client.HTTPException as exc:
            raise UnexpectedResponse(f"{method} {path}: {exc!r}") from exc
        finally:
            connection.close()
        try:
            return response.status, json.loads(text or b"null")
        except json.JSONDecodeError:
            return response.status, text.decode()

    def create_if_missing(self, path: str, name: str, obj: Any) -> None:
        """Create the object unless it exists."""
        status, response = self.call("POST", path, obj)
        if status not in (200, 201, 409):
            raise UnexpectedResponse(f"{path}/{name}: {status} {response}")

    def watch(self, path: str, seconds: int) -> Iterator[dict[str, Any]]:
        """Yield the events of a watch, starting with the existing objects, until its timeout."""
        connection = self._connection(seconds + 10.0)
        try:
            connection.request("GET", f"{path}?watch=true&timeoutSeconds={seconds}", headers=self._headers)
            response = connection.getresponse()
            while line := response.readline():
                yield json.loads(line)
        except http.client.HTTPException as exc:
            raise UnexpectedResponse(f"watch {path}: {exc!r}") from exc
        finally:
            connection.close()
