"""The HTTP side: the mails as JSON, the pages, the faults."""

from __future__ import annotations

import json
from typing import Any

from aiohttp import web

from deploy.local.mailbox import pages
from deploy.local.mailbox.smtp import Faults
from deploy.local.mailbox.store import Mail, MailStore

_PAGE_POLICY = "default-src 'none'; style-src 'unsafe-inline'; frame-src 'self'; form-action 'self'; base-uri 'none'"
# A mail is a stranger's document: no script, no form, no origin, whoever opens it and however.
_MAIL_POLICY = (
    "sandbox allow-popups allow-popups-to-escape-sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:"
)


class Web:
    def __init__(self, store: MailStore, faults: Faults) -> None:
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
                web.post("/sandbox/faults", self.order_fault),
                web.delete("/sandbox/faults", self.clear_faults),
            ]
        )
        return app

    async def health(self, request: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def messages(self, request: web.Request) -> web.Response:
        """Oldest first; `?to=` chooses one recipient."""
        return web.json_response([mail.shown() for mail in self._store.all(_recipient(request))])

    async def clear(self, request: web.Request) -> web.Response:
        return web.json_response({"deleted": self._store.clear()})

    async def message(self, request: web.Request) -> web.Response:
        """One mail with its `headers` as [name, value] pairs in order."""
        mail = self._found(request)
        return web.json_response({**mail.shown(), "headers": self._store.headers(mail.id)})

    async def raw(self, request: web.Request) -> web.Response:
        return web.Response(body=self._store.raw(self._found(request).id), content_type="text/plain")

    async def page(self, request: web.Request) -> web.Response:
        to = _recipient(request)
        return _html(pages.mail_list(self._store.all(to), to), _PAGE_POLICY)

    async def mail(self, request: web.Request) -> web.Response:
        mail = self._found(request)
        return _html(pages.mail_page(mail, self._store.headers(mail.id) or []), _PAGE_POLICY)

    async def html(self, request: web.Request) -> web.Response:
        return _html('<base target="_blank">' + self._found(request).html, _MAIL_POLICY)

    def _found(self, request: web.Request) -> Mail:
        mail = self._store.get(request.match_info["id"])
        if mail is None:
            raise web.HTTPNotFound
        return mail

    async def list_faults(self, request: web.Request) -> web.Response:
        return web.json_response({"faults": [fault.shown() for fault in self._faults.live()]})

    async def order_fault(self, request: web.Request) -> web.Response:
        try:
            wish: Any = json.loads(await request.text())
            if not isinstance(wish, dict):
                raise ValueError("the body must be a JSON object")
            fault = self._faults.order(wish)
        except ValueError as wrong:
            return web.json_response({"error": str(wrong)}, status=400)
        return web.json_response(fault.shown(), status=201)

    async def clear_faults(self, request: web.Request) -> web.Response:
        self._faults.clear()
        return await self.list_faults(request)


def _recipient(request: web.Request) -> str | None:
    # An address has no space: it is the plus sign of name+tag@… that the caller did not encode.
    return request.query.get("to", "").strip().replace(" ", "+") or None


def _html(text: str, policy: str) -> web.Response:
    headers = {"Content-Security-Policy": policy, "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
    return web.Response(text=text, content_type="text/html", headers=headers)
