"""Activities of reconciliation: the audit of the ledger, the delivery of pending webhooks, and lost workflows."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from temporalio import activity


@dataclass(frozen=True, slots=True, kw_only=True)
class ReconciliationInput:
    """Start input of ``Reconciliation``: what it does beside the delivery of pending webhooks.

    Attributes:
        audit_ledger: Add up the books, which reads every entry.
        restart_lost_workflows: Start the workflows again that payments in flight, pending refunds, removals of
            cards, subscriptions and deletions of instances have lost, and cancel other operations on instances that
            have lost theirs.
        recheck_refunds: Read refunds that were sent at their gateways again, for banks that rejected them.
        max_restarts: How many of each at most; the next one goes on. To restart more at once, start the workflow by
            hand with a larger number.
    """

    audit_ledger: bool = True
    restart_lost_workflows: bool = False
    recheck_refunds: bool = False
    max_restarts: int = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class ReconciliationOutcome:
    balance_mismatches: int = 0
    unbalanced_transactions: int = 0
    webhooks_delivered: int = 0
    refunds_rejected: int = 0
    payments_restarted: int = 0
    refunds_restarted: int = 0
    payment_method_removals_restarted: int = 0
    subscriptions_restarted: int = 0
    deletions_restarted: int = 0
    operations_cancelled: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditLedger:
    now: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerAudit:
    """Counts of balances that differ from the sum of their entries, and of transactions that do not sum to zero."""

    balance_mismatches: int
    unbalanced_transactions: int

    @property
    def is_balanced(self) -> bool:
        return not self.balance_mismatches and not self.unbalanced_transactions


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliverPendingWebhooks:
    """``received_before``: events that came later may still be on their way."""

    received_before: datetime
    limit: int = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookDeliveryOutcome:
    """``has_more``: there may be events beyond the limit."""

    events: int
    has_more: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartLostWorkflows:
    """One page of payments, refunds, removed cards, subscriptions or operations, by id.

    Attributes:
        after: The last id of the page before; empty for the first page.
        max_restarts: How many workflows the page starts at most. Operations are cancelled without a limit.
        limit: How many of them the page has.
    """

    after: str
    max_restarts: int
    now: datetime
    limit: int = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartOutcome:
    """What one page has restarted, or cancelled of operations. ``last_id``: where the next page begins; None after the
    last one.
    """

    restarted: int
    last_id: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RecheckRefunds:
    """One page of refunds by id. ``after``: the last id of the page before; empty for the first page."""

    after: str
    now: datetime
    limit: int = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class RecheckOutcome:
    """How many refunds of a page were rejected. ``last_id``: where the next page begins; None after the last one."""

    rejected: int
    last_id: str | None


class ReconciliationActivities(Protocol):
    @activity.defn(name="reconciliation.audit_ledger")
    async def audit_ledger(self, command: AuditLedger) -> LedgerAudit:
        """Add up the books. Where they are not sound, the administrators get one mail per day; nothing is repaired."""
        ...

    @activity.defn(name="reconciliation.deliver_pending_webhooks")
    async def deliver_pending_webhooks(self, command: DeliverPendingWebhooks) -> WebhookDeliveryOutcome:
        """Hand webhooks on that were recorded but never reached their payment or refund, the oldest first."""
        ...

    @activity.defn(name="reconciliation.recheck_refunds")
    async def recheck_refunds(self, command: RecheckRefunds) -> RecheckOutcome:
        """Read refunds of the last weeks at their gateways, and start the workflow of each that its bank rejected."""
        ...

    @activity.defn(name="reconciliation.restart_payments")
    async def restart_payments(self, command: RestartLostWorkflows) -> RestartOutcome:
        """Start the workflow again of each payment that has been in flight for a while and whose workflow does not run.

        A payment of a subscription whose own workflow was lost is left to that one. The administrators get a mail.
        """
        ...

    @activity.defn(name="reconciliation.restart_refunds")
    async def restart_refunds(self, command: RestartLostWorkflows) -> RestartOutcome:
        """Start the workflow again of each pending refund whose workflow does not run.

        The administrators get a mail first.
        """
        ...

    @activity.defn(name="reconciliation.restart_payment_method_removals")
    async def restart_payment_method_removals(self, command: RestartLostWorkflows) -> RestartOutcome:
        """Start the workflow again of each removed card that its gateway has not forgotten and whose workflow does not
        run.

        The administrators get a mail first.
        """
        ...

    @activity.defn(name="reconciliation.restart_subscriptions")
    async def restart_subscriptions(self, command: RestartLostWorkflows) -> RestartOutcome:
        """Start the workflow again of each subscription that has not ended and whose workflow does not run.

        The administrators get a mail first. A running workflow is left alone.
        """
        ...

    @activity.defn(name="reconciliation.restart_deletions")
    async def restart_deletions(self, command: RestartLostWorkflows) -> RestartOutcome:
        """Start the workflow again of each deletion of an instance that has not ended for a while and does not run.

        Its subscription may have ended: then nothing else deletes the instance. The administrators get a mail first.
        """
        ...

    @activity.defn(name="reconciliation.cancel_lost_operations")
    async def cancel_lost_operations(self, command: RestartLostWorkflows) -> RestartOutcome:
        """Cancel each operation on an instance, except deletions, that has not ended for a while and does not run.

        It is not repeated: the customer may have ordered another one since. The administrators get a mail first.
        """
        ...
