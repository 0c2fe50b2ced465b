"""Identifiers: opaque, prefixed, and derived where a retry must find the same object again."""

from __future__ import annotations

import base64
import hashlib


def derive_id(prefix: str, *parts: str) -> str:
    """Return ``<prefix>_<24 characters>`` that depends on ``parts`` alone (SHA-256, lower-case base 32).

    Used for what an account orders under an ``Idempotency-Key``: the same account and key give the same id for ever.
    The characters are legal in DNS labels, so that an instance's id can be part of a namespace's name.
    """
    digest = hashlib.sha256("\x1f".join(parts).encode()).digest()[:15]
    return f"{prefix}_{base64.b32encode(digest).decode().lower()}"


def to_dns_label(identifier: str) -> str:
    """Return the identifier as a DNS label: ``ins_abc`` becomes ``ins-abc``."""
    return identifier.replace("_", "-")


def cleanup_operation_id(instance_id: str) -> str:
    """Return the id of the deletion that finishes the rollback of an instance's provisioning."""
    return f"{instance_id}-cleanup"
