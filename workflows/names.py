"""Task queues, workflow types, workflow ids and search attributes: the names that histories and operators rely on."""

from __future__ import annotations

from typing import Any

from temporalio.common import SearchAttributeKey, SearchAttributePair, TypedSearchAttributes

PLATFORM_QUEUE = "platform"
INFRASTRUCTURE_QUEUE = "infrastructure"
NOTIFICATIONS_QUEUE = "notifications"

SUBSCRIPTION = "Subscription"
PAYMENT = "Payment"
REFUND = "Refund"
WALLET_ADJUSTMENT = "WalletAdjustment"
PAYMENT_METHOD_SETUP = "PaymentMethodSetup"
PAYMENT_METHOD_DEFAULT = "PaymentMethodDefault"
PAYMENT_METHOD_REMOVAL = "PaymentMethodRemoval"
PROVISIONING = "Provisioning"
INSTANCE_OPERATION = "InstanceOperation"
NOTIFICATION_DISPATCH = "NotificationDispatch"
INVOICE_RENDERING = "InvoiceRendering"
ORPHAN_CLEANUP = "OrphanCleanup"
RECONCILIATION = "Reconciliation"

ORGANIZATION_KEY = SearchAttributeKey.for_keyword("BerthOrganization")
SUBSCRIPTION_KEY = SearchAttributeKey.for_keyword("BerthSubscription")
INSTANCE_KEY = SearchAttributeKey.for_keyword("BerthInstance")
NODE_KEY = SearchAttributeKey.for_keyword("BerthNode")
KIND_KEY = SearchAttributeKey.for_keyword("BerthWorkflowKind")
STATUS_KEY = SearchAttributeKey.for_keyword("BerthStatus")
NEEDS_ATTENTION_KEY = SearchAttributeKey.for_bool("BerthNeedsAttention")

SEARCH_ATTRIBUTES = (
    ORGANIZATION_KEY,
    SUBSCRIPTION_KEY,
    INSTANCE_KEY,
    NODE_KEY,
    KIND_KEY,
    STATUS_KEY,
    NEEDS_ATTENTION_KEY,
)


def subscription_workflow_id(subscription_id: str) -> str:
    return f"subscription/{subscription_id}"


def payment_workflow_id(payment_id: str) -> str:
    return f"payment/{payment_id}"


def provisioning_workflow_id(instance_id: str) -> str:
    return f"instance/{instance_id}/provision"


def operation_workflow_id(instance_id: str, operation_id: str) -> str:
    return f"instance/{instance_id}/{operation_id}"


def refund_workflow_id(refund_id: str) -> str:
    return f"refund/{refund_id}"


def adjustment_workflow_id(adjustment_id: str) -> str:
    return f"adjustment/{adjustment_id}"


def payment_method_setup_workflow_id(payment_method_id: str) -> str:
    return f"payment-method/{payment_method_id}"


def payment_method_default_workflow_id(default_change_id: str) -> str:
    return f"payment-method-default/{default_change_id}"


def payment_method_removal_workflow_id(payment_method_id: str) -> str:
    return f"payment-method/{payment_method_id}/removal"


def invoice_rendering_workflow_id(invoice_id: str) -> str:
    return f"document/{invoice_id}"


def notification_dispatch_workflow_id(channel: str) -> str:
    return f"notification-dispatch/{channel}"


def search_attributes(
    account: str,
    kind: str,
    *,
    subscription: str | None = None,
    instance: str | None = None,
    status: str | None = None,
) -> TypedSearchAttributes:
    """Return what operators find a workflow by. Plaintext on the server: ids and states only."""
    pairs: list[SearchAttributePair[Any]] = [
        SearchAttributePair(ORGANIZATION_KEY, account),
        SearchAttributePair(KIND_KEY, kind),
    ]
    if subscription is not None:
        pairs.append(SearchAttributePair(SUBSCRIPTION_KEY, subscription))
    if instance is not None:
        pairs.append(SearchAttributePair(INSTANCE_KEY, instance))
    if status is not None:
        pairs.append(SearchAttributePair(STATUS_KEY, status))
    return TypedSearchAttributes(pairs)
