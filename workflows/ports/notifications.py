"""What the dispatcher asks for, and what a document is rendered from. Implemented in ``activities/``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from temporalio import activity


@dataclass(frozen=True, slots=True, kw_only=True)
class Dispatch:
    """Start input of ``NotificationDispatch``: one per channel. ``away`` survives continue-as-new."""

    channel: str
    away: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Drain:
    """Send what is due and what becomes due within ``seconds``."""

    channel: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Drained:
    """``away``: the receiving server could not be reached, and what was claimed has been given back."""

    sent: int
    setbacks: int
    away: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderInvoice:
    """Start input of ``InvoiceDocument``."""

    invoice_id: str
    organization_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderedInvoice:
    """``content_sha256`` (hexadecimal) names the stored bytes."""

    document_id: str
    content_sha256: str


class Notifications(Protocol):
    @activity.defn(name="notifications.drain")
    async def drain(self, command: Drain) -> Drained:
        """Claim, compose, send and record notices until ``seconds`` are over or the worker shuts down.

        Several may run at once: each notice is claimed by one of them, and claims of the dead lapse. Heartbeats.
        """
        ...


class Documents(Protocol):
    @activity.defn(name="documents.render_invoice")
    async def render_invoice(self, command: RenderInvoice) -> RenderedInvoice:
        """Render a finalised invoice and keep it; again gives the same document.

        Refuses: ``NOT_FOUND`` for an unknown invoice, another account's, or a draft.
        """
        ...
