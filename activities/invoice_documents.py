"""Renders invoices as PDF and stores them in the database."""

from __future__ import annotations

import asyncio

from temporalio import activity
from temporalio.exceptions import ApplicationError

from activities.invoice_pdf import render_invoice_pdf
from activities.rule_errors import converts_rule_violations
from db.queries import invoice_documents
from db.queries.invoice_documents import InvoiceDocumentData, StoredDocument
from db.session import SessionFactory
from workflows.ports.notifications import DocumentActivities, RenderedDocument, RenderInvoice
from workflows.rules.errors import ErrorCode


class PdfDocumentActivities(DocumentActivities):
    def __init__(self, sessions: SessionFactory) -> None:
        self._sessions = sessions

    @activity.defn(name="documents.render_invoice")
    @converts_rule_violations
    async def render_invoice(self, command: RenderInvoice) -> RenderedDocument:
        document = await self.get_or_render_invoice_pdf(command.invoice_id, command.organization_id)
        if document is None:
            raise ApplicationError("No such invoice.", type=ErrorCode.NOT_FOUND, non_retryable=True)
        _, stored = document
        return RenderedDocument(document_id=stored.id, content_sha256=stored.content_sha256)

    async def get_or_render_invoice_pdf(
        self, invoice_id: str, organization_id: str | None = None
    ) -> tuple[InvoiceDocumentData, StoredDocument] | None:
        """Return a finalized invoice with its PDF, which is rendered unless a stored one shows the current status.

        Returns:
            None if there is no such finalized invoice.
        """
        async with self._sessions() as session:
            facts = await invoice_documents.load_invoice_document_data(session, invoice_id, organization_id)
            stored = await invoice_documents.find_invoice_pdf(session, invoice_id) if facts is not None else None
        if facts is None:
            return None
        if stored is None:
            content = await asyncio.to_thread(render_invoice_pdf, facts)
            async with self._sessions.begin() as session:
                stored = await invoice_documents.upsert_document(
                    session,
                    organization_id=facts.organization_id,
                    kind=invoice_documents.INVOICE_PDF,
                    subject_id=facts.id,
                    subject_status=facts.status,
                    content=content,
                )
        return facts, stored
