"""Currencies in what the API is sent."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from workflows.rules.currencies import MINIMUM_CHARGE


def _require_supported_currency(code: str) -> str:
    if code not in MINIMUM_CHARGE:
        raise ValueError("Unsupported currency.")
    return code


CurrencyField = Annotated[
    str, Field(pattern=r"^[A-Z]{3}$", examples=["USD"]), AfterValidator(_require_supported_currency)
]
"""A currency that money is taken in; any other answers 422."""
