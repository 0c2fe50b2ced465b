"""What alerts to the administrators have in common: a daily key for the same findings, and a bounded list of names."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import datetime

LISTED = 20
"""How many names an alert lists."""


def daily_dedup_key(category: str, names: Sequence[str], now: datetime) -> str:
    """Return a key that is the same for the same names on the same day: one mail a day about them."""
    digest = hashlib.sha256(" ".join(names).encode()).hexdigest()[:12]
    return f"{category}/{digest}/{now.date().isoformat()}"


def list_names(names: Sequence[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return f"{', '.join(names[:LISTED])}{more}"
