"""What runs on which task queue. Everything is named here; nothing registers itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from activities.adapters.kubernetes.gateway import KubernetesGateway
from activities.adapters.smtp import Smtp
from activities.billing import BillingActivities
from activities.cluster import ClusterActivities
from activities.documents import DocumentActivities
from activities.gateways.base import Gateway
from activities.gateways.stripe import StripeGateway
from activities.instances import InstanceActivities
from activities.notifications import NotificationActivities
from activities.payment_methods import PaymentMethodActivities
from activities.payments import PaymentActivities
from activities.reconciliation import ReconciliationActivities
from activities.refunds import RefundActivities
from activities.rendering import Renderer
from activities.subscriptions import SubscriptionActivities
from activities.templates import ServiceTemplates
from db.sealing import Sealer
from db.session import Sessions, create_engine, session_factory
from worker.settings import WorkerSettings
from workflows import names
from workflows.adjustment import Adjustment
from workflows.document import InvoiceDocument
from workflows.instance_operation import InstanceOperation
from workflows.notification import NotificationDispatch
from workflows.payment import Payment
from workflows.payment_method import PaymentMethodRemoval, PaymentMethodSetup
from workflows.provisioning import Provisioning
from workflows.reconciliation import OrphanCollection, Reconciliation
from workflows.refund import Refund
from workflows.subscription import Subscription

Activity = Callable[..., Any]

WORKFLOWS: tuple[type, ...] = (
    Subscription,
    Payment,
    Refund,
    Adjustment,
    PaymentMethodSetup,
    PaymentMethodRemoval,
    Provisioning,
    InstanceOperation,
    InvoiceDocument,
    NotificationDispatch,
    OrphanCollection,
    Reconciliation,
)
"""All workflows run on ``platform``; only activities have queues of their own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dependencies:
    """What activities are given: made once per process, by ``dependencies`` or by a test."""

    settings: WorkerSettings
    sessions: Sessions
    gateways: Mapping[str, Gateway]
    cluster: ClusterActivities
    smtp: Smtp
    sealer: Sealer | None


@asynccontextmanager
async def dependencies(settings: WorkerSettings) -> AsyncIterator[Dependencies]:
    """Make what activities need and dispose of it afterwards. Connects to nothing by itself."""
    # Activities are repeated, so a connection that a restarted database has left behind may fail one of them.
    engine = create_engine(settings.worker_database_url, pool_size=settings.database_pool, pre_ping=False)
    stripe = StripeGateway(
        api_key=settings.stripe_api_key.get_secret_value(),
        base_url=settings.stripe_url,
        return_url=f"{settings.public_url}/billing/return",
    )
    gateway = KubernetesGateway.from_kubeconfig(settings.kubeconfig, threads=settings.cluster_activities)
    keys = settings.temporal().encryption_keys
    sealer = Sealer(keys) if keys else None
    sessions = session_factory(engine, sealer=sealer)
    cluster = ClusterActivities(
        gateway,
        ServiceTemplates(settings.template_directory / "services", settings.platform()),
        sessions,
        patience=timedelta(seconds=settings.provisioning_patience_seconds),
    )
    try:
        yield Dependencies(
            settings=settings,
            sessions=sessions,
            gateways={stripe.name: stripe},
            cluster=cluster,
            smtp=Smtp(settings.smtp()),
            sealer=sealer,
        )
    finally:
        # Joins the threads of its watches.
        await asyncio.to_thread(cluster.close)
        gateway.close()
        await stripe.close()
        await engine.dispose()


def activities(given: Dependencies) -> dict[str, Sequence[Activity]]:
    """Return the activities of each task queue."""
    sessions, settings = given.sessions, given.settings
    documents = DocumentActivities(sessions)
    notifications = NotificationActivities(
        sessions,
        given.smtp,
        Renderer(public_url=settings.public_url, templates=settings.template_directory / "email"),
        documents,
        sender=settings.mail_from,
        sealer=given.sealer,
    )
    return {
        names.PLATFORM: [
            *bound(SubscriptionActivities(sessions, settings.base_domain)),
            *bound(BillingActivities(sessions)),
            *bound(PaymentActivities(sessions, given.gateways)),
            *bound(PaymentMethodActivities(sessions, given.gateways)),
            *bound(RefundActivities(sessions, given.gateways)),
            *bound(InstanceActivities(sessions)),
            *bound(ReconciliationActivities(sessions)),
        ],
        names.INFRASTRUCTURE: bound(given.cluster),
        names.NOTICES: [*bound(documents), *bound(notifications)],
    }


def bound(implementation: object) -> list[Activity]:
    """Return the methods of ``implementation`` that are activities."""
    found = (getattr(implementation, name) for name in dir(implementation) if not name.startswith("_"))
    return [method for method in found if hasattr(method, "__temporal_activity_definition")]
