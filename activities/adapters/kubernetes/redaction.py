"""Redact the values of an instance's Secrets in log lines that become part of messages."""

from __future__ import annotations

import base64

from activities.adapters.kubernetes.client import KubernetesClient
from activities.adapters.kubernetes.ownership import owner_of
from activities.service_templates.manifests import InstanceSpec

MIN_SECRET_LENGTH = 8
"""Minimum length in characters. Shorter values also occur in ordinary text."""


async def redacted(client: KubernetesClient, spec: InstanceSpec, text: str) -> str:
    """Return ``text`` with every value of the instance's Secrets replaced by ``[secret]``."""
    for secret in await client.list("Secret", spec.namespace, labels=owner_of(spec).selector):
        for value in (secret.get("data") or {}).values():
            plain = base64.b64decode(value).decode(errors="replace")
            if len(plain) >= MIN_SECRET_LENGTH:
                text = text.replace(plain, "[secret]")
    return text
