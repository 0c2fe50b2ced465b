"""What the sweeps look for: books that do not add up, and facts that nobody was told."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from temporalio import activity


@dataclass(frozen=True, slots=True, kw_only=True)
class Reconcile:
    """Start input of ``Reconciliation``. ``ledger``: also add up the books, which reads every entry."""

    ledger: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Reconciled:
    drifts: int = 0
    unbalanced: int = 0
    told: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditLedger:
    now: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerAudit:
    """``drifts`` counts balances that are not their entries' sum, ``unbalanced`` transactions that are not zero."""

    drifts: int
    unbalanced: int

    @property
    def sound(self) -> bool:
        return not self.drifts and not self.unbalanced


@dataclass(frozen=True, slots=True, kw_only=True)
class TellUndelivered:
    """``before``: events that came later may still be on their way."""

    before: datetime
    limit: int = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """``more``: there may be events beyond the limit."""

    events: int
    more: bool


class Reconciling(Protocol):
    @activity.defn(name="reconciliation.audit_ledger")
    async def audit_ledger(self, command: AuditLedger) -> LedgerAudit:
        """Add up the books. Where they are not sound, the administrators get one mail per day; nothing is repaired."""
        ...

    @activity.defn(name="reconciliation.tell_undelivered")
    async def tell_undelivered(self, command: TellUndelivered) -> Told:
        """Hand webhooks on that were recorded but never reached their payment, the oldest first."""
        ...
