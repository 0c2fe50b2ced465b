"""Resource quantities (`500m`, `2Gi`) as exact integers of thousandths."""

from __future__ import annotations

import re
from decimal import Decimal
from functools import lru_cache

_QUANTITY = re.compile(r"([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)")
_FACTORS = {
    "": Decimal(1),
    "n": Decimal("1e-9"),
    "u": Decimal("1e-6"),
    "m": Decimal("1e-3"),
    "k": Decimal(10) ** 3,
    "M": Decimal(10) ** 6,
    "G": Decimal(10) ** 9,
    "T": Decimal(10) ** 12,
    "P": Decimal(10) ** 15,
    "E": Decimal(10) ** 18,
    "Ki": Decimal(2) ** 10,
    "Mi": Decimal(2) ** 20,
    "Gi": Decimal(2) ** 30,
    "Ti": Decimal(2) ** 40,
    "Pi": Decimal(2) ** 50,
    "Ei": Decimal(2) ** 60,
}


@lru_cache(maxsize=4096)
def milli(text: str) -> int:
    """Return thousandths, rounded up. Raises ValueError for what is not a quantity."""
    match = _QUANTITY.fullmatch(str(text))
    if not match:
        raise ValueError(text)
    number, suffix = match[1], match[2]
    if suffix not in _FACTORS:
        if suffix[:1] in ("e", "E") and suffix[1:].lstrip("+-").isdigit():
            value = Decimal(number) * Decimal(10) ** int(suffix[1:])
        else:
            raise ValueError(text)
    else:
        value = Decimal(number) * _FACTORS[suffix]
    thousand = value * 1000
    rounded = int(thousand)
    return rounded if rounded == thousand else rounded + 1


def text(thousandths: int, like: str = "") -> str:
    """Return the canonical spelling; with binary suffixes where `like` has one or is `bytes`."""
    if thousandths % 1000:
        return f"{thousandths}m"
    value = thousandths // 1000
    if like.endswith("i") or like == "bytes":
        for suffix in ("Ei", "Pi", "Ti", "Gi", "Mi", "Ki"):
            factor = int(_FACTORS[suffix])
            if value and value % factor == 0:
                return f"{value // factor}{suffix}"
        return str(value)
    for suffix in ("E", "P", "T", "G", "M", "k"):
        factor = int(_FACTORS[suffix])
        if value and value % factor == 0:
            return f"{value // factor}{suffix}"
    return str(value)
