"""Whether a secret of the settings can be guessed although it is long."""

from __future__ import annotations

import re
from itertools import pairwise

from pydantic import ValidationInfo

from api.environment import is_deployed

MIN_DIFFERENT_CHARACTERS = 5
"""Of a secret; a random one of 16 hexadecimal digits has fewer once in a million."""
MIN_PATTERN_LENGTH = 16
"""Of a string that a secret repeats."""
PLACEHOLDER_WORDS = (
    "changeme", "changethis", "default", "example", "insecure", "passwd", "password", "placeholder", "replaceme",
    "secret",
)  # fmt: skip
"""Words of secrets in documentation, without separators; six letters or more, which no random secret has by chance."""
RANDOM_REMEDY = "Set a random one, such as `openssl rand -base64 32` prints"


def check_not_guessable(secret: str | bytes, info: ValidationInfo, *, remedy: str = RANDOM_REMEDY) -> None:
    """Refuse a secret such as ``aaaa…``, ``abcdeabcde…``, ``0123…`` or ``changeme…`` where customers are real.

    It is long and can be guessed. The error does not quote it.

    Args:
        remedy: What the operator does instead.
    """
    if not is_deployed(info):
        return
    if len(set(secret)) < MIN_DIFFERENT_CHARACTERS or _repeats_short_pattern(secret):
        raise ValueError(f"repeats a few characters, so that it can be guessed. {remedy}")
    if _is_sequence(secret):
        raise ValueError(f"is a sequence of neighbouring characters, so that it can be guessed. {remedy}")
    letters = secret if isinstance(secret, str) else secret.decode("latin-1")
    letters = re.sub(r"[-_. ]", "", letters.lower())
    if any(word in letters for word in PLACEHOLDER_WORDS):
        raise ValueError(f"contains a placeholder, so that it can be guessed. {remedy}")


def _repeats_short_pattern(secret: str | bytes) -> bool:
    """Return whether ``secret`` repeats a string of less than `MIN_PATTERN_LENGTH`; the last time it may be cut off."""
    longest = min(MIN_PATTERN_LENGTH - 1, len(secret) // 2)
    return any(secret[length:] == secret[:-length] for length in range(1, longest + 1))


def _is_sequence(secret: str | bytes) -> bool:
    """Return whether most characters are the next or the previous one of those before them, as in ``0123456789abcdef``.

    Of a random secret a fifth are at most, of hexadecimal digits.
    """
    codes = [ord(character) for character in secret] if isinstance(secret, str) else list(secret)
    steps = sum(abs(after - before) == 1 for before, after in pairwise(codes))
    return steps >= 3 / 4 * (len(codes) - 1) > 0
