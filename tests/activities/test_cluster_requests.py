"""Requests to the cluster that are in flight when their caller is cancelled."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from activities.adapters.kubernetes.client import KubernetesClient

KUBECONFIG = """
apiVersion: v1
kind: Config
current-context: here
clusters: [{{name: here, cluster: {{server: "http://127.0.0.1:{port}"}}}}]
contexts: [{{name: here, context: {{cluster: here, user: anonymous}}}}]
users: [{{name: anonymous, user: {{}}}}]
"""
RESPONSE = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"


async def test_a_cancelled_caller_waits_for_the_response_to_its_request(tmp_path: Path) -> None:
    """A thread cannot be interrupted: the cluster may execute the request after a deletion that undoes it."""
    received, may_respond = asyncio.Event(), asyncio.Event()

    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        received.set()
        await may_respond.wait()
        writer.write(RESPONSE)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(respond, "127.0.0.1", 0)
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(KUBECONFIG.format(port=server.sockets[0].getsockname()[1]))
    client = KubernetesClient.from_kubeconfig(kubeconfig)
    try:
        patching = asyncio.create_task(client.patch("Namespace", None, "ins-1", {}))
        await received.wait()
        patching.cancel()
        ended, _ = await asyncio.wait({patching}, timeout=0.2)
        assert not ended, "the caller went on while its request was in flight"
        may_respond.set()
        with pytest.raises(asyncio.CancelledError):
            await patching
    finally:
        may_respond.set()
        client.close()
        server.close()
        await server.wait_closed()
