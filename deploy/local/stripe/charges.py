"""Charges and what happens to them afterwards: capture, release, refunds, disputes, balance transactions."""

from __future__ import annotations

from collections.abc import Mapping

from deploy.local.stripe.cards import TOKENS
from deploy.local.stripe.errors import StripeError, invalid_parameter, missing_parameter
from deploy.local.stripe.listing import list_page
from deploy.local.stripe.request_context import Json, RequestContext, generate_id, public_fields


def create_charge(
    ctx: RequestContext, intent: Json, method: Json, *, captured: bool, decline: Mapping[str, str] | None = None
) -> Json:
    """Create a charge of the intent's full amount; with `decline` (code, decline_code, message) a failed one."""
    paid = decline is None
    identifier = generate_id("ch_")
    card = {name: method["card"][name] for name in ("brand", "country", "exp_month", "exp_year", "fingerprint")}
    details = {**card, "funding": method["card"]["funding"], "last4": method["card"]["last4"], "network": card["brand"]}
    body: Json = {
        "id": identifier,
        "object": "charge",
        "amount": intent["amount"],
        "amount_captured": intent["amount"] if paid and captured else 0,
        "amount_refunded": 0,
        "application": None,
        "balance_transaction": None,
        "billing_details": method["billing_details"],
        "calculated_statement_descriptor": "BERTH SANDBOX",
        "captured": paid and captured,
        "created": ctx.now,
        "currency": intent["currency"],
        "customer": intent["customer"],
        "description": intent["description"],
        "disputed": False,
        "failure_code": decline["code"] if decline else None,
        "failure_message": decline["message"] if decline else None,
        "fraud_details": {},
        "livemode": False,
        "metadata": dict(intent["metadata"]),
        "outcome": {
            "network_decline_code": None,
            "network_status": "declined_by_network" if decline else "approved_by_network",
            "reason": decline["decline_code"] if decline else None,
            "risk_level": "normal",
            "seller_message": "The bank declined the payment." if decline else "Payment complete.",
            "type": "issuer_declined" if decline else "authorized",
        },
        "paid": paid,
        "payment_intent": intent["id"],
        "payment_method": method["id"],
        "payment_method_details": {"card": details, "type": "card"},
        "receipt_email": intent["receipt_email"],
        "receipt_number": None,
        "receipt_url": None,
        "refunded": False,
        "statement_descriptor": intent["statement_descriptor"],
        "status": "succeeded" if paid else "failed",
        "transfer_group": intent["transfer_group"],
        "_key": ctx.key,
        "_refunds": TOKENS[method["_token"]].refund_status,
        "_sent_back": 0,
    }
    if body["captured"]:
        body["balance_transaction"] = _create_balance_transaction(
            ctx, "charge", identifier, body["amount"], body["currency"], fee=True
        )
    return ctx.save(body, parent=intent["id"])


def _create_balance_transaction(
    ctx: RequestContext, kind: str, source: str, amount: int, currency: str, *, fee: bool = False
) -> str:
    """One line of the gateway's settlement; Stripe's card fee of 2.9 % and 30 minor units, half up."""
    cost = min(amount, (amount * 29 + 500) // 1000 + 30) if fee else 0
    body: Json = {
        "id": generate_id("txn_"),
        "object": "balance_transaction",
        "amount": amount,
        "available_on": ctx.now,
        "created": ctx.now,
        "currency": currency,
        "description": None,
        "exchange_rate": None,
        "fee": cost,
        "fee_details": [
            {
                "amount": cost,
                "application": None,
                "currency": currency,
                "description": "Stripe fees",
                "type": "stripe_fee",
            }
        ]
        if fee
        else [],
        "net": amount - cost,
        "reporting_category": kind,
        "source": source,
        "status": "available",
        "type": kind,
    }
    return str(ctx.save(body, parent=source)["id"])


def capture(ctx: RequestContext, body: Json, amount: int) -> Json:
    body.update(captured=True, amount_captured=amount)
    # The uncaptured part is released to the card holder; Stripe reports it as refunded.
    body["amount_refunded"] = body["amount"] - amount
    body["balance_transaction"] = _create_balance_transaction(
        ctx, "charge", body["id"], amount, body["currency"], fee=True
    )
    return ctx.save(body)


def cancel_authorization(ctx: RequestContext, body: Json) -> Json:
    """Cancel an uncaptured charge; Stripe reports it as refunded."""
    body.update(amount_refunded=body["amount"], refunded=True)
    ctx.save(body)
    ctx.emit("charge.refunded", body, {"amount_refunded": 0, "refunded": False})
    return body


def retrieve(ctx: RequestContext, identifier: str) -> Json:
    return ctx.get_or_404("charge", identifier)


def list_all(ctx: RequestContext) -> Json:
    params = ctx.params
    return list_page(
        ctx, "charge", "/v1/charges", customer=params.text("customer"), parent=params.text("payment_intent")
    )


def reject_direct_charge(ctx: RequestContext) -> Json:
    raise StripeError(400, "This sandbox creates charges through payment intents only.")


# refunds -------------------------------------------------------------------------------------------------------------


def _charge_to_refund(ctx: RequestContext) -> Json:
    charge, intent = ctx.params.text("charge"), ctx.params.text("payment_intent")
    if charge is not None:
        return ctx.get_or_404("charge", charge, "charge")
    if intent is None:
        raise missing_parameter("payment_intent")
    latest = ctx.get_or_404("payment_intent", intent, "payment_intent")["latest_charge"]
    if latest is None:
        raise invalid_parameter("payment_intent", "This PaymentIntent does not have a successful charge to refund.")
    return ctx.get_or_404("charge", latest, "payment_intent")


def refund(ctx: RequestContext) -> Json:
    params = ctx.params
    charge = _charge_to_refund(ctx)
    amount = params.integer("amount")
    reason = params.one_of("reason", ("duplicate", "fraudulent", "requested_by_customer"))
    metadata = params.metadata()
    params.ignore("refund_application_fee", "reverse_transfer", "instructions_email", "currency", "customer", "origin")
    params.reject_unknown()
    remaining = charge["amount_captured"] - charge["_sent_back"]
    amount = _check_refund(charge, remaining if amount is None else amount, remaining)
    body: Json = {
        "id": generate_id("re_"),
        "object": "refund",
        "amount": amount,
        "charge": charge["id"],
        "created": ctx.now,
        "currency": charge["currency"],
        "destination_details": {"card": {"type": "refund"}, "type": "card"},
        "metadata": metadata,
        "payment_intent": charge["payment_intent"],
        "reason": reason,
        "receipt_number": None,
        "source_transfer_reversal": None,
        "status": "pending" if charge["_refunds"] == "pending" else "succeeded",
        "transfer_reversal": None,
        "_key": ctx.key,
    }
    body["balance_transaction"] = _create_balance_transaction(ctx, "refund", body["id"], -amount, charge["currency"])
    ctx.save(body, parent=charge["id"])
    _apply_refund(ctx, charge, amount)
    ctx.emit("refund.created", body)
    response = public_fields(body)
    if charge["_refunds"] == "pending":
        body["status"] = "succeeded"
        ctx.save(body)
        ctx.emit("refund.updated", body, {"status": "pending"})
    elif charge["_refunds"] == "failed":
        fail_refund(ctx, body, "expired_or_canceled_card")
    return response


def fail_refund(ctx: RequestContext, body: Json, reason: str) -> Json:
    """The bank rejects a refund that was sent: the money is on the gateway's balance again."""
    before = {"status": body["status"]}
    if before["status"] not in ("pending", "succeeded"):
        raise StripeError(400, f"Refund {body['id']} has the status {before['status']} already.")
    charge = ctx.get_or_404("charge", body["charge"])
    body.update(status="failed", failure_reason=reason)
    body["failure_balance_transaction"] = _create_balance_transaction(
        ctx, "refund_failure", body["id"], body["amount"], charge["currency"]
    )
    ctx.save(body)
    _apply_refund(ctx, charge, -body["amount"])
    for kind in ("charge.refund.updated", "refund.updated", "refund.failed"):
        ctx.emit(kind, body, before)
    return body


def _check_refund(charge: Json, amount: int, remaining: int) -> int:
    if charge["status"] == "failed":
        raise invalid_parameter("charge", f"Charge {charge['id']} has failed and cannot be refunded.")
    if not charge["captured"]:
        raise StripeError(
            400,
            f"This uncaptured Charge was created by a PaymentIntent ({charge['payment_intent']}). "
            "You must cancel the PaymentIntent to reverse the authorization instead of refunding the Charge directly.",
        )
    if charge["disputed"]:
        raise StripeError(
            400, f"Charge {charge['id']} has been charged back; cannot issue a refund.", code="charge_disputed"
        )
    if remaining == 0:
        raise StripeError(400, f"Charge {charge['id']} has already been refunded.", code="charge_already_refunded")
    if amount < 1:
        raise StripeError(400, "Invalid positive integer", code="parameter_invalid_integer", param="amount")
    if amount > remaining:
        raise invalid_parameter(
            "amount", f"Refund amount ({amount}) is greater than unrefunded amount on charge ({remaining})"
        )
    return amount


def _apply_refund(ctx: RequestContext, charge: Json, amount: int) -> None:
    before = {"amount_refunded": charge["amount_refunded"], "refunded": charge["refunded"]}
    charge["_sent_back"] += amount
    charge["amount_refunded"] += amount
    charge["refunded"] = charge["_sent_back"] == charge["amount_captured"]
    ctx.save(charge)
    if amount > 0:
        ctx.emit("charge.refunded", charge, before)


def retrieve_refund(ctx: RequestContext, identifier: str) -> Json:
    return ctx.get_or_404("refund", identifier)


def update_refund(ctx: RequestContext, identifier: str) -> Json:
    body = ctx.get_or_404("refund", identifier)
    body["metadata"] = ctx.params.metadata(body["metadata"])
    ctx.params.reject_unknown()
    return ctx.save(body)


def list_refunds(ctx: RequestContext) -> Json:
    charge, intent = ctx.params.text("charge"), ctx.params.text("payment_intent")
    return list_page(
        ctx,
        "refund",
        "/v1/refunds",
        parent=charge,
        predicate=lambda body: intent is None or body["payment_intent"] == intent,
    )


# balance -------------------------------------------------------------------------------------------------------------


def retrieve_transaction(ctx: RequestContext, identifier: str) -> Json:
    return ctx.get_or_404("balance_transaction", identifier)


def list_transactions(ctx: RequestContext) -> Json:
    source, kind, currency = ctx.params.text("source"), ctx.params.text("type"), ctx.params.text("currency")
    return list_page(
        ctx,
        "balance_transaction",
        "/v1/balance_transactions",
        parent=source,
        predicate=lambda body: (
            (kind is None or body["type"] == kind) and (currency is None or body["currency"] == currency)
        ),
    )


def balance(ctx: RequestContext) -> Json:
    totals: dict[str, int] = {}
    for line in ctx.store.find("balance_transaction"):
        totals[line["currency"]] = totals.get(line["currency"], 0) + line["net"]
    held = [
        {"amount": amount, "currency": currency, "source_types": {"card": amount}}
        for currency, amount in sorted(totals.items())
    ]
    return {"object": "balance", "available": held, "livemode": False, "pending": []}
