"""Renders an invoice as PDF. The same data always gives the same bytes."""

from __future__ import annotations

import io
import unicodedata
from collections.abc import Sequence
from functools import partial
from typing import Any
from xml.sax.saxutils import escape

from reportlab.lib import colors
from reportlab.lib.enums import TA_RIGHT
from reportlab.lib.pagesizes import A4
from reportlab.lib.styles import ParagraphStyle
from reportlab.lib.units import mm
from reportlab.pdfbase import pdfmetrics
from reportlab.pdfbase.cidfonts import UnicodeCIDFont
from reportlab.pdfgen.canvas import Canvas
from reportlab.platypus import Paragraph, SimpleDocTemplate, Spacer, Table, TableStyle

from activities import formatting
from db.queries.invoice_documents import InvoiceDocumentData, InvoiceLineData

INK, SOFT, RULE, ACCENT = (colors.HexColor(value) for value in ("#182235", "#5d6a82", "#dfe4ee", "#2f5fe3"))
REGULAR, BOLD = "Helvetica", "Helvetica-Bold"
STATUS_COLORS = {"paid": colors.HexColor("#1a9d6b"), "void": SOFT, "uncollectible": SOFT}

# Letters with a stroke, which Unicode does not decompose into a letter and a mark.
LETTERS_WITHOUT_DECOMPOSITION = dict(zip("ŁłĐđĦħıŦŧ", "LlDdHhiTt", strict=True))

MAX_TEXT_LENGTH = 300
"""Longer customer text is truncated: a table row that does not fit on a page cannot be rendered."""

# Fonts that every PDF viewer contains; those of ReportLab cover Latin alphabets only.
SCRIPT_FONTS = (
    ("HIRAGANA", "HeiseiKakuGo-W5"),
    ("KATAKANA", "HeiseiKakuGo-W5"),
    ("HANGUL", "HYGothic-Medium"),
    ("CJK", "STSong-Light"),
)


def _style(size: float, *, font: str = REGULAR, color: colors.Color = INK, right: bool = False) -> ParagraphStyle:
    return ParagraphStyle(
        f"{font}-{size}-{right}",
        fontName=font,
        fontSize=size,
        leading=size * 1.4,
        textColor=color,
        alignment=TA_RIGHT if right else 0,
    )


BODY, BODY_RIGHT = _style(9.5), _style(9.5, right=True)
SMALL, SMALL_RIGHT = _style(8, color=SOFT), _style(8, color=SOFT, right=True)
STRONG, STRONG_RIGHT = _style(10, font=BOLD), _style(10, font=BOLD, right=True)
TITLE, NAME = _style(20, font=BOLD), _style(13, font=BOLD, color=ACCENT)


def render_invoice_pdf(invoice: InvoiceDocumentData) -> bytes:
    """Return the invoice as PDF. Characters that no available font contains are approximated."""
    out = io.BytesIO()
    document = SimpleDocTemplate(
        out,
        pagesize=A4,
        leftMargin=22 * mm,
        rightMargin=22 * mm,
        topMargin=20 * mm,
        bottomMargin=22 * mm,
        title=f"Invoice {invoice.number}",
        author="Berth",
        invariant=1,
    )
    document.build(
        [
            _header(invoice, document.width),
            Spacer(0, 9 * mm),
            _parties(invoice, document.width),
            Spacer(0, 8 * mm),
            _lines(invoice, document.width),
            Spacer(0, 4 * mm),
            _totals(invoice, document.width),
        ],
        onFirstPage=partial(_footer, invoice),
        onLaterPages=partial(_footer, invoice),
        # Without the invariant canvas the bytes contain the time of rendering.
        canvasmaker=partial(Canvas, invariant=1),
    )
    return out.getvalue()


def _header(invoice: InvoiceDocumentData, width: float) -> Table:
    status = _style(11, font=BOLD, color=STATUS_COLORS.get(invoice.status, ACCENT), right=True)
    return _table(
        [[Paragraph("Berth", NAME), Paragraph(invoice.status.upper(), status)], [_paragraph("Invoice", TITLE), ""]],
        [width * 0.6, width * 0.4],
        [("BOTTOMPADDING", (0, 0), (-1, 0), 10)],
    )


def _parties(invoice: InvoiceDocumentData, width: float) -> Table:
    zone = formatting.timezone_or_utc(invoice.timezone)
    facts = [("Number", invoice.number)]
    if invoice.finalized_at is not None:
        facts.append(("Issued", formatting.format_date(invoice.finalized_at, zone)))
    facts.append(
        (
            "Period",
            " to ".join(formatting.format_date(end, zone) for end in (invoice.period_start, invoice.period_end)),
        )
    )
    if invoice.paid_at is not None:
        facts.append(("Paid", formatting.format_date(invoice.paid_at, zone)))
    if invoice.payment_summary is not None:
        facts.append(("Paid by", invoice.payment_summary))
    billed = [Paragraph("Billed to", SMALL), _paragraph(invoice.organization_name, STRONG)]
    if invoice.country:
        billed.append(_paragraph(invoice.country, BODY))
    if invoice.subscription_name:
        billed += [Spacer(0, 3 * mm), Paragraph("For", SMALL), _paragraph(invoice.subscription_name, BODY)]
    right = _table(
        [[Paragraph(label, SMALL), _paragraph(value, BODY_RIGHT)] for label, value in facts],
        [width * 0.12, width * 0.36],
        [("BOTTOMPADDING", (0, 0), (-1, -1), 2)],
    )
    return _table([[billed, right]], [width * 0.52, width * 0.48], [])


def _lines(invoice: InvoiceDocumentData, width: float) -> Table:
    heads = ("Description", "Quantity", "Unit price", "Amount")
    rows: list[list[Any]] = [[Paragraph(head, SMALL if head == heads[0] else SMALL_RIGHT) for head in heads]]
    rows += [_line(line, invoice) for line in invoice.lines]
    return _table(
        rows,
        [width * 0.52, width * 0.12, width * 0.18, width * 0.18],
        [
            ("LINEBELOW", (0, 0), (-1, 0), 0.8, INK),
            ("LINEBELOW", (0, 1), (-1, -1), 0.4, RULE),
            ("TOPPADDING", (0, 0), (-1, -1), 5),
            ("BOTTOMPADDING", (0, 0), (-1, -1), 5),
        ],
        repeat=1,
    )


def _line(line: InvoiceLineData, invoice: InvoiceDocumentData) -> list[Any]:
    zone = formatting.timezone_or_utc(invoice.timezone)
    details = [f"{formatting.format_date(line.period_start, zone)} to {formatting.format_date(line.period_end, zone)}"]
    if line.discount:
        details.append(f"discount {formatting.format_amount(line.discount)}")
    if line.tax:
        details.append(f"tax {formatting.format_amount(line.tax)}")
    return [
        [_paragraph(line.description, BODY), _paragraph(", ".join(details), SMALL)],
        Paragraph(str(line.quantity), BODY_RIGHT),
        _paragraph(formatting.format_amount(line.unit_price), BODY_RIGHT),
        _paragraph(formatting.format_amount(line.amount), BODY_RIGHT),
    ]


def _totals(invoice: InvoiceDocumentData, width: float) -> Table:
    rows = [("Subtotal", invoice.subtotal, BODY, BODY_RIGHT)]
    if invoice.tax:
        rows.append(("Tax", invoice.tax, BODY, BODY_RIGHT))
    total = len(rows)
    rows.append(("Total", invoice.total, STRONG, STRONG_RIGHT))
    if invoice.status == "open":
        rows.append(("Amount due", invoice.due, STRONG, STRONG_RIGHT))
    if invoice.debt_paid:
        rows.append(("Paid from earlier invoices", invoice.debt_paid, BODY, BODY_RIGHT))
    return _table(
        [
            ["", Paragraph(label, label_style), _paragraph(formatting.format_amount(amount), amount_style)]
            for label, amount, label_style, amount_style in rows
        ],
        [width * 0.52, width * 0.26, width * 0.22],
        [("LINEABOVE", (1, total), (-1, total), 0.8, INK), ("TOPPADDING", (0, 0), (-1, -1), 3)],
    )


def _footer(invoice: InvoiceDocumentData, canvas: Canvas, document: SimpleDocTemplate) -> None:
    canvas.setFont(REGULAR, 8)
    canvas.setFillColor(SOFT)
    canvas.drawString(document.leftMargin, 12 * mm, f"Invoice {invoice.number}")
    canvas.drawRightString(A4[0] - document.rightMargin, 12 * mm, f"Page {canvas.getPageNumber()}")


def _table(
    rows: Sequence[Sequence[Any]], widths: Sequence[float], style: Sequence[tuple[Any, ...]], *, repeat: int = 0
) -> Table:
    table = Table(rows, colWidths=list(widths), repeatRows=repeat)
    base = [
        ("VALIGN", (0, 0), (-1, -1), "TOP"),
        ("LEFTPADDING", (0, 0), (-1, -1), 0),
        ("RIGHTPADDING", (0, 0), (-1, -1), 0),
    ]
    table.setStyle(TableStyle([*base, *style]))
    return table


def _paragraph(text: str, style: ParagraphStyle) -> Paragraph:
    """Show customer text in the fonts that its scripts need. Markup in it is escaped."""
    line = " ".join(text.split())
    if len(line) > MAX_TEXT_LENGTH:
        line = f"{line[:MAX_TEXT_LENGTH]}…"
    return Paragraph("".join(_font_run(char) for char in line) or "&nbsp;", style)


def _font_run(char: str) -> str:
    if _is_latin(char):
        return escape(char)
    name = unicodedata.name(char, "")
    for script, font in SCRIPT_FONTS:
        if name.startswith(script):
            _register_font(font)
            return f'<font name="{font}">{escape(char)}</font>'
    plain = unicodedata.normalize("NFKD", LETTERS_WITHOUT_DECOMPOSITION.get(char, char))
    return escape("".join(piece for piece in plain if _is_latin(piece)) or "?")


def _is_latin(char: str) -> bool:
    """Return whether the built-in fonts contain ``char``: Windows-1252 without control characters."""
    try:
        char.encode("cp1252")
    except UnicodeEncodeError:
        return False
    return char.isprintable()


def _register_font(font: str) -> None:
    if font not in pdfmetrics.getRegisteredFontNames():
        pdfmetrics.registerFont(UnicodeCIDFont(font))
