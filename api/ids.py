"""Fresh identifiers and secrets."""

from __future__ import annotations

import base64
import hashlib
import secrets


def generate_id(prefix: str) -> str:
    """``usr_`` and 24 random characters of lower-case base 32: the form of ``workflows.rules.ids.derived``."""
    return f"{prefix}_{base64.b32encode(secrets.token_bytes(15)).decode().lower()}"


def generate_secret(prefix: str) -> str:
    """An opaque token of 256 bits; the prefix lets scanners of leaked secrets recognize it."""
    return f"{prefix}_{secrets.token_urlsafe(32)}"


def hash_token(secret: str) -> str:
    """What is stored of a token. It is random and long, so a plain SHA-256 cannot be reversed."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()
