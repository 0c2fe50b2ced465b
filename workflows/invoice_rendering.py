"""``InvoiceRendering``: renders an invoice that is requested before its receipt was mailed."""

from __future__ import annotations

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from workflows import names, policies
    from workflows.ports.notifications import DocumentActivities, RenderedDocument, RenderInvoice


@workflow.defn(name=names.INVOICE_RENDERING)
class InvoiceRendering:
    @workflow.run
    async def run(self, command: RenderInvoice) -> RenderedDocument:
        return await workflow.execute_activity_method(
            DocumentActivities.render_invoice, command, task_queue=names.NOTIFICATIONS_QUEUE, **policies.RENDER_DOCUMENT
        )
