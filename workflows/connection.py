"""Connections to the Temporal server, with the payload converter and the encryption of the platform."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import temporalio.converter
from temporalio.client import Client
from temporalio.service import RetryConfig, TLSConfig

from workflows.codec import EncryptionCodec
from workflows.converter import PayloadConverter
from workflows.settings import TemporalSettings


def data_converter(settings: TemporalSettings) -> temporalio.converter.DataConverter:
    default_converter = replace(temporalio.converter.default(), payload_converter_class=PayloadConverter)
    if not settings.encryption_keys:
        return default_converter
    return replace(
        default_converter,
        payload_codec=EncryptionCodec(settings.encryption_keys),
        failure_converter_class=temporalio.converter.DefaultFailureConverterWithEncodedAttributes,
    )


async def connect(settings: TemporalSettings, *, lazy: bool = False, **options: Any) -> Client:
    """Return a client. ``lazy`` connects at the first call, so that the API starts while Temporal is unavailable."""
    return await Client.connect(
        settings.address,
        namespace=settings.namespace,
        data_converter=data_converter(settings),
        tls=_tls(settings),
        api_key=settings.api_key,
        lazy=lazy,
        retry_config=RetryConfig(max_retries=2, max_elapsed_time_millis=2_000),
        **options,
    )


def _tls(settings: TemporalSettings) -> TLSConfig | bool:
    if not settings.tls and settings.api_key is None:
        return False
    ca, certificate, key = (
        text.encode() if text else None for text in (settings.ca, settings.certificate, settings.key)
    )
    return TLSConfig(server_root_ca_cert=ca, client_cert=certificate, client_private_key=key)
