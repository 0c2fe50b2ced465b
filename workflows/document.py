"""Renders an invoice that somebody wants to see before its receipt was mailed."""

from __future__ import annotations

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from workflows import names, policies
    from workflows.ports.notifications import Documents, RenderedInvoice, RenderInvoice


@workflow.defn(name=names.INVOICE_DOCUMENT)
class InvoiceDocument:
    @workflow.run
    async def run(self, order: RenderInvoice) -> RenderedInvoice:
        return await workflow.execute_activity_method(
            Documents.render_invoice, order, task_queue=names.NOTICES, **policies.RENDER
        )
