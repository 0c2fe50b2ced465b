"""Secrets at rest: AES-256-GCM under a key that lives outside the database.

A sealed text names its key, so that keys can be rotated: every known key opens, the first one seals. ``purpose`` is
authenticated with it: a text sealed for one column or row does not open as another's.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterable, Mapping

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

NONCE_BYTES = 12
SESSION_INFO_KEY = "sealer"
"""Under which name a session carries its sealer in ``session.info``."""


class UnknownEncryptionKey(Exception):
    """A text was sealed with a key that this process does not have."""


class FieldEncryption:
    """Seals with the first of ``keys`` (pairs of id and 32 bytes) and opens with any of them."""

    def __init__(self, keys: Iterable[tuple[str, bytes]]) -> None:
        pairs = tuple(keys)
        self._current = pairs[0][0]
        self._ciphers = {key_id: AESGCM(key) for key_id, key in pairs}

    def encrypt(self, plain: str, *, purpose: str) -> str:
        nonce = os.urandom(NONCE_BYTES)
        sealed = self._ciphers[self._current].encrypt(nonce, plain.encode(), purpose.encode())
        return f"{self._current}.{base64.urlsafe_b64encode(nonce + sealed).decode()}"

    def decrypt(self, sealed: str, *, purpose: str) -> str:
        """Return the plain text.

        Raises:
            UnknownEncryptionKey: this process does not have the key.
            cryptography.exceptions.InvalidTag: the text was changed, or sealed for another purpose.
        """
        key_id, _, text = sealed.rpartition(".")
        cipher = self._ciphers.get(key_id)
        if cipher is None:
            raise UnknownEncryptionKey(key_id)
        data = base64.urlsafe_b64decode(text)
        return cipher.decrypt(data[:NONCE_BYTES], data[NONCE_BYTES:], purpose.encode()).decode()

    def encrypt_mapping(self, plain: Mapping[str, str], *, purpose: str) -> str:
        return self.encrypt(json.dumps(dict(plain)), purpose=purpose)

    def decrypt_mapping(self, sealed: str, *, purpose: str) -> dict[str, str]:
        plain: dict[str, str] = json.loads(self.decrypt(sealed, purpose=purpose))
        return plain
