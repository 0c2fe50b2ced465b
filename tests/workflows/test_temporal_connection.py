"""The connection to a Temporal server behind TLS: its certificate is verified, and the client's is presented."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from deploy.ports import free_ports
from tests.support.certificates import Identity, create_identity
from tests.support.temporal import TemporalFixture
from workflows.client import WorkflowClient
from workflows.connection import connect
from workflows.ports.subscription import CreateSubscription, LifecycleCommand
from workflows.rpc_errors import TemporalUnavailable
from workflows.settings import TemporalSettings

LOOPBACK = "127.0.0.1"


@asynccontextmanager
async def tls_proxy(upstream: str, server: Identity, client: Identity, folder: Path) -> AsyncIterator[str]:
    """Terminate TLS before the server ``upstream``, as a load balancer that knows one client does."""
    chain = folder / "server.pem"
    chain.write_text(server.certificate + server.key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain)
    context.load_verify_locations(cadata=client.certificate)
    context.verify_mode = ssl.CERT_REQUIRED
    context.set_alpn_protocols(["h2"])
    host, _, port = upstream.rpartition(":")

    async def copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(65_536):
                target.write(data)
                await target.drain()
        except OSError:
            pass
        finally:
            target.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream_reader, upstream_writer = await asyncio.open_connection(host, int(port))
        await asyncio.gather(copy(reader, upstream_writer), copy(upstream_reader, writer))

    listener = await asyncio.start_server(serve, LOOPBACK, 0, ssl=context)
    try:
        yield f"{LOOPBACK}:{listener.sockets[0].getsockname()[1]}"
    finally:
        listener.close()


async def test_the_connection_is_encrypted_and_both_sides_are_verified(
    temporal: TemporalFixture, tmp_path: Path
) -> None:
    server, client, stranger = create_identity(), create_identity(), create_identity()
    async with tls_proxy(temporal.address, server, client, tmp_path) as address:
        trusted = TemporalSettings(
            address=address, tls=True, ca=server.certificate, certificate=client.certificate, key=client.key
        )
        connected = await connect(trusted)
        assert (await connected.count_workflows("WorkflowId = 'none'")).count == 0
        for refused in (
            TemporalSettings(address=address),
            TemporalSettings(address=address, tls=True, certificate=client.certificate, key=client.key),
            TemporalSettings(
                address=address, tls=True, ca=stranger.certificate, certificate=client.certificate, key=client.key
            ),
            TemporalSettings(
                address=address, tls=True, ca=server.certificate, certificate=stranger.certificate, key=stranger.key
            ),
        ):
            with pytest.raises(RuntimeError, match="connect"):
                await connect(refused)


async def test_a_client_that_never_connected_reports_temporal_as_unavailable() -> None:
    """The API starts while Temporal is unavailable: an order is then answered 503, as later."""
    (port,) = free_ports(1)
    workflows = WorkflowClient(await connect(TemporalSettings(address=f"{LOOPBACK}:{port}"), lazy=True))
    order = CreateSubscription(
        subscription_id="sub_1", instance_id="ins_1", organization_id="org_1", user_id="usr_1", plan_id="pln_1"
    )
    with pytest.raises(TemporalUnavailable):
        await workflows.create_subscription(order)
    with pytest.raises(TemporalUnavailable):
        await workflows.pause("sub_1", LifecycleCommand(update_id="ord_1", actor="usr_1"))
    with pytest.raises(TemporalUnavailable):
        await workflows.is_running("subscription/sub_1")


async def test_an_api_key_is_sent_over_tls_only(temporal: TemporalFixture) -> None:
    with pytest.raises(RuntimeError, match="connect"):
        await connect(TemporalSettings(address=temporal.address, api_key="key"))


def test_keys_are_not_shown() -> None:
    assert "hidden" not in repr(
        TemporalSettings(address="a:1", key="hidden", api_key="hidden", encryption_keys=(("1", b"hidden"),))
    )
