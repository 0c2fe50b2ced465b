"""Charges and what happens to them afterwards: capture, release, refunds, disputes, balance transactions."""

from __future__ import annotations

from collections.abc import Mapping

from deploy.local.stripe.cards import TOKENS
from deploy.local.stripe.context import Context, Json, new_id, public
from deploy.local.stripe.errors import StripeError, invalid_parameter, missing_parameter
from deploy.local.stripe.listing import listing


def make(ctx: Context, intent: Json, method: Json, *, captured: bool, refusal: Mapping[str, str] | None = None) -> Json:
    """A new charge of the intent's whole amount; with `refusal` (code, decline_code, message) a failed one."""
    paid = refusal is None
    identifier = new_id("ch_")
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
        "failure_code": refusal["code"] if refusal else None,
        "failure_message": refusal["message"] if refusal else None,
        "fraud_details": {},
        "livemode": False,
        "metadata": dict(intent["metadata"]),
        "outcome": {
            "network_decline_code": None,
            "network_status": "declined_by_network" if refusal else "approved_by_network",
            "reason": refusal["decline_code"] if refusal else None,
            "risk_level": "normal",
            "seller_message": "The bank declined the payment." if refusal else "Payment complete.",
            "type": "issuer_declined" if refusal else "authorized",
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
        "_refunds": TOKENS[method["_token"]].refunds,
        "_sent_back": 0,
    }
    if body["captured"]:
        body["balance_transaction"] = _book(ctx, "charge", identifier, body["amount"], body["currency"], fee=True)
    return ctx.save(body, parent=intent["id"])


def _book(ctx: Context, kind: str, source: str, amount: int, currency: str, *, fee: bool = False) -> str:
    """One line of the gateway's settlement; Stripe's card fee of 2.9 % and 30 minor units, half up."""
    cost = min(amount, (amount * 29 + 500) // 1000 + 30) if fee else 0
    body: Json = {
        "id": new_id("txn_"),
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


def capture(ctx: Context, body: Json, amount: int) -> Json:
    body.update(captured=True, amount_captured=amount)
    # The part that is not taken goes back to the card holder, and Stripe reports it as refunded.
    body["amount_refunded"] = body["amount"] - amount
    body["balance_transaction"] = _book(ctx, "charge", body["id"], amount, body["currency"], fee=True)
    return ctx.save(body)


def release(ctx: Context, body: Json) -> Json:
    """A cancelled authorisation: nothing was taken, and Stripe reports the charge as refunded."""
    body.update(amount_refunded=body["amount"], refunded=True)
    ctx.save(body)
    ctx.emit("charge.refunded", body, {"amount_refunded": 0, "refunded": False})
    return body


def retrieve(ctx: Context, identifier: str) -> Json:
    return ctx.load("charge", identifier)


def list_all(ctx: Context) -> Json:
    params = ctx.params
    return listing(ctx, "charge", "/v1/charges", customer=params.text("customer"), parent=params.text("payment_intent"))


def refuse_direct(ctx: Context) -> Json:
    raise StripeError(400, "This sandbox creates charges through payment intents only.")


# refunds -------------------------------------------------------------------------------------------------------------


def _refundable(ctx: Context) -> Json:
    charge, intent = ctx.params.text("charge"), ctx.params.text("payment_intent")
    if charge is not None:
        return ctx.load("charge", charge, "charge")
    if intent is None:
        raise missing_parameter("payment_intent")
    latest = ctx.load("payment_intent", intent, "payment_intent")["latest_charge"]
    if latest is None:
        raise invalid_parameter("payment_intent", "This PaymentIntent does not have a successful charge to refund.")
    return ctx.load("charge", latest, "payment_intent")


def refund(ctx: Context) -> Json:
    params = ctx.params
    charge = _refundable(ctx)
    amount = params.integer("amount")
    reason = params.one_of("reason", ("duplicate", "fraudulent", "requested_by_customer"))
    metadata = params.metadata()
    params.pass_over(
        "refund_application_fee", "reverse_transfer", "instructions_email", "currency", "customer", "origin"
    )
    params.finish()
    left = charge["amount_captured"] - charge["_sent_back"]
    amount = _check_refund(charge, left if amount is None else amount, left)
    body: Json = {
        "id": new_id("re_"),
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
    body["balance_transaction"] = _book(ctx, "refund", body["id"], -amount, charge["currency"])
    ctx.save(body, parent=charge["id"])
    _send_back(ctx, charge, amount)
    ctx.emit("refund.created", body)
    answer = public(body)
    if charge["_refunds"] == "pending":
        body["status"] = "succeeded"
        ctx.save(body)
        ctx.emit("refund.updated", body, {"status": "pending"})
    elif charge["_refunds"] == "failed":
        body.update(status="failed", failure_reason="expired_or_canceled_card")
        body["failure_balance_transaction"] = _book(ctx, "refund_failure", body["id"], amount, charge["currency"])
        ctx.save(body)
        _send_back(ctx, charge, -amount)
        ctx.emit("refund.failed", body, {"status": "succeeded"})
    return answer


def _check_refund(charge: Json, amount: int, left: int) -> int:
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
    if left == 0:
        raise StripeError(400, f"Charge {charge['id']} has already been refunded.", code="charge_already_refunded")
    if amount < 1:
        raise StripeError(400, "Invalid positive integer", code="parameter_invalid_integer", param="amount")
    if amount > left:
        raise invalid_parameter(
            "amount", f"Refund amount ({amount}) is greater than unrefunded amount on charge ({left})"
        )
    return amount


def _send_back(ctx: Context, charge: Json, amount: int) -> None:
    before = {"amount_refunded": charge["amount_refunded"], "refunded": charge["refunded"]}
    charge["_sent_back"] += amount
    charge["amount_refunded"] += amount
    charge["refunded"] = charge["_sent_back"] == charge["amount_captured"]
    ctx.save(charge)
    if amount > 0:
        ctx.emit("charge.refunded", charge, before)


def retrieve_refund(ctx: Context, identifier: str) -> Json:
    return ctx.load("refund", identifier)


def update_refund(ctx: Context, identifier: str) -> Json:
    body = ctx.load("refund", identifier)
    body["metadata"] = ctx.params.metadata(body["metadata"])
    ctx.params.finish()
    return ctx.save(body)


def list_refunds(ctx: Context) -> Json:
    charge, intent = ctx.params.text("charge"), ctx.params.text("payment_intent")
    return listing(
        ctx,
        "refund",
        "/v1/refunds",
        parent=charge,
        keep=lambda body: intent is None or body["payment_intent"] == intent,
    )


# balance -------------------------------------------------------------------------------------------------------------


def retrieve_transaction(ctx: Context, identifier: str) -> Json:
    return ctx.load("balance_transaction", identifier)


def list_transactions(ctx: Context) -> Json:
    source, kind, currency = ctx.params.text("source"), ctx.params.text("type"), ctx.params.text("currency")
    return listing(
        ctx,
        "balance_transaction",
        "/v1/balance_transactions",
        parent=source,
        keep=lambda body: (kind is None or body["type"] == kind) and (currency is None or body["currency"] == currency),
    )


def balance(ctx: Context) -> Json:
    totals: dict[str, int] = {}
    for line in ctx.store.find("balance_transaction"):
        totals[line["currency"]] = totals.get(line["currency"], 0) + line["net"]
    held = [
        {"amount": amount, "currency": currency, "source_types": {"card": amount}}
        for currency, amount in sorted(totals.items())
    ]
    return {"object": "balance", "available": held, "livemode": False, "pending": []}
