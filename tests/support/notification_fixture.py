"""An organization with users and the notification dispatcher: for tests of notifications and documents."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
from psycopg.rows import dict_row
from temporalio.testing import ActivityEnvironment

from activities.adapters.smtp import SmtpClient, SmtpSettings
from activities.invoice_documents import PdfDocumentActivities
from activities.mail_rendering import MailRenderer
from activities.notifications import SmtpNotificationActivities
from db.encryption import FieldEncryption
from db.queries import outbox
from db.queries.outbox import OutboxNotification
from db.session import SessionFactory, session_factory
from tests.support.databases import DatabaseFixture
from tests.support.inserts import NOW, with_payment_in_full
from workflows.ports.notifications import DrainOutbox, DrainOutcome
from workflows.rules.notifications import CHANNEL_EMAIL, NotificationKind

RECIPIENT = "ada@customer.example"
SENDER = "Berth <no-reply@berth.example>"
PUBLIC_URL = "https://berth.example"
FIELD_ENCRYPTION = FieldEncryption([("1", bytes(range(32)))])
USD_15 = {"amount_minor": 1500, "currency": "USD"}


@dataclass
class NotificationFixture:
    """An organization in one database; mails are sent to ``smtp_port``."""

    database: DatabaseFixture
    smtp_port: int
    organization: str = field(default_factory=lambda: f"org_{uuid.uuid4().hex[:12]}")
    sessions: SessionFactory = field(init=False)

    def __post_init__(self) -> None:
        self.sessions = session_factory(self.database.worker, encryptor=FIELD_ENCRYPTION)
        self.execute(
            "INSERT INTO organizations (id, name, currency, timezone, created_at, updated_at)"
            " VALUES (%s, 'Example Ltd', 'USD', 'Europe/Paris', %s, %s)",
            *(self.organization, NOW, NOW),
        )

    def insert_user(self, email: str, *, name: str = "Ada", role: str | None = "owner", platform: str = "USER") -> str:
        """Insert a user; ``role`` is the membership's, None for no membership. Return the user's id."""
        user_id = f"usr_{uuid.uuid4().hex[:12]}"
        self.execute(
            "INSERT INTO users (id, email, name, password_hash, role, password_changed_at, created_at, updated_at)"
            " VALUES (%s, %s, %s, '', %s, %s, %s, %s)",
            *(user_id, email, name, platform, NOW, NOW, NOW),
        )
        if role is not None:
            self.execute(
                "INSERT INTO memberships (organization_id, user_id, role, created_at) VALUES (%s, %s, %s, %s)",
                *(self.organization, user_id, role, NOW),
            )
        return user_id

    def build_notification(
        self, fact: str = "fact", *, kind: NotificationKind = NotificationKind.TOP_UP_RECEIPT, **more: Any
    ) -> OutboxNotification:
        fields: dict[str, Any] = {
            "organization_id": self.organization,
            "user_id": None,
            "kind": kind,
            "dedup_key": fact,
            "context": {"amount": USD_15},
            "occurred_at": NOW,
        }
        return OutboxNotification(**(fields | more))

    async def enqueue(self, *notifications: OutboxNotification) -> None:
        async with self.sessions.begin() as session:
            await outbox.enqueue(session, *notifications)

    def build_activities(
        self, smtp_port: int | None = None, *, timeout: float = 3, sender: str = SENDER
    ) -> SmtpNotificationActivities:
        smtp = SmtpClient(SmtpSettings(host="127.0.0.1", port=smtp_port or self.smtp_port, timeout_seconds=timeout))
        documents = PdfDocumentActivities(self.sessions)
        renderer = MailRenderer(public_url=PUBLIC_URL)
        return SmtpNotificationActivities(
            self.sessions, smtp, renderer, documents, sender=sender, encryptor=FIELD_ENCRYPTION
        )

    async def drain(
        self, dispatcher: SmtpNotificationActivities | None = None, *, seconds: float = 0.05
    ) -> DrainOutcome:
        """Drain the outbox once, as a worker does."""
        command = DrainOutbox(channel=CHANNEL_EMAIL, duration_seconds=seconds)
        drained: DrainOutcome = await ActivityEnvironment().run(
            (dispatcher or self.build_activities()).drain_outbox, command
        )
        return drained

    def make_all_due(self) -> None:
        """Make every unsent notification due and expire its claim."""
        self.execute("UPDATE notifications SET next_attempt_at = now() - interval '1 second' WHERE sent_at IS NULL")

    def shift_created_at(self, by: timedelta) -> None:
        self.execute("UPDATE notifications SET created_at = created_at - %s, available_at = available_at - %s", by, by)

    def rows(
        self, statement: str = "SELECT * FROM notifications ORDER BY dedup_key", *parameters: Any
    ) -> list[dict[str, Any]]:
        with psycopg.connect(self.database.superuser_dsn(), row_factory=dict_row) as connection:
            return connection.execute(statement, parameters or None).fetchall()

    def get_notification(self, fact: str = "fact") -> dict[str, Any]:
        (notification,) = self.rows("SELECT * FROM notifications WHERE dedup_key = %s", fact)
        return notification

    def execute(self, statement: str, *parameters: Any) -> None:
        with psycopg.connect(self.database.superuser_dsn()) as connection:
            connection.execute(
                statement, parameters[0] if parameters and isinstance(parameters[0], dict) else parameters
            )

    def insert_invoice(
        self, *, status: str = "paid", currency: str = "USD", total: int = 1500, name: str = "My app"
    ) -> str:
        """Insert a subscription with one invoice of two lines; return the invoice's id."""
        number = len(self.rows("SELECT id FROM invoices")) + 1
        sub, invoice = f"sub_{number}_{self.organization}", f"inv_{number}_{self.organization}"
        for statement in SUBSCRIPTION_INSERTS:
            self.execute(
                statement,
                {"id": sub, "org": self.organization, "currency": currency, "name": name, "total": total, "at": NOW},
            )
        end = datetime(2027, 2, 28, 10, tzinfo=UTC)
        first = total - total // 3
        # One transaction: an issued invoice takes no lines later.
        with psycopg.connect(self.database.superuser_dsn()) as connection:
            connection.execute(
                with_payment_in_full(INSERT_INVOICE).encode(),
                (
                    *(invoice, self.organization, sub, f"BERTH-2027-{number:06d}", status, currency, NOW, end),
                    *(total, total, 0 if status == "paid" else total, NOW, NOW if status == "paid" else None, NOW),
                ),
            )
            for position, (description, amount) in enumerate([("n8n Starter", first), ("Backups", total - first)]):
                connection.execute(
                    INSERT_INVOICE_LINE,
                    (invoice, position, self.organization, description, amount, amount, NOW, end),
                )
        return invoice


INSERT_INVOICE = (
    "INSERT INTO invoices (id, organization_id, subscription_id, billing_reason, number, status, currency,"
    " period_start, period_end, subtotal_minor, tax_minor, total_minor, amount_due_minor, finalized_at, paid_at,"
    " created_at, explanation) VALUES (%s, %s, %s, 'renewal', %s, %s, %s, %s, %s, %s, 0, %s, %s, %s, %s, %s, '{}')"
)
INSERT_INVOICE_LINE = (
    "INSERT INTO invoice_lines (invoice_id, position, organization_id, description, quantity, unit_price_minor,"
    " discount_minor, tax_minor, amount_minor, period_start, period_end)"
    " VALUES (%s, %s, %s, %s, 1, %s, 0, 0, %s, %s, %s)"
)
SUBSCRIPTION_INSERTS = (
    "INSERT INTO services (id, slug, name, description, category, template_directory, version, icon)"
    " VALUES ('svc_post', 'post', 'n8n', '', 'automation', 'n8n', '1', '') ON CONFLICT DO NOTHING",
    "INSERT INTO plans (id, service_id, code, name, interval, cpu_millicores, memory_mib, storage_gib)"
    " VALUES ('plan_post', 'svc_post', 'post', 'Small', 'month', 500, 512, 5) ON CONFLICT DO NOTHING",
    "INSERT INTO prices (id, plan_id, currency, amount_minor, effective_from)"
    " VALUES ('price_' || %(currency)s, 'plan_post', %(currency)s, 1500, %(at)s) ON CONFLICT DO NOTHING",
    "INSERT INTO subscriptions (id, organization_id, user_id, plan_id, price_id, service_id, status, currency,"
    " price_minor, timezone, workflow_id, name, created_at, updated_at)"
    " VALUES (%(id)s, %(org)s, 'usr_1', 'plan_post', 'price_' || %(currency)s, 'svc_post', 'active', %(currency)s,"
    " %(total)s, 'UTC', %(id)s, %(name)s, %(at)s, %(at)s)",
)
