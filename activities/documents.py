"""Implements ``workflows/ports/notifications.py`` (``Documents``): invoices as PDF, kept in the database."""

from __future__ import annotations

import asyncio

from temporalio import activity
from temporalio.exceptions import ApplicationError

from activities.invoice_page import invoice_pdf
from db.queries import documents
from db.queries.documents import InvoiceFacts, StoredDocument
from db.session import Sessions
from workflows.ports.notifications import Documents, RenderedInvoice, RenderInvoice
from workflows.rules.errors import Refusal


class DocumentActivities(Documents):
    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

    @activity.defn(name="documents.render_invoice")
    async def render_invoice(self, command: RenderInvoice) -> RenderedInvoice:
        found = await self.invoice(command.invoice_id, command.organization_id)
        if found is None:
            raise ApplicationError("No such invoice.", type=Refusal.NOT_FOUND, non_retryable=True)
        _, stored = found
        return RenderedInvoice(document_id=stored.id, content_sha256=stored.content_sha256)

    async def invoice(
        self, invoice_id: str, organization_id: str | None = None
    ) -> tuple[InvoiceFacts, StoredDocument] | None:
        """Return a finalised invoice with its PDF, rendered now if none shows it as it stands."""
        async with self._sessions() as session:
            facts = await documents.load_invoice(session, invoice_id, organization_id)
            stored = await documents.find_invoice_pdf(session, invoice_id) if facts is not None else None
        if facts is None:
            return None
        if stored is None:
            content = await asyncio.to_thread(invoice_pdf, facts)
            async with self._sessions.begin() as session:
                stored = await documents.keep(
                    session,
                    organization_id=facts.organization_id,
                    kind=documents.INVOICE_PDF,
                    ref=facts.id,
                    version=facts.status,
                    content=content,
                )
        return facts, stored
