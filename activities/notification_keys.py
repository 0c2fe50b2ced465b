"""Context keys of each kind of mail: allowed and required."""

from __future__ import annotations

from collections.abc import Mapping

from activities.notification_context import ContextFields
from workflows.rules.notifications import NotificationKind

SUBSCRIPTION_KEYS = frozenset(
    {"subscription_id", "subscription_name", "plan_name", "service_name", "url", "hostname"}
) | frozenset(ContextFields.__annotations__)
"""Keys of mails about a subscription; each is optional."""

OTHER_KEYS = frozenset(
    {
        "invoice_number", "days", "due_at", "expires_at", "balance", "gateway", "brand", "last4", "payment_id", "to",
        "balance_too_low", "card_expires_before", "charges_card_first", "title", "details", "severity", "workflow_id",
        "paid_by",
    }
)  # fmt: skip

ALLOWED_KEYS = SUBSCRIPTION_KEYS | OTHER_KEYS | {"token"}
"""Keys that templates may use; a missing one is None."""

REQUIRED_KEYS: Mapping[NotificationKind, frozenset[str]] = {
    NotificationKind.EMAIL_VERIFICATION: frozenset({"token"}),
    NotificationKind.PASSWORD_RESET: frozenset({"token"}),
    NotificationKind.WELCOME: frozenset(),
    NotificationKind.TOP_UP_RECEIPT: frozenset({"amount"}),
    NotificationKind.SUBSCRIPTION_CREATED: frozenset({"subscription_id"}),
    NotificationKind.SERVICE_READY: frozenset({"subscription_id"}),
    NotificationKind.SUBSCRIPTION_EXPIRING: frozenset({"subscription_id", "days"}),
    NotificationKind.SUBSCRIPTION_RENEWED: frozenset({"subscription_id"}),
    NotificationKind.PAYMENT_FAILED: frozenset({"subscription_id"}),
    NotificationKind.SUBSCRIPTION_SUSPENDED: frozenset({"subscription_id"}),
    NotificationKind.SUBSCRIPTION_RECOVERED: frozenset({"subscription_id"}),
    NotificationKind.SUBSCRIPTION_PAUSED: frozenset({"subscription_id"}),
    NotificationKind.SUBSCRIPTION_RESUMED: frozenset({"subscription_id"}),
    NotificationKind.SUBSCRIPTION_CANCELLED: frozenset({"subscription_id"}),
    NotificationKind.SUBSCRIPTION_TERMINATED: frozenset({"subscription_id"}),
    NotificationKind.SUBSCRIPTION_FAILED: frozenset({"subscription_id"}),
    NotificationKind.SUBSCRIPTION_EXPIRED: frozenset({"subscription_id"}),
    NotificationKind.PLAN_CHANGED: frozenset({"subscription_id"}),
    NotificationKind.REFUND_SUCCEEDED: frozenset({"amount"}),
    NotificationKind.REFUND_FAILED: frozenset({"amount"}),
    NotificationKind.OPERATOR_ALERT: frozenset({"title"}),
}
