"""Whether a secret of the settings can be guessed although it is long."""

from __future__ import annotations

import re
from base64 import b64decode
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise

from pydantic import ValidationInfo

from api.environment import is_deployed

MIN_DIFFERENT_CHARACTERS = 5
"""Of a secret; a random one of 16 hexadecimal digits has fewer once in a million."""
MIN_PATTERN_LENGTH = 16
"""Of a string that a secret repeats."""
MIN_DECODED_BYTES = 8
"""Of an encoded secret: fewer random bytes could be a sequence by chance."""
PLACEHOLDER_WORDS = (
    "changeme", "changethis", "default", "example", "goeshere", "insecure", "passwd", "password", "placeholder",
    "replaceme", "secret", "signingkey", "webhook",
)  # fmt: skip
"""Words of secrets in documentation, without separators; six letters or more, which no random secret has by chance."""
KEYBOARD_ROWS = ("1234567890", "qwertyuiop", "asdfghjkl", "zxcvbnm")
RANDOM_REMEDY = "Set a random one, such as `openssl rand -base64 32` prints"

_KEYBOARD_NEIGHBOURS = frozenset(frozenset(pair) for row in KEYBOARD_ROWS for pair in pairwise(row.encode()))
"""Pairs of character codes."""


def check_not_guessable(secret: str, info: ValidationInfo, *, remedy: str = RANDOM_REMEDY) -> None:
    """Refuse a secret such as ``aaaa…``, ``abcdeabcde…``, ``0123…`` or ``changeme…`` where customers are real.

    It is long and can be guessed, also when it is the hexadecimal or Base64 form of such bytes. The error does not
    quote it.

    Args:
        remedy: What the operator does instead.
    """
    if not is_deployed(info):
        return
    for reading in _readings(secret):
        if (weakness := _find_weakness(reading)) is not None:
            raise ValueError(f"{weakness}, so that it can be guessed. {remedy}")


def _readings(secret: str) -> Iterator[bytes]:
    """Yield the secret, and the bytes that it is the hexadecimal or Base64 form of (either alphabet)."""
    yield secret.encode()
    decoded = []
    if re.fullmatch(r"(?:[0-9A-Fa-f]{2})+", secret):
        decoded.append(bytes.fromhex(secret))
    digits = secret.rstrip("=").replace("-", "+").replace("_", "/")
    with suppress(ValueError):
        decoded.append(b64decode(digits + "=" * (-len(digits) % 4), validate=True))
    yield from (content for content in decoded if len(content) >= MIN_DECODED_BYTES)


def _find_weakness(secret: bytes) -> str | None:
    """Return in words why a secret can be guessed, None if it cannot."""
    if len(set(secret)) < MIN_DIFFERENT_CHARACTERS or _repeats_short_pattern(secret):
        return "repeats a few characters"
    if _is_sequence(secret):
        return "is a sequence of neighbouring characters"
    letters = re.sub(r"[-_. ]", "", secret.decode("latin-1").lower())
    return "contains a placeholder" if any(word in letters for word in PLACEHOLDER_WORDS) else None


def _repeats_short_pattern(secret: bytes) -> bool:
    """Return whether ``secret`` repeats a string of less than `MIN_PATTERN_LENGTH`; the last time it may be cut off."""
    longest = min(MIN_PATTERN_LENGTH - 1, len(secret) // 2)
    return any(secret[length:] == secret[:-length] for length in range(1, longest + 1))


def _is_sequence(secret: bytes) -> bool:
    """Return whether three quarters of the characters follow from those before them.

    As in ``0123456789abcdef`` and ``qwertyuiop``, up or down, or by another step that stays the same (``0x00 0x11
    0x22``). Of a random secret a fifth do at most, of hexadecimal digits.
    """
    pairs = list(pairwise(secret))
    steps = Counter(abs(after - before) for before, after in pairs)
    keys = sum(
        abs(after - before) == 1 or frozenset((before, after)) in _KEYBOARD_NEIGHBOURS
        for before, after in pairwise(secret.lower())
    )
    return max(keys, *steps.values()) >= 3 / 4 * len(pairs)
