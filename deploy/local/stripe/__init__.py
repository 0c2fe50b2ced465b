"""The Stripe sandbox of the one-machine stack."""

from deploy.local.stripe.sandbox import DEFAULT_WEBHOOK_EVENTS, StripeSandbox

__all__ = ["DEFAULT_WEBHOOK_EVENTS", "StripeSandbox"]
