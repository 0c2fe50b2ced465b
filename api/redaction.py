"""Masking of secrets and personal data in values that are going to be logged.

A value is masked before it is rendered. In rendered JSON an escape (``\\n``) in front of a secret would hide the secret
from a pattern, and a replacement could swallow a delimiter.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Set
from functools import lru_cache
from typing import Any

MASK = "[hidden]"
TOO_DEEP = "[nested too deeply]"
MAX_DEPTH = 16

SECRET_NAME_WORDS = (
    "password", "passwd", "passphrase", "secret", "token", "authorization", "cookie", "apikey", "privatekey",
    "credential",
)  # fmt: skip
"""A field whose name contains one of these words is masked whole. Case and punctuation of the name do not matter."""

MAX_INTEGER_BITS = 4096
"""Python refuses to write an integer of more than 4,300 digits."""

_NOT_A_LETTER = re.compile(r"[^a-z]+")

# Hazards: a customer's text is matched against these, so the time has to grow with the length of the text and not with
# its square: what is followed by a required character is bounded or possessive. And the text may be a `repr`, in which
# a line break is the two characters `\n`: nothing may depend on a word boundary in front of a secret.
_PATTERNS: tuple[tuple[tuple[str, ...], re.Pattern[str]], ...] = (
    # User and password in a URL. A password may contain "/" and "?" although it should not.
    (("://",), re.compile(r"(?<=://)(?:[^\s/?#@:]{0,256}+:[^\s@]{0,256}+|[^\s/?#@:]{1,256}+)(?=@)")),
    # JSON Web Tokens, signed or encrypted, also cut off: the Base64 of `{"`.
    (("eyJ",), re.compile(r"eyJ[\w-]{6,}(?:\.[\w-]*){0,4}")),
    # Stripe's API keys, secrets of webhooks, client secrets of intents.
    (
        ("_live_", "_test_", "whsec_", "_secret_"),
        re.compile(r"(?:sk|rk|pk)_(?:live|test)_\w{6,}|whsec_[\w+/=-]+|(?:pi|seti)_\w{1,64}?_secret_\w+"),
    ),
    # Refresh tokens and the tokens of mailed links, as `api.ids.generate_secret` makes them.
    (("brt_", "bot_"), re.compile(r"(?:brt|bot)_[\w-]{16,}")),
    # Password hashes.
    (("$argon2", "$2"), re.compile(r"\$(?:argon2[a-z]{0,2}|2[aby])\$[\w$,=+/.-]+")),
    # HTTP credentials. "Basic" is also a word: what follows is Base64 only with a capital, a digit or padding.
    (
        ("asic", "earer", "ASIC", "EARER"),
        re.compile(r"(?i:bearer)\s{1,4}[\w.~+/=-]{6,}|(?i:basic)\s{1,4}(?=[a-z]{0,512}[A-Z0-9+/=])[\w+/=-]{6,}"),
    ),
    # name=value and "name": value in queries, connection strings, headers and written objects.
    (
        ("=", ":"),
        re.compile(
            r"((?:password|passwd|passphrase|secret|token|authorization|cookie|api[_-]?key|private[_-]?key|credential)"
            r"[\w-]{0,24}\\{0,3}[\"']?\s{0,4}[=:]\s{0,4})"
            r"(?:[bru]{0,2}\\{0,3}\"(?:[^\"\\]|\\.)*+\"?|[bru]{0,2}\\{0,3}'(?:[^'\\]|\\.)*+'?|(?!\[hidden\])[\[({][^\])}]*+"
            r"|[^\s&;,\"'<>()\[\]{}]+)",
            re.IGNORECASE | re.DOTALL,
        ),
    ),
    # Email addresses.
    (
        ("@",),
        re.compile(
            r"(?<![\w.!#$%'*+^`{|}~-])[\w.!#$%'*+^`{|}~-]++@(?:[\w-]{1,63}(?:\.[\w-]{1,63}){0,8}|\[[\w.:]{1,64}\])"
        ),
    ),
)


def mask_text(text: str) -> str:
    """Return the text with everything masked that looks like a secret or an email address."""
    for marks, pattern in _PATTERNS:
        if any(mark in text for mark in marks):
            text = pattern.sub(rf"\g<1>{MASK}" if pattern.groups else MASK, text)
    return text


@lru_cache(maxsize=4096)
def is_secret_name(name: str) -> bool:
    """Return whether a field with this name holds a secret, e.g. ``X-Api-Key`` or ``refresh_token``."""
    letters = _NOT_A_LETTER.sub("", name.lower())
    return any(word in letters for word in SECRET_NAME_WORDS)


def mask_value(value: Any) -> Any:
    """Return the value as JSON can render it, with secrets masked in every text and every secret field.

    Objects other than JSON's become text. What cannot be rendered (a circular reference, a ``repr`` that raises) is
    replaced: a log line is never lost because of its content.
    """
    return _mask(value, 0)


def _mask(value: Any, depth: int) -> Any:
    if isinstance(value, str):
        return mask_text(str.__str__(value))
    if value is None or (isinstance(value, int) and value.bit_length() <= MAX_INTEGER_BITS):
        return value
    if isinstance(value, float):
        # JSON has neither NaN nor infinity.
        return float(value) if math.isfinite(value) else str(value)
    if depth >= MAX_DEPTH:
        return TOO_DEEP
    if isinstance(value, Mapping):
        return {
            mask_text(_to_text(name)): MASK if is_secret_name(_to_text(name)) else _mask(item, depth + 1)
            for name, item in value.items()
        }
    if isinstance(value, list | tuple | Set):
        return [_mask(item, depth + 1) for item in value]
    return mask_text(_to_text(value))


def _to_text(value: Any) -> str:
    try:
        return str(value) if isinstance(value, str | BaseException) else repr(value)
    except Exception:  # noqa: BLE001 - a fault in a __repr__ must not cost the log line
        return f"<{type(value).__name__}>"
