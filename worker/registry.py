"""What runs on which task queue. Everything is named here; nothing registers itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from jinja2 import TemplateError

from activities.adapters.kubernetes.client import KubernetesClient
from activities.adapters.smtp import SmtpClient
from activities.billing import PostgresBillingActivities
from activities.cluster import KubernetesClusterActivities
from activities.gateways.protocol import PaymentGateway
from activities.gateways.stripe import StripeGateway
from activities.instances import PostgresInstanceActivities
from activities.invoice_documents import PdfDocumentActivities
from activities.mail_rendering import MailRenderer
from activities.notifications import SmtpNotificationActivities
from activities.payment_methods import GatewayPaymentMethodActivities
from activities.payments import GatewayPaymentActivities
from activities.reconciliation import PostgresReconciliationActivities
from activities.recovery import PostgresRecoveryActivities
from activities.refunds import GatewayRefundActivities
from activities.service_templates.manifests import InvalidTemplate
from activities.service_templates.registry import ServiceTemplateRegistry
from activities.subscriptions import PostgresSubscriptionActivities
from api.schema_check import DatabaseCheck
from api.startup_errors import CannotStart
from db.encryption import FieldEncryption
from db.session import SessionFactory, create_database_engine, session_factory
from worker.settings import WorkerSettings
from workflows import names
from workflows.instance_operation import InstanceOperation
from workflows.invoice_rendering import InvoiceRendering
from workflows.notification_dispatch import NotificationDispatch
from workflows.payment import Payment
from workflows.payment_methods import PaymentMethodDefault, PaymentMethodRemoval, PaymentMethodSetup
from workflows.provisioning import Provisioning
from workflows.reconciliation import OrphanCleanup, Reconciliation
from workflows.refund import Refund
from workflows.rules.funding import GatewayTerms
from workflows.subscription.workflow import Subscription
from workflows.wallet_adjustment import WalletAdjustment

Activity = Callable[..., Any]

WORKFLOWS: tuple[type, ...] = (
    Subscription,
    Payment,
    Refund,
    WalletAdjustment,
    PaymentMethodSetup,
    PaymentMethodDefault,
    PaymentMethodRemoval,
    Provisioning,
    InstanceOperation,
    InvoiceRendering,
    NotificationDispatch,
    OrphanCleanup,
    Reconciliation,
)
"""All workflows run on ``platform``; only activities have separate queues."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dependencies:
    """What activities are given: made once per process, by ``dependencies`` or by a test.

    ``audits`` has one connection for reads over whole tables, so that they take none of the others.
    """

    settings: WorkerSettings
    sessions: SessionFactory
    audits: SessionFactory
    gateways: Mapping[str, PaymentGateway]
    cluster: KubernetesClusterActivities
    smtp: SmtpClient
    field_encryption: FieldEncryption | None


def load_service_templates(settings: WorkerSettings) -> ServiceTemplateRegistry:
    """Read and compile the service templates. Raises `CannotStart` if one is malformed."""
    try:
        return ServiceTemplateRegistry(settings.template_directory / "services", settings.cluster_profile())
    except (InvalidTemplate, TemplateError, OSError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise CannotStart(f"a service template of BERTH_TEMPLATE_DIRECTORY cannot be used: {reason}") from error


@asynccontextmanager
async def open_dependencies(settings: WorkerSettings) -> AsyncIterator[Dependencies]:
    """Make what activities need and dispose of it afterwards. Connects to nothing by itself.

    Raises:
        CannotStart: The service templates are malformed.
    """
    services = load_service_templates(settings)
    # Activities are repeated, so a connection that a restarted database has left behind may fail one of them.
    engine = create_database_engine(settings.worker_database_url, pool_size=settings.database_pool_size, pre_ping=False)
    audits = create_database_engine(settings.worker_database_url, pool_size=1, pre_ping=False)
    check = DatabaseCheck("worker")
    check.attach(engine)
    check.attach(audits)
    stripe = StripeGateway(
        api_key=settings.stripe_api_key.get_secret_value(),
        base_url=settings.stripe_url,
        return_url=f"{settings.public_url}/billing/return",
    )
    gateway = KubernetesClient.from_kubeconfig(settings.kubeconfig, threads=settings.max_concurrent_cluster_activities)
    keys = settings.temporal_settings().encryption_keys
    encryption = FieldEncryption(keys) if keys else None
    sessions = session_factory(engine, encryptor=encryption)
    cluster = KubernetesClusterActivities(
        gateway,
        services,
        sessions,
        failure_threshold=timedelta(seconds=settings.provisioning_failure_threshold_seconds),
    )
    try:
        yield Dependencies(
            settings=settings,
            sessions=sessions,
            audits=session_factory(audits, encryptor=encryption),
            gateways={stripe.name: stripe},
            cluster=cluster,
            smtp=SmtpClient(settings.smtp_settings()),
            field_encryption=encryption,
        )
    finally:
        # Joins the threads of its watches.
        await asyncio.to_thread(cluster.close)
        gateway.close()
        await stripe.close()
        await engine.dispose()
        await audits.dispose()


def activities_by_queue(dependencies: Dependencies) -> dict[str, Sequence[Activity]]:
    """Return the activities of each task queue."""
    sessions, settings = dependencies.sessions, dependencies.settings
    gateway_terms = terms_of_gateways(dependencies.gateways)
    documents = PdfDocumentActivities(sessions)
    notifications = SmtpNotificationActivities(
        sessions,
        dependencies.smtp,
        MailRenderer(
            public_url=settings.public_url,
            support_email=settings.support_address(),
            templates=settings.template_directory / "email",
        ),
        documents,
        sender=settings.mail_from,
        encryptor=dependencies.field_encryption,
    )
    return {
        names.PLATFORM_QUEUE: [
            *activity_methods(PostgresSubscriptionActivities(sessions, settings.base_domain, gateway_terms)),
            *activity_methods(PostgresBillingActivities(sessions, gateway_terms)),
            *activity_methods(GatewayPaymentActivities(sessions, dependencies.gateways)),
            *activity_methods(GatewayPaymentMethodActivities(sessions, dependencies.gateways)),
            *activity_methods(GatewayRefundActivities(sessions, dependencies.gateways)),
            *activity_methods(PostgresInstanceActivities(sessions)),
            *activity_methods(PostgresRecoveryActivities(sessions, gateway_terms)),
            *activity_methods(
                PostgresReconciliationActivities(sessions, gateways=dependencies.gateways, audits=dependencies.audits)
            ),
        ],
        names.INFRASTRUCTURE_QUEUE: activity_methods(dependencies.cluster),
        names.NOTIFICATIONS_QUEUE: [*activity_methods(documents), *activity_methods(notifications)],
    }


def terms_of_gateways(gateways: Mapping[str, PaymentGateway]) -> dict[str, GatewayTerms]:
    """Return what each gateway can do with saved payment methods, by name; those that save none are left out."""
    return {
        name: GatewayTerms(
            name=name,
            currencies=gateway.capabilities.currencies,
            minimum_minor=gateway.capabilities.minimum,
            off_session=gateway.capabilities.off_session,
            authorization=gateway.capabilities.authorization,
        )
        for name, gateway in gateways.items()
        if gateway.capabilities.saved_payment_methods
    }


def activity_methods(implementation: object) -> list[Activity]:
    """Return the methods of ``implementation`` that are activities."""
    methods = (getattr(implementation, name) for name in dir(implementation) if not name.startswith("_"))
    return [method for method in methods if hasattr(method, "__temporal_activity_definition")]
