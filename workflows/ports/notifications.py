"""What the dispatcher asks for, and what a document is rendered from. Implemented in ``activities/``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from temporalio import activity


@dataclass(frozen=True, slots=True, kw_only=True)
class DispatchInput:
    """Start input of ``NotificationDispatch``: one per channel. ``consecutive_outages`` survives continue-as-new."""

    channel: str
    consecutive_outages: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainOutbox:
    """Send what is due and what becomes due within ``duration_seconds``."""

    channel: str
    duration_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainOutcome:
    """``server_unavailable``: the receiving server could not be reached, and what was claimed has been given back."""

    sent: int
    failures: int
    server_unavailable: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderInvoice:
    """Start input of the workflow ``InvoiceRendering``."""

    invoice_id: str
    organization_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderedDocument:
    """``content_sha256`` (hexadecimal) names the stored bytes."""

    document_id: str
    content_sha256: str


class NotificationActivities(Protocol):
    @activity.defn(name="notifications.drain_outbox")
    async def drain_outbox(self, command: DrainOutbox) -> DrainOutcome:
        """Claim, compose, send and record notices until ``duration_seconds`` are over or the worker shuts down.

        Several may run at once: each notice is claimed by one of them, and claims of the dead lapse. Heartbeats.
        """
        ...


class DocumentActivities(Protocol):
    @activity.defn(name="documents.render_invoice")
    async def render_invoice(self, command: RenderInvoice) -> RenderedDocument:
        """Render a finalized invoice and store it; a repetition returns the same document.

        Refuses: ``NOT_FOUND`` for an unknown invoice, another account's, or a draft.
        """
        ...
