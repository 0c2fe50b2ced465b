"""Whether a webhook was signed by its gateway. Standard library only, compared in constant time.

Each function answers False for anything that is not a good signature: malformed, forged, too old.
"""

from __future__ import annotations

import hashlib
import hmac
from datetime import datetime

TOLERANCE_SECONDS = 300


def verify_stripe(
    payload: bytes, header: str, secret: str, now: datetime, tolerance_seconds: int = TOLERANCE_SECONDS
) -> bool:
    """Check ``Stripe-Signature``: ``t=<unix>,v1=<hex>[,v1=…]``, HMAC-SHA256 over ``<t>.<payload>``.

    A header older or further ahead than the tolerance is refused, so that a recorded webhook cannot be replayed.
    Several ``v1`` are sent while a secret is rolled; one that holds is enough.
    """
    timestamps, digests = [], []
    for item in header.split(","):
        name, _, value = item.strip().partition("=")
        if name == "t":
            timestamps.append(value)
        elif name == "v1":
            digests.append(value)
    if not secret or len(timestamps) != 1 or not digests or not (timestamps[0].isascii() and timestamps[0].isdigit()):
        return False
    if len(timestamps[0]) > 12 or abs(now.timestamp() - int(timestamps[0])) > tolerance_seconds:
        return False
    expected = hmac.new(secret.encode(), timestamps[0].encode() + b"." + payload, hashlib.sha256).hexdigest()
    return any(_constant_time_equal(expected, digest) for digest in digests)


def verify_midtrans(
    midtrans_order_id: str, status_code: str, gross_amount: str, signature_key: str, server_key: str
) -> bool:
    """Check a notification's ``signature_key``: SHA-512 over order id, status code, gross amount and server key.

    The texts are taken as they stand in the notification (``gross_amount`` is ``"150000.00"`` there).
    """
    if not server_key:
        return False
    expected = hashlib.sha512(f"{midtrans_order_id}{status_code}{gross_amount}{server_key}".encode()).hexdigest()
    return _constant_time_equal(expected, signature_key)


def verify_razorpay(payload: bytes, signature: str, secret: str) -> bool:
    """Check ``X-Razorpay-Signature``: HMAC-SHA256 over the body, hexadecimal."""
    if not secret:
        return False
    return _constant_time_equal(hmac.new(secret.encode(), payload, hashlib.sha256).hexdigest(), signature)


def _constant_time_equal(expected: str, actual: str) -> bool:
    return hmac.compare_digest(expected.encode(), actual.encode())
