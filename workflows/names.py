"""Task queues, workflow types, workflow ids and search attributes: the names that histories and operators rely on."""

from __future__ import annotations

from typing import Any

from temporalio.common import SearchAttributeKey, SearchAttributePair, TypedSearchAttributes

PLATFORM = "platform"
INFRASTRUCTURE = "infrastructure"
NOTICES = "notices"

SUBSCRIPTION = "Subscription"
PAYMENT = "Payment"
REFUND = "Refund"
ADJUSTMENT = "Adjustment"
PAYMENT_METHOD_SETUP = "PaymentMethodSetup"
PAYMENT_METHOD_REMOVAL = "PaymentMethodRemoval"
PROVISIONING = "Provisioning"
INSTANCE_OPERATION = "InstanceOperation"
NOTIFICATION_DISPATCH = "NotificationDispatch"
INVOICE_DOCUMENT = "InvoiceDocument"
ORPHAN_COLLECTION = "OrphanCollection"
RECONCILIATION = "Reconciliation"

ACCOUNT_KEY = SearchAttributeKey.for_keyword("BerthAccount")
SUBSCRIPTION_KEY = SearchAttributeKey.for_keyword("BerthSubscription")
INSTANCE_KEY = SearchAttributeKey.for_keyword("BerthInstance")
NODE_KEY = SearchAttributeKey.for_keyword("BerthNode")
KIND_KEY = SearchAttributeKey.for_keyword("BerthKind")
STATUS_KEY = SearchAttributeKey.for_keyword("BerthStatus")
ATTENTION_KEY = SearchAttributeKey.for_bool("BerthAttention")

SEARCH_ATTRIBUTES = (ACCOUNT_KEY, SUBSCRIPTION_KEY, INSTANCE_KEY, NODE_KEY, KIND_KEY, STATUS_KEY, ATTENTION_KEY)


def subscription_workflow(subscription_id: str) -> str:
    return f"subscription/{subscription_id}"


def payment_workflow(payment_id: str) -> str:
    return f"payment/{payment_id}"


def provisioning_workflow(instance_id: str) -> str:
    return f"instance/{instance_id}/provision"


def operation_workflow(instance_id: str, operation_id: str) -> str:
    return f"instance/{instance_id}/{operation_id}"


def refund_workflow(refund_id: str) -> str:
    return f"refund/{refund_id}"


def adjustment_workflow(adjustment_id: str) -> str:
    return f"adjustment/{adjustment_id}"


def payment_method_workflow(payment_method_id: str) -> str:
    return f"payment-method/{payment_method_id}"


def payment_method_removal_workflow(payment_method_id: str) -> str:
    return f"payment-method/{payment_method_id}/removal"


def document_workflow(invoice_id: str) -> str:
    return f"document/{invoice_id}"


def dispatch_workflow(channel: str) -> str:
    return f"notification-dispatch/{channel}"


def attributes(
    account: str, kind: str, *, subscription: str | None = None, instance: str | None = None
) -> TypedSearchAttributes:
    """Return what operators find a workflow by. Plaintext on the server: ids and states only."""
    pairs: list[SearchAttributePair[Any]] = [
        SearchAttributePair(ACCOUNT_KEY, account),
        SearchAttributePair(KIND_KEY, kind),
    ]
    if subscription is not None:
        pairs.append(SearchAttributePair(SUBSCRIPTION_KEY, subscription))
    if instance is not None:
        pairs.append(SearchAttributePair(INSTANCE_KEY, instance))
    return TypedSearchAttributes(pairs)
