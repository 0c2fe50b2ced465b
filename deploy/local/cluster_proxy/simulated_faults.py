"""Faults of pods and nodes in the simulated cluster: forwarded to it."""

from __future__ import annotations

from typing import Any

import aiohttp

from deploy.local.cluster_proxy.faults import BadFault
from deploy.local.cluster_proxy.upstream import Upstream


class SimulatedPodFaults:
    """Implements `PodFaults`."""

    def __init__(self, upstream: Upstream, session: aiohttp.ClientSession) -> None:
        self._url = f"{upstream.url}/sandbox/faults"
        self._session = session

    async def add(self, request: dict[str, Any]) -> dict[str, Any]:
        async with self._session.post(self._url, json=request) as response:
            body: dict[str, Any] = await response.json()
            if response.status != 201:
                raise BadFault(body["error"])
            return body

    async def clear(self) -> None:
        async with self._session.delete(self._url) as response:
            response.raise_for_status()

    async def listed(self) -> list[dict[str, Any]]:
        async with self._session.get(self._url) as response:
            faults: list[dict[str, Any]] = (await response.json())["faults"]
            return faults
