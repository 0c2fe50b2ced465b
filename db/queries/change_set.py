"""Change set of one fact of a subscription: everything that it writes, collected and then flushed in one round trip.

A fact updates the subscription, moves money, writes an invoice, timeline events and change records, and enqueues mails:
row by row these are ten round trips. The invoice comes last in its transaction: the series that invoice numbers are
drawn from is locked until the commit, and the next transaction that draws one waits. The columns come from the models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import orjson
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from db.base import Base
from db.driver import DriverStatement, execute_together
from db.errors import is_overdraft
from db.models.invoices import Invoice, InvoiceAllocation, InvoiceLine, PlanChangeCredit
from db.models.ledger import LedgerEntryRow, LedgerTransactionRow
from db.models.notifications import Notification
from db.models.subscriptions import SubscriptionChange, TimelineEvent
from db.queries.change_set_sql import (
    CREDIT_INSERT,
    INSERT_BY_TABLE,
    INSERTS,
    INVOICE_INSERTS,
    UPDATABLE_COLUMNS,
    VOID_REMINDERS,
    WRITE,
    WRITE_CREDITS,
    WRITE_INVOICE,
)
from db.queries.invoices import number_parameters
from db.queries.json_inserts import JsonInsert
from db.queries.outbox import OutboxNotification, to_outbox_row
from workflows.rules import ids
from workflows.rules.allocations import AllocationSource, Reversal, SourcePart
from workflows.rules.errors import ErrorCode, RuleViolation
from workflows.rules.ledger import CUSTOMER_ASSET_ACCOUNTS, ORGANIZATION_ACCOUNTS, SPENDABLE, LedgerTransaction
from workflows.rules.money import Money
from workflows.rules.notifications import NotificationKind, reminder_times

_LOCK_ORDER = {account: place for place, account in enumerate(ORGANIZATION_ACCOUNTS)}


@dataclass(slots=True, kw_only=True)
class ChangeSet:
    """Everything that one fact of one subscription writes.

    Attributes:
        occurred_at: When it happens on the subscription's own clock.
        keyed_at: Part of the keys that name the fact by its instant; the same in each attempt of an activity.
    """

    organization_id: str
    subscription_id: str
    occurred_at: datetime
    keyed_at: datetime
    actor: str
    run_id: str
    subscription_columns: dict[str, Any] = field(default_factory=dict)
    """Columns of the subscription that were updated so far, written or not."""
    _columns: dict[str, Any] = field(default_factory=dict)
    _needs_invoice_number: bool = False
    _voids_reminders: bool = False
    credited: bool = False
    """Whether any posting so far, written or not, added to the wallet or to promotional credit."""
    _rows: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def record_change(self, field: str, before: str | None, after: str | None, reason: str = "") -> None:
        self._add(
            SubscriptionChange,
            organization_id=self.organization_id,
            subscription_id=self.subscription_id,
            occurred_at=self.occurred_at.isoformat(),
            actor=self.actor,
            field=field,
            before=before,
            after=after,
            reason=reason,
            workflow_run_id=self.run_id,
        )

    def add_timeline_event(
        self, kind: str, message: str, *, ref: str | None = None, dedup_key: str | None = None
    ) -> None:
        """Add a line to the timeline, once per ``dedup_key`` (default: the kind at this instant)."""
        self._add(
            TimelineEvent,
            organization_id=self.organization_id,
            subscription_id=self.subscription_id,
            occurred_at=self.occurred_at.isoformat(),
            kind=kind,
            message=message,
            reference_id=ref,
            dedup_key=dedup_key or f"{kind}/{self.keyed_at.isoformat()}",
        )

    def enqueue_notification(
        self, kind: NotificationKind, context: dict[str, Any], *, dedup_key: str | None = None
    ) -> None:
        """Enqueue a mail, once per ``dedup_key`` (default: the kind at this instant).

        The dispatcher adds it to the timeline once it is sent.
        """
        notification = self._build_notification(
            kind, context, dedup_key or f"{kind}/{self.keyed_at.isoformat()}", self.occurred_at
        )
        self._add(Notification, **to_outbox_row(notification), subscription_id=self.subscription_id)

    def schedule_reminders(self, period_end: datetime) -> None:
        """Enqueue the reminders of the period that ends at ``period_end``; those due before now are left out.

        They become due by the database's clock, at the distance that they have on the subscription's clock. Their
        context is loaded when they are sent.
        """
        for days_before, scheduled_for in reminder_times(period_end, after=self.occurred_at):
            context = {
                "subscription_id": self.subscription_id,
                "days": days_before,
                "due_at": period_end.isoformat(),
            }
            dedup_key = f"expiring/{period_end.isoformat()}/{days_before}/{self.keyed_at.isoformat()}"
            notification = self._build_notification(
                NotificationKind.SUBSCRIPTION_EXPIRING, context, dedup_key, scheduled_for
            )
            self._add(
                Notification,
                **to_outbox_row(notification),
                subscription_id=self.subscription_id,
                scheduled_for=scheduled_for.isoformat(),
            )

    def void_reminders(self) -> None:
        """Void the scheduled reminders that are not due yet, except those that this change set schedules."""
        self._voids_reminders = True

    def _build_notification(
        self, kind: NotificationKind, context: dict[str, Any], dedup_key: str, occurred_at: datetime
    ) -> OutboxNotification:
        return OutboxNotification(
            organization_id=self.organization_id,
            user_id=None,
            kind=kind,
            dedup_key=f"{self.subscription_id}/{dedup_key}",
            context=context,
            occurred_at=occurred_at,
        )

    def add_ledger_transaction(
        self, posting: LedgerTransaction, *, key: str, description: str, ref: str | None = None
    ) -> str:
        """Add a ledger transaction; ``key`` is unique for ever, and its hash is the returned transaction's id.

        Raises:
            ValueError: this change set has a transaction with that key already.
        """
        if any(row["idempotency_key"] == key for row in self._rows.get(LedgerTransactionRow.__tablename__, ())):
            # The database would skip the second transaction and insert its entries under the first.
            raise ValueError(f"the change set has a ledger transaction {key} already")
        transaction_id = ids.derive_id("tx", key)
        self.credited = self.credited or any(
            entry.account in SPENDABLE and entry.amount.amount_minor > 0 for entry in posting.entries
        )
        customer_delta = sum(
            entry.amount.amount_minor for entry in posting.entries if entry.account in CUSTOMER_ASSET_ACCOUNTS
        )
        self._add(
            LedgerTransactionRow,
            id=transaction_id,
            organization_id=self.organization_id,
            kind=posting.kind.value,
            currency=posting.entries[0].amount.currency,
            customer_delta_minor=customer_delta,
            entry_count=len(posting.entries),
            posted_at=self.occurred_at.isoformat(),
            reference_id=ref,
            description=description,
            idempotency_key=key,
        )
        for entry in sorted(posting.entries, key=lambda entry: _LOCK_ORDER.get(entry.account, len(_LOCK_ORDER))):  # type: ignore[call-overload]  # platform accounts are plain strings
            self._add(
                LedgerEntryRow,
                transaction_id=transaction_id,
                organization_id=self.organization_id if entry.account in ORGANIZATION_ACCOUNTS else None,
                account=str(entry.account),
                currency=entry.amount.currency,
                amount_minor=entry.amount.amount_minor,
            )
        return transaction_id

    def update_subscription(self, **columns: Any) -> None:
        """Update columns of the subscription; what reads them before ``write`` still sees the old values.

        Raises:
            ValueError: one of them is not in ``UPDATABLE_COLUMNS``.
        """
        if fixed := columns.keys() - set(UPDATABLE_COLUMNS):
            raise ValueError(f"a subscription's {', '.join(sorted(fixed))} does not change")
        self._columns |= columns | {"updated_at": self.occurred_at}
        self.subscription_columns |= columns

    def add_invoice(self, invoice: dict[str, Any], lines: list[dict[str, Any]], *, assign_number: bool) -> None:
        """Add the fact's invoice and its lines as JSON-ready rows; ``assign_number`` draws the next number for it."""
        self._add(Invoice, **invoice)
        self._needs_invoice_number = self._needs_invoice_number or assign_number
        for line in lines:
            self._add(InvoiceLine, **line)

    def allocate(self, invoice_id: str, parts: Sequence[SourcePart], *, transaction_id: str) -> None:
        """Record which sources paid an invoice.

        Args:
            parts: Positive amounts.
            transaction_id: The ledger transaction that moved the money.
        """
        for part in parts:
            self._add_allocation(invoice_id, part.source, part.amount, transaction_id, payment_id=part.payment_id)

    def reverse(self, invoice_id: str, reversals: Sequence[Reversal], *, transaction_id: str) -> None:
        """Record which allocations of an invoice are reversed; ``transaction_id`` returned the money."""
        for reversal in reversals:
            self._add_allocation(
                invoice_id,
                reversal.source,
                -reversal.amount,
                transaction_id,
                payment_id=reversal.payment_id,
                reverses_id=reversal.allocation_id,
            )

    def credit_invoice(self, invoice_id: str, plan_change_id: str, amount: Money, *, transaction_id: str) -> None:
        """Record credit for unused time of an invoice; a negative ``amount`` takes credit back."""
        self._add(
            PlanChangeCredit,
            id=ids.derive_id("pcc", transaction_id, invoice_id),
            organization_id=self.organization_id,
            invoice_id=invoice_id,
            currency=amount.currency,
            plan_change_id=plan_change_id,
            amount_minor=amount.amount_minor,
            ledger_transaction_id=transaction_id,
            credited_at=self.occurred_at.isoformat(),
        )

    async def write(self, session: AsyncSession) -> None:
        """Write everything, in one round trip.

        Raises:
            RuleViolation: ``INSUFFICIENT_FUNDS`` when a kept balance would fall below zero.
        """
        await self._write(session, self._statements(), commit=False)

    async def write_and_commit(self, session: AsyncSession, *before: DriverStatement) -> None:
        """Execute statements, write everything and commit, in one round trip.

        Raises:
            DBAPIError: ``before`` or a deferred constraint failed.
            RuleViolation: ``INSUFFICIENT_FUNDS``, as ``write``.
        """
        await self._write(session, [*before, *self._statements()], commit=True)

    async def _write(self, session: AsyncSession, statements: Sequence[DriverStatement], *, commit: bool) -> None:
        try:
            await execute_together(session, *statements, commit=commit)
        except IntegrityError as error:
            if is_overdraft(error):
                raise RuleViolation(
                    ErrorCode.INSUFFICIENT_FUNDS, "The wallet balance is insufficient. Top up first."
                ) from error
            raise
        self._rows.clear()
        self._columns.clear()
        self._needs_invoice_number = self._voids_reminders = False

    def _statements(self) -> list[DriverStatement]:
        statements = []
        if self._voids_reminders:
            void_reminders = {
                "subscription_id": self.subscription_id,
                "now": self.occurred_at,
                "keep": [row["id"] for row in self._rows.get(Notification.__tablename__, ())],
            }
            statements.append(DriverStatement(VOID_REMINDERS, void_reminders))
        parameters = {
            "rows": self._json_rows(INSERTS),
            "columns": orjson.dumps(self._columns).decode(),
            "updated_id": self.subscription_id if self._columns else "",
            "now": self.occurred_at,
        }
        statements.append(DriverStatement(WRITE, parameters))
        if any(insert.table.name in self._rows for insert in INVOICE_INSERTS):
            number = number_parameters(self.occurred_at, is_needed=self._needs_invoice_number)
            statements.append(DriverStatement(WRITE_INVOICE, {"rows": self._json_rows(INVOICE_INSERTS), **number}))
        if credits := self._rows.get(CREDIT_INSERT.table.name):
            statements.append(DriverStatement(WRITE_CREDITS, {"rows": orjson.dumps([credits]).decode()}))
        return statements

    def _json_rows(self, inserts: Sequence[JsonInsert]) -> str:
        return orjson.dumps([self._rows.get(insert.table.name, []) for insert in inserts]).decode()

    def _add_allocation(
        self,
        invoice_id: str,
        source: AllocationSource,
        amount: Money,
        transaction_id: str,
        *,
        payment_id: str | None,
        reverses_id: str | None = None,
    ) -> None:
        self._add(
            InvoiceAllocation,
            # Derived: a repeated command collides instead of allocating twice.
            id=ids.derive_id("alc", transaction_id, invoice_id, source.value, payment_id or "", reverses_id or ""),
            organization_id=self.organization_id,
            invoice_id=invoice_id,
            currency=amount.currency,
            source=source.value,
            payment_id=payment_id,
            amount_minor=amount.amount_minor,
            reverses_id=reverses_id,
            ledger_transaction_id=transaction_id,
            allocated_at=self.occurred_at.isoformat(),
        )

    def _add(self, model: type[Base], **row: Any) -> None:
        table = model.__tablename__
        if unknown := row.keys() - INSERT_BY_TABLE[table].columns:
            raise ValueError(f"{table} has no column {', '.join(sorted(unknown))} that a change set writes")
        self._rows.setdefault(table, []).append(row)


async def timeline_event_exists(session: AsyncSession, subscription_id: str, dedup_key: str) -> bool:
    """Return whether the subscription's timeline has the event with this key."""
    statement = text(
        "SELECT EXISTS (SELECT FROM timeline_events WHERE subscription_id = :id AND dedup_key = :dedup_key)"
    )
    return bool((await session.execute(statement, {"id": subscription_id, "dedup_key": dedup_key})).scalar_one())
