"""Payloads are encrypted before they leave the process: histories hold no readable personal data.

AES-256-GCM; the key's id travels in the metadata so that keys can be rotated: every known key decrypts, the first one
encrypts. Payloads without the marker pass through unchanged, so that old histories stay readable.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from temporalio.api.common.v1 import Payload
from temporalio.converter import PayloadCodec

ENCODING = b"binary/encrypted"
NONCE_BYTES = 12


class UnknownEncryptionKey(Exception):
    """A payload was encrypted with a key that this process does not have."""


class EncryptionCodec(PayloadCodec):
    """Encrypts with the first of ``keys`` (pairs of id and 32 bytes) and decrypts with any of them."""

    def __init__(self, keys: Iterable[tuple[str, bytes]]) -> None:
        pairs = tuple(keys)
        self._active_key_id = pairs[0][0]
        self._ciphers = {key_id: AESGCM(key) for key_id, key in pairs}

    async def encode(self, payloads: Sequence[Payload]) -> list[Payload]:
        return [self._encrypted(payload) for payload in payloads]

    async def decode(self, payloads: Sequence[Payload]) -> list[Payload]:
        return [self._decrypted(payload) for payload in payloads]

    def _encrypted(self, payload: Payload) -> Payload:
        nonce = os.urandom(NONCE_BYTES)
        ciphertext = self._ciphers[self._active_key_id].encrypt(nonce, payload.SerializeToString(), None)
        metadata = {"encoding": ENCODING, "encryption-key-id": self._active_key_id.encode()}
        return Payload(metadata=metadata, data=nonce + ciphertext)

    def _decrypted(self, payload: Payload) -> Payload:
        if payload.metadata.get("encoding") != ENCODING:
            return payload
        key_id = payload.metadata["encryption-key-id"].decode()
        cipher = self._ciphers.get(key_id)
        if cipher is None:
            raise UnknownEncryptionKey(key_id)
        return Payload.FromString(cipher.decrypt(payload.data[:NONCE_BYTES], payload.data[NONCE_BYTES:], None))
