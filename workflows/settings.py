"""Settings of the connection to Temporal."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class TemporalSettings:
    """Where the Temporal server is. ``encryption_keys`` maps key ids to 32-byte keys; the first one encrypts.

    Attributes:
        tls: Whether the connection is encrypted; an API key is sent over TLS only.
        ca: PEM of the authority that signed the server's certificate; None: those of the system.
        certificate, key: PEM of the client's certificate and its private key (mTLS).
    """

    address: str
    namespace: str = "default"
    tls: bool = False
    ca: str | None = None
    certificate: str | None = None
    key: str | None = field(default=None, repr=False)
    api_key: str | None = field(default=None, repr=False)
    encryption_keys: tuple[tuple[str, bytes], ...] = field(default=(), repr=False)


def parse_encryption_keys(text: str) -> tuple[tuple[str, bytes], ...]:
    """Read keys as settings spell them: ``id:base64[,id:base64…]``, the first one encrypts; without an id it is ``1``.

    Raises:
        ValueError: a key is not 32 bytes of base64 (either alphabet), or an id appears twice.
    """
    keys: dict[str, bytes] = {}
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        key_id, _, encoded = part.rpartition(":")
        key = base64.b64decode(encoded.replace("-", "+").replace("_", "/"), validate=True)
        if len(key) != 32 or (key_id or "1") in keys:
            raise ValueError("each encryption key has 32 bytes and a unique id")
        keys[key_id or "1"] = key
    return tuple(keys.items())
