"""The sandbox's own routes: faults, redelivery, what the gateway believes, disputes, authentication."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

from aiohttp import web

from deploy.local.stripe import charges, disputes, pages, payment_intents, setup_intents
from deploy.local.stripe.api_server import StripeApi
from deploy.local.stripe.errors import StripeError, invalid_parameter
from deploy.local.stripe.params import Params
from deploy.local.stripe.request_context import Json, RequestContext, public_fields

_DISPUTE_STATES = ("needs_response", "under_review", "won", "lost")
_REDELIVERY_SECONDS = 30.0


class SandboxApi:
    """Handlers of `/sandbox/…` and `/health`; they need no key."""

    def __init__(self, front: StripeApi) -> None:
        self._front = front

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/", self.overview),
            web.get("/health", self.health),
            web.get("/sandbox/faults", self.list_faults),
            web.post("/sandbox/faults", self.add_fault),
            web.delete("/sandbox/faults", self.clear_faults),
            web.post("/sandbox/redeliver", self.redeliver),
            web.get("/sandbox/webhooks", self.webhooks),
            web.get("/sandbox/charges", self.charges),
            web.post("/sandbox/disputes", self.dispute),
            web.get("/sandbox/refunds", self.refunds),
            web.post("/sandbox/refunds/{id}/fail", self.fail_refund),
            web.post("/sandbox/declines", self.declines),
            web.post("/sandbox/payment_intents/{id}/authenticate", self.authenticate),
            web.get("/sandbox/authenticate/{id}", self.authentication_page),
            web.post("/sandbox/authenticate/{id}", self.authentication_form),
        ]

    def _run_action(self, act: Callable[[RequestContext], Json]) -> Json:
        """One transaction on behalf of the bank or the card holder; a refusal it leaves behind is kept."""
        front = self._front
        ctx = RequestContext(
            store=front.store, params=Params({}), now=int(time.time()), subscribed_events=front.deliver
        )
        with front.store.transaction():
            try:
                done = public_fields(act(ctx))
            except StripeError as refusal:
                if not refusal.commit or refusal.status != 402:
                    raise
                done = refusal.body()
        front.deliverer.notify()
        return done

    async def health(self, request: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def overview(self, request: web.Request) -> web.Response:
        front = self._front
        rows = front.store.execute("SELECT COUNT(*), SUM(done) FROM deliveries")
        page = pages.render_overview(
            charges=[_charge(body) for body in front.store.find("charge", limit=100)],
            events=front.store.find("event", limit=100),
            delivered=(rows[0][1] or 0, rows[0][0]),
            faults=[fault.to_json() for fault in front.faults.active()],
        )
        return web.Response(text=page, content_type="text/html")

    # faults --------------------------------------------------------------------------------------------------------

    async def list_faults(self, request: web.Request) -> web.Response:
        return web.json_response({"faults": [fault.to_json() for fault in self._front.faults.active()]})

    async def add_fault(self, request: web.Request) -> web.Response:
        try:
            fault = self._front.faults.add(await _json_body(request))
        except ValueError as wrong:
            raise StripeError(400, str(wrong), param="fault") from wrong
        return web.json_response(fault.to_json(), status=201)

    async def clear_faults(self, request: web.Request) -> web.Response:
        kind = request.query.get("fault")
        self._front.faults.clear(kind)
        if kind in (None, "hold_webhook"):
            self._front.deliverer.release_all()
        return await self.list_faults(request)

    # webhooks ------------------------------------------------------------------------------------------------------

    async def redeliver(self, request: web.Request) -> web.Response:
        """Every subscribed event again, same ids. Optional body: `event` (one id), `reverse` (latest first).

        Answers once each had its turn (at most 30 s): `{"events": sent again, "accepted": answered 2xx}`.
        """
        options = await _json_body(request)
        events, accepted = await self._front.deliverer.redeliver(
            event=options.get("event"), reverse=bool(options.get("reverse")), wait=_REDELIVERY_SECONDS
        )
        return web.json_response({"events": events, "accepted": accepted})

    async def webhooks(self, request: web.Request) -> web.Response:
        rows = self._front.store.execute(
            "SELECT d.event AS id, o.body, d.attempts, d.done, d.held, d.outcome, d.round FROM deliveries d "
            "JOIN objects o ON o.id = d.event ORDER BY o.seq"
        )
        return web.json_response(
            [
                {
                    "id": row["id"],
                    "type": json.loads(row["body"])["type"],
                    "object": json.loads(row["body"])["data"]["object"]["id"],
                    "delivered": bool(row["done"]),
                    "held": bool(row["held"]),
                    "attempts": row["attempts"],
                    "outcome": row["outcome"],
                    "round": row["round"],
                }
                for row in rows
            ]
        )

    # what the gateway believes -------------------------------------------------------------------------------------

    async def charges(self, request: web.Request) -> web.Response:
        """Every charge, oldest first, failed ones too. `amount` and `refunded` are integer minor units."""
        return web.json_response([_charge(body) for body in reversed(self._front.store.find("charge"))])

    # the bank and the card holder ----------------------------------------------------------------------------------

    async def dispute(self, request: web.Request) -> web.Response:
        """`{"charge": id, "status": "needs_response" | "under_review" | "won" | "lost"}`: opened when it is not yet."""
        options = await _json_body(request)
        identifier, status = str(options.get("charge")), options.get("status", "needs_response")
        reason = str(options.get("reason", "fraudulent"))
        if status not in _DISPUTE_STATES:
            raise invalid_parameter("status", f"status must be one of {', '.join(_DISPUTE_STATES)}")

        def act(ctx: RequestContext) -> Json:
            charge = ctx.get_or_404("charge", identifier, "charge")
            open_ones = ctx.store.find("dispute", parent=identifier)
            body = open_ones[0] if open_ones else disputes.open_dispute(ctx, charge, reason)
            return disputes.set_status(ctx, body, status)

        return web.json_response(self._run_action(act))

    async def refunds(self, request: web.Request) -> web.Response:
        """Every refund, oldest first, as Stripe's API returns it."""
        return web.json_response([public_fields(body) for body in reversed(self._front.store.find("refund"))])

    async def fail_refund(self, request: web.Request) -> web.Response:
        """The bank rejects a refund that was sent. Optional body: `failure_reason`."""
        reason = str((await _json_body(request)).get("failure_reason", "lost_or_stolen_card"))
        identifier = request.match_info["id"]

        def act(ctx: RequestContext) -> Json:
            return charges.fail_refund(ctx, ctx.get_or_404("refund", identifier), reason)

        return web.json_response(self._run_action(act))

    async def declines(self, request: web.Request) -> web.Response:
        """`{"decline_code": code | null, "payment_method"?: id, "customer"?: id}`: saved cards refuse, or pay again."""
        options = await _json_body(request)
        code, method, customer = options.get("decline_code"), options.get("payment_method"), options.get("customer")
        if code is not None and not isinstance(code, str):
            raise invalid_parameter("decline_code", "decline_code must be a decline code or null")

        def act(ctx: RequestContext) -> Json:
            chosen = (
                [ctx.get_or_404("payment_method", str(method), "payment_method")]
                if method is not None
                else ctx.store.find("payment_method", customer=customer)
            )
            for body in chosen:
                ctx.save({**body, "_declines": code})
            return {"payment_methods": [body["id"] for body in chosen], "decline_code": code}

        return web.json_response(self._run_action(act))

    async def authenticate(self, request: web.Request) -> web.Response:
        """`{"outcome": "succeed" | "fail"}` for an intent that requires action."""
        outcome = (await _json_body(request)).get("outcome", "succeed")
        if outcome not in ("succeed", "fail"):
            raise invalid_parameter("outcome", "outcome must be succeed or fail")
        return web.json_response(self._authenticate(request.match_info["id"], outcome == "succeed"))

    def _authenticate(self, identifier: str, succeeded: bool) -> Json:
        def act(ctx: RequestContext) -> Json:
            if identifier.startswith("seti_"):
                body = ctx.get_or_404("setup_intent", identifier)
                if body["status"] != "requires_action":
                    raise StripeError(400, "This SetupIntent does not require action.")
                if succeeded:
                    return setup_intents.complete(ctx, body)
                body.update(status="requires_payment_method", payment_method=None, next_action=None)
                ctx.emit("setup_intent.setup_failed", body)
                return ctx.save(body)
            return payment_intents.complete_authentication(ctx, identifier, succeeded)

        return self._run_action(act)

    async def authentication_page(self, request: web.Request) -> web.Response:
        kind = "setup_intent" if request.match_info["id"].startswith("seti_") else "payment_intent"
        body = self._front.store.get(kind, request.match_info["id"])
        if body is None:
            raise web.HTTPNotFound
        page = pages.render_authentication(body)
        return web.Response(text=page, content_type="text/html")

    async def authentication_form(self, request: web.Request) -> web.StreamResponse:
        form = await request.post()
        self._authenticate(request.match_info["id"], form.get("outcome") == "succeed")
        target = form.get("return_url")
        if isinstance(target, str) and target.startswith(("http://", "https://")):
            raise web.HTTPSeeOther(target)
        return web.Response(text="Done. You can close this page.")


def _charge(body: Json) -> Json:
    return {
        "id": body["id"],
        "amount": body["amount"],
        "currency": body["currency"],
        "status": body["status"],
        "captured": body["captured"],
        "refunded": body["_sent_back"],
        "idempotency_key": body["_key"],
        "amount_captured": body["amount_captured"],
        "payment_intent": body["payment_intent"],
        "payment_method": body["payment_method"],
        "customer": body["customer"],
        "disputed": body["disputed"],
        "failure_code": body["outcome"]["reason"],
        "metadata": body["metadata"],
        "created": body["created"],
    }


async def _json_body(request: web.Request) -> dict[str, Any]:
    text = await request.text()
    if not text.strip():
        return {}
    try:
        options = json.loads(text)
    except json.JSONDecodeError as wrong:
        raise StripeError(400, "The body must be JSON.") from wrong
    if not isinstance(options, dict):
        raise StripeError(400, "The body must be a JSON object.")
    return options


@web.middleware
async def error_middleware(request: web.Request, handler: Callable[[web.Request], Any]) -> web.StreamResponse:
    """Sandbox routes refuse in the same shape as the API."""
    try:
        response: web.StreamResponse = await handler(request)
    except StripeError as error:
        return web.json_response(error.body(), status=error.status)
    return response
