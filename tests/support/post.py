"""An account with readers, the dispatcher, and what came out of it: for tests of notices and documents."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
from psycopg.rows import dict_row
from temporalio.testing import ActivityEnvironment

from activities.adapters.smtp import Smtp, SmtpSettings
from activities.documents import DocumentActivities
from activities.notifications import NotificationActivities
from activities.rendering import Renderer
from db.queries import outbox
from db.queries.outbox import Notice
from db.sealing import Sealer
from db.session import Sessions, session_factory
from tests.support.accounts import NOW
from tests.support.databases import Database
from workflows.ports.notifications import Drain, Drained
from workflows.rules.notices import CHANNEL_EMAIL

SENDER = "Berth <no-reply@berth.example>"
PORTAL = "https://berth.example"
SEALER = Sealer([("1", bytes(range(32)))])
USD_15 = {"amount_minor": 1500, "currency": "USD"}


@dataclass
class Post:
    """One database; ``smtp_port`` is where mails are handed over."""

    database: Database
    smtp_port: int
    organization: str = field(default_factory=lambda: f"org_{uuid.uuid4().hex[:12]}")
    sessions: Sessions = field(init=False)

    def __post_init__(self) -> None:
        self.sessions = session_factory(self.database.worker, sealer=SEALER)
        self.execute(
            "INSERT INTO organizations (id, name, currency, timezone, created_at, updated_at)"
            " VALUES (%s, 'Example Ltd', 'USD', 'Europe/Paris', %s, %s)",
            *(self.organization, NOW, NOW),
        )

    def reader(self, email: str, *, name: str = "Ada", role: str | None = "owner", platform: str = "USER") -> str:
        """Add somebody; ``role`` is the membership's, None for somebody of no organisation. Return the user's id."""
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

    def notice(self, fact: str = "fact", *, kind: str = "top_up_receipt", **more: Any) -> Notice:
        given: dict[str, Any] = {
            "organization_id": self.organization,
            "user_id": None,
            "kind": kind,
            "fact": fact,
            "context": {"amount": USD_15},
            "at": NOW,
        }
        return Notice(**(given | more))

    async def enqueue(self, *notices: Notice) -> None:
        async with self.sessions.begin() as session:
            await outbox.enqueue(session, *notices)

    def dispatcher(
        self, smtp_port: int | None = None, *, timeout: float = 3, sender: str = SENDER
    ) -> NotificationActivities:
        smtp = Smtp(SmtpSettings(host="127.0.0.1", port=smtp_port or self.smtp_port, timeout_seconds=timeout))
        documents = DocumentActivities(self.sessions)
        renderer = Renderer(public_url=PORTAL)
        return NotificationActivities(self.sessions, smtp, renderer, documents, sender=sender, sealer=SEALER)

    async def drain(self, dispatcher: NotificationActivities | None = None, *, seconds: float = 0.05) -> Drained:
        """Run one drain as a worker would."""
        command = Drain(channel=CHANNEL_EMAIL, seconds=seconds)
        drained: Drained = await ActivityEnvironment().run((dispatcher or self.dispatcher()).drain, command)
        return drained

    def due_now(self) -> None:
        """Let every pause and every claim be over."""
        self.execute("UPDATE notifications SET next_attempt_at = now() - interval '1 second' WHERE sent_at IS NULL")

    def age(self, by: timedelta) -> None:
        self.execute("UPDATE notifications SET created_at = created_at - %s", by)

    def rows(self, statement: str = "SELECT * FROM notifications ORDER BY fact", *given: Any) -> list[dict[str, Any]]:
        with psycopg.connect(self.database.superuser_dsn(), row_factory=dict_row) as connection:
            return connection.execute(statement, given or None).fetchall()

    def row(self, fact: str = "fact") -> dict[str, Any]:
        (found,) = self.rows("SELECT * FROM notifications WHERE fact = %s", fact)
        return found

    def execute(self, statement: str, *given: Any) -> None:
        with psycopg.connect(self.database.superuser_dsn()) as connection:
            connection.execute(statement, given[0] if given and isinstance(given[0], dict) else given)

    def invoice(self, *, status: str = "paid", currency: str = "USD", total: int = 1500, name: str = "My app") -> str:
        """Put a subscription with one invoice of two lines in place; return the invoice's id."""
        number = len(self.rows("SELECT id FROM invoices")) + 1
        sub, invoice = f"sub_{number}_{self.organization}", f"inv_{number}_{self.organization}"
        for statement in _SUBSCRIPTION:
            self.execute(
                statement,
                {"id": sub, "org": self.organization, "currency": currency, "name": name, "total": total, "at": NOW},
            )
        end = datetime(2027, 2, 28, 10, tzinfo=UTC)
        self.execute(
            "INSERT INTO invoices (id, organization_id, subscription_id, kind, number, status, currency, period_start,"
            " period_end, subtotal_minor, tax_minor, total_minor, amount_due_minor, issued_at, paid_at, created_at,"
            " explanation) VALUES (%s, %s, %s, 'period', %s, %s, %s, %s, %s, %s, 0, %s, %s, %s, %s, %s, '{}')",
            *(invoice, self.organization, sub, f"BERTH-2027-{number:06d}", status, currency, NOW, end, total, total),
            *(0 if status == "paid" else total, NOW, NOW if status == "paid" else None, NOW),
        )
        first = total - total // 3
        for position, (what, amount) in enumerate([("n8n Starter", first), ("Backups", total - first)]):
            self.execute(
                "INSERT INTO invoice_lines (invoice_id, position, organization_id, description, quantity,"
                " unit_price_minor, discount_minor, tax_minor, amount_minor, period_start, period_end)"
                " VALUES (%s, %s, %s, %s, 1, %s, 0, 0, %s, %s, %s)",
                *(invoice, position, self.organization, what, amount, amount, NOW, end),
            )
        return invoice


_SUBSCRIPTION = (
    "INSERT INTO services (id, slug, name, description, category, template, version, icon)"
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
