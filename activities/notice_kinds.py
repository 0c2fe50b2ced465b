"""What the mail of each kind has to be told. The table of ``templates/email/README.md``, as data."""

from __future__ import annotations

from collections.abc import Mapping

from workflows.rules.notices import NoticeKind

SUBSCRIPTION = frozenset(
    {
        "subscription_id", "subscription_name", "plan_name", "service_name", "url", "hostname", "amount",
        "period_start", "period_end", "invoice_id", "invoice_number", "days", "due_at", "next_attempt",
        "decline_code", "delete_at", "reason", "cancel_at_period_end",
    }
)  # fmt: skip
"""What enqueuers of subscriptions' mails may send; each may be missing."""

FURTHER = frozenset(
    {
        "expires_at", "balance", "credit", "gateway", "brand", "last4", "payment_id", "to", "old_plan_name",
        "balance_too_low", "trial_end", "credentials_url", "title", "details", "severity", "workflow_id",
        "suspends_at", "cancels_at", "effective_at", "instance_id", "status",
    }
)  # fmt: skip

KNOWN = SUBSCRIPTION | FURTHER | {"token"}
"""Keys that templates may name; those that nobody sent are None."""

REQUIRED: Mapping[NoticeKind, frozenset[str]] = {
    NoticeKind.EMAIL_VERIFICATION: frozenset({"token"}),
    NoticeKind.PASSWORD_RESET: frozenset({"token"}),
    NoticeKind.WELCOME: frozenset(),
    NoticeKind.TOP_UP_RECEIPT: frozenset({"amount"}),
    NoticeKind.SUBSCRIPTION_CREATED: frozenset({"subscription_id"}),
    NoticeKind.SERVICE_READY: frozenset({"subscription_id"}),
    NoticeKind.SUBSCRIPTION_EXPIRING: frozenset({"subscription_id", "days"}),
    NoticeKind.SUBSCRIPTION_RENEWED: frozenset({"subscription_id"}),
    NoticeKind.PAYMENT_FAILED: frozenset({"subscription_id"}),
    NoticeKind.SUBSCRIPTION_SUSPENDED: frozenset({"subscription_id"}),
    NoticeKind.SUBSCRIPTION_RECOVERED: frozenset({"subscription_id"}),
    NoticeKind.SUBSCRIPTION_PAUSED: frozenset({"subscription_id"}),
    NoticeKind.SUBSCRIPTION_RESUMED: frozenset({"subscription_id"}),
    NoticeKind.SUBSCRIPTION_CANCELLED: frozenset({"subscription_id"}),
    NoticeKind.SUBSCRIPTION_TERMINATED: frozenset({"subscription_id"}),
    NoticeKind.SUBSCRIPTION_FAILED: frozenset({"subscription_id"}),
    NoticeKind.SUBSCRIPTION_EXPIRED: frozenset({"subscription_id"}),
    NoticeKind.PLAN_CHANGED: frozenset({"subscription_id"}),
    NoticeKind.REFUND_SUCCEEDED: frozenset({"amount"}),
    NoticeKind.OPERATOR_ALERT: frozenset({"title"}),
}
