"""Activities of reconciliation: the audit of the ledger and the delivery of pending webhooks."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from temporalio import activity


@dataclass(frozen=True, slots=True, kw_only=True)
class ReconciliationInput:
    """Start input of ``Reconciliation``. ``ledger``: also add up the books, which reads every entry."""

    audit_ledger: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class ReconciliationOutcome:
    balance_mismatches: int = 0
    unbalanced_transactions: int = 0
    webhooks_delivered: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditLedger:
    now: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerAudit:
    """``drifts`` counts balances that are not their entries' sum, ``unbalanced`` transactions that are not zero."""

    balance_mismatches: int
    unbalanced: int

    @property
    def is_balanced(self) -> bool:
        return not self.balance_mismatches and not self.unbalanced


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliverPendingWebhooks:
    """``before``: events that came later may still be on their way."""

    received_before: datetime
    limit: int = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookDeliveryOutcome:
    """``more``: there may be events beyond the limit."""

    events: int
    has_more: bool


class ReconciliationActivities(Protocol):
    @activity.defn(name="reconciliation.audit_ledger")
    async def audit_ledger(self, command: AuditLedger) -> LedgerAudit:
        """Add up the books. Where they are not sound, the administrators get one mail per day; nothing is repaired."""
        ...

    @activity.defn(name="reconciliation.deliver_pending_webhooks")
    async def deliver_pending_webhooks(self, command: DeliverPendingWebhooks) -> WebhookDeliveryOutcome:
        """Hand webhooks on that were recorded but never reached their payment, the oldest first."""
        ...
