"""Argon2id password hashing in a thread pool. Unknown users verify against a dummy hash in the same time."""

from __future__ import annotations

import asyncio
import warnings

from passlib.context import CryptContext
from passlib.hash import argon2

with warnings.catch_warnings():
    # passlib asks argon2-cffi for its version in a way that the latter deprecates.
    warnings.simplefilter("ignore", DeprecationWarning)
    argon2.set_backend("argon2_cffi")

# OWASP's second recommendation: 19 MiB, two passes. A changed figure rehashes at the next sign-in.
_context = CryptContext(
    schemes=["argon2"],
    argon2__type="ID",
    argon2__memory_cost=19 * 1024,
    argon2__time_cost=2,
    argon2__parallelism=1,
)

MAX_CONCURRENT_HASHES = 4
"""Hashes at work at the same time; each takes 19 MiB."""


def hash_password(password: str) -> str:
    """Blocks for some tens of milliseconds."""
    return str(_context.hash(password))


class PasswordHasher:
    """Hashing that does not hold up the event loop."""

    def __init__(self) -> None:
        self._semaphore = asyncio.Semaphore(MAX_CONCURRENT_HASHES)
        self._dummy_hash = hash_password("the password of an account that does not exist")

    async def hash(self, password: str) -> str:
        async with self._semaphore:
            return await asyncio.to_thread(hash_password, password)

    async def verify(self, password: str, hashed: str | None) -> tuple[bool, str | None]:
        """Return whether it is the right one, and a new hash where the parameters have changed since.

        ``hashed`` None (no such account) takes the same time and is wrong.
        """
        async with self._semaphore:
            right, upgraded_hash = await asyncio.to_thread(
                _context.verify_and_update, password, hashed or self._dummy_hash
            )
        if hashed is None or not right:
            return False, None
        return True, upgraded_hash
