"""The HTTP side: the mails as JSON, the pages, the faults."""

from __future__ import annotations

import json
from typing import Any

from aiohttp import web

from deploy.local.mailbox import pages
from deploy.local.mailbox.smtp import FaultInjector
from deploy.local.mailbox.store import Mail, MailStore

_PAGE_POLICY = "default-src 'none'; style-src 'unsafe-inline'; frame-src 'self'; form-action 'self'; base-uri 'none'"
# A mail is untrusted content: no scripts, no forms and an opaque origin, also when it is opened directly.
_MAIL_POLICY = (
    "sandbox allow-popups allow-popups-to-escape-sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:"
)


class MailboxApi:
    def __init__(self, store: MailStore, faults: FaultInjector) -> None:
        self._store = store
        self._faults = faults

    def application(self) -> web.Application:
        app = web.Application(client_max_size=1 << 16)
        app.add_routes(
            [
                web.get("/health", self.health),
                web.get("/messages", self.messages),
                web.delete("/messages", self.clear),
                web.get("/messages/{id}", self.message),
                web.get("/messages/{id}/raw", self.raw),
                web.get("/", self.page),
                web.get("/mail/{id}", self.mail),
                web.get("/mail/{id}/html", self.html),
                web.get("/sandbox/faults", self.list_faults),
                web.post("/sandbox/faults", self.add_fault),
                web.delete("/sandbox/faults", self.clear_faults),
            ]
        )
        return app

    async def health(self, request: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def messages(self, request: web.Request) -> web.Response:
        """Oldest first; `?to=` chooses one recipient."""
        return web.json_response([mail.to_json() for mail in self._store.all(_recipient_filter(request))])

    async def clear(self, request: web.Request) -> web.Response:
        return web.json_response({"deleted": self._store.clear()})

    async def message(self, request: web.Request) -> web.Response:
        """One mail with its `headers` as [name, value] pairs in order."""
        mail = self._mail_or_404(request)
        return web.json_response({**mail.to_json(), "headers": self._store.headers(mail.id)})

    async def raw(self, request: web.Request) -> web.Response:
        return web.Response(body=self._store.raw(self._mail_or_404(request).id), content_type="text/plain")

    async def page(self, request: web.Request) -> web.Response:
        to = _recipient_filter(request)
        return _html(pages.render_mail_list(self._store.all(to), to), _PAGE_POLICY)

    async def mail(self, request: web.Request) -> web.Response:
        mail = self._mail_or_404(request)
        return _html(pages.render_mail(mail, self._store.headers(mail.id) or []), _PAGE_POLICY)

    async def html(self, request: web.Request) -> web.Response:
        return _html('<base target="_blank">' + self._mail_or_404(request).html, _MAIL_POLICY)

    def _mail_or_404(self, request: web.Request) -> Mail:
        mail = self._store.get(request.match_info["id"])
        if mail is None:
            raise web.HTTPNotFound
        return mail

    async def list_faults(self, request: web.Request) -> web.Response:
        return web.json_response({"faults": [fault.to_json() for fault in self._faults.active()]})

    async def add_fault(self, request: web.Request) -> web.Response:
        try:
            body: Any = json.loads(await request.text())
            if not isinstance(body, dict):
                raise ValueError("the body must be a JSON object")
            fault = self._faults.add(body)
        except ValueError as wrong:
            return web.json_response({"error": str(wrong)}, status=400)
        return web.json_response(fault.to_json(), status=201)

    async def clear_faults(self, request: web.Request) -> web.Response:
        self._faults.clear()
        return await self.list_faults(request)


def _recipient_filter(request: web.Request) -> str | None:
    # An address has no space: it is the plus sign of name+tag@… that the caller did not encode.
    return request.query.get("to", "").strip().replace(" ", "+") or None


def _html(text: str, policy: str) -> web.Response:
    headers = {"Content-Security-Policy": policy, "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
    return web.Response(text=text, content_type="text/html", headers=headers)
