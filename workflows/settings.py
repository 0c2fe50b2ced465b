"""What the orchestration needs to be told by its surroundings."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class TemporalSettings:
    """Where the Temporal server is. ``encryption_keys`` maps key ids to 32-byte keys; the first one encrypts."""

    address: str
    namespace: str = "default"
    encryption_keys: tuple[tuple[str, bytes], ...] = ()
