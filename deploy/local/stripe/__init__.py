"""The Stripe sandbox of the one-machine stack."""

from deploy.local.stripe.sandbox import DELIVERED, StripeSandbox

__all__ = ["DELIVERED", "StripeSandbox"]
