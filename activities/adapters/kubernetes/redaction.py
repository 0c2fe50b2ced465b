"""Redact the values of an instance's Secrets in log lines that become part of messages."""

from __future__ import annotations

import base64

from activities.adapters.kubernetes.client import KubernetesClient
from activities.adapters.kubernetes.ownership import owner_of
from activities.service_templates.manifests import InstanceSpec

MIN_SECRET_LENGTH = 8
"""Minimum length in characters. Shorter values also occur in ordinary text."""

LOG_CHARACTERS = 1500


async def redacted_tail(client: KubernetesClient, spec: InstanceSpec, logs: str) -> str:
    """Return the last ``LOG_CHARACTERS`` of logs, with every value of the instance's Secrets as ``[secret]``.

    The values are replaced before the logs are cut: of a value that the cut divides, the rest would be shown.
    """
    text = logs.strip()
    secrets = await client.list("Secret", spec.namespace, labels=owner_of(spec).selector)
    values = {
        base64.b64decode(value).decode(errors="replace")
        for secret in secrets
        for value in (secret.get("data") or {}).values()
    }
    # The longest first: a value may contain another.
    for value in sorted(values, key=len, reverse=True):
        if len(value) >= MIN_SECRET_LENGTH:
            text = text.replace(value, "[secret]")
    return text[-LOG_CHARACTERS:]
