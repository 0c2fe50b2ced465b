"""Disputes: opened by a card that always disputes or by the sandbox, decided by evidence or by the sandbox."""

from __future__ import annotations

from deploy.local.stripe.errors import StripeError, invalid_parameter
from deploy.local.stripe.listing import list_page
from deploy.local.stripe.request_context import Json, RequestContext, generate_id

FINAL_STATUSES = ("won", "lost")


def open_dispute(ctx: RequestContext, charge: Json, reason: str) -> Json:
    """The bank takes the money back while it asks; a charge is disputed at most once."""
    if charge["disputed"]:
        raise StripeError(400, f"Charge {charge['id']} is disputed already.", code="charge_disputed")
    if not charge["captured"]:
        raise invalid_parameter("charge", "Only a captured charge can be disputed.")
    body: Json = {
        "id": generate_id("dp_"),
        "object": "dispute",
        "amount": charge["amount_captured"] - charge["_sent_back"],
        "balance_transactions": [],
        "charge": charge["id"],
        "created": ctx.now,
        "currency": charge["currency"],
        "enhanced_eligibility_types": [],
        "evidence": {},
        "evidence_details": {
            "due_by": ctx.now + 7 * 86400,
            "has_evidence": False,
            "past_due": False,
            "submission_count": 0,
        },
        "is_charge_refundable": False,
        "livemode": False,
        "metadata": {},
        "payment_intent": charge["payment_intent"],
        "payment_method_details": {"card": {"brand": "visa", "case_type": "chargeback"}, "type": "card"},
        "reason": reason,
        "status": "needs_response",
    }
    charge.update(disputed=True)
    ctx.save(charge)
    ctx.save(body, parent=charge["id"])
    ctx.emit("charge.dispute.created", body)
    ctx.emit("charge.dispute.funds_withdrawn", body)
    return body


def set_status(ctx: RequestContext, body: Json, status: str) -> Json:
    """`won` gives the money back, `lost` leaves it with the card holder; a decided dispute stays decided."""
    if body["status"] == status:
        return body
    if body["status"] in FINAL_STATUSES:
        raise StripeError(400, f"This dispute is already {body['status']}.", code="dispute_already_closed")
    before = {"status": body["status"]}
    body["status"] = status
    ctx.save(body)
    if status in FINAL_STATUSES:
        if status == "won":
            ctx.emit("charge.dispute.funds_reinstated", body)
        ctx.emit("charge.dispute.closed", body, before)
    else:
        ctx.emit("charge.dispute.updated", body, before)
    return body


def retrieve(ctx: RequestContext, identifier: str) -> Json:
    return ctx.get_or_404("dispute", identifier)


def list_all(ctx: RequestContext) -> Json:
    charge, intent = ctx.params.text("charge"), ctx.params.text("payment_intent")
    return list_page(
        ctx,
        "dispute",
        "/v1/disputes",
        parent=charge,
        predicate=lambda body: intent is None or body["payment_intent"] == intent,
    )


def update(ctx: RequestContext, identifier: str) -> Json:
    """Stripe's test mode decides by the text of the evidence: `winning_evidence` or `losing_evidence`."""
    body = ctx.get_or_404("dispute", identifier)
    evidence, submit = ctx.params.pop_raw("evidence"), ctx.params.flag("submit")
    body["metadata"] = ctx.params.metadata(body["metadata"])
    ctx.params.reject_unknown()
    if body["status"] in FINAL_STATUSES:
        raise StripeError(400, "This dispute is already closed.", code="dispute_already_closed")
    if isinstance(evidence, dict):
        body["evidence"] = {**body["evidence"], **evidence}
        body["evidence_details"]["has_evidence"] = True
    ctx.save(body)
    words = body["evidence"].get("uncategorized_text")
    if submit is False or evidence is None:
        return body
    body["evidence_details"]["submission_count"] += 1
    outcome = {"winning_evidence": "won", "losing_evidence": "lost"}.get(words, "under_review")
    return set_status(ctx, body, outcome)


def close(ctx: RequestContext, identifier: str) -> Json:
    ctx.params.reject_unknown()
    return set_status(ctx, ctx.get_or_404("dispute", identifier), "lost")
