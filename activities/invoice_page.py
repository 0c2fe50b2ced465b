"""An invoice as a page: the same facts always give the same bytes."""

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
from db.queries.documents import InvoiceFacts, InvoiceLineFacts
from workflows.rules.money import Money

INK, SOFT, RULE, ACCENT = (colors.HexColor(value) for value in ("#182235", "#5d6a82", "#dfe4ee", "#2f5fe3"))
REGULAR, BOLD = "Helvetica", "Helvetica-Bold"
STATUS_COLORS = {"paid": colors.HexColor("#1a9d6b"), "void": SOFT, "uncollectible": SOFT}

# Letters with a stroke, which Unicode does not take apart into a letter and a mark.
UNDIVIDED = dict(zip("ŁłĐđĦħıŦŧ", "LlDdHhiTt", strict=True))

LONGEST = 300
"""Of somebody's words. Longer ones would not fit on a page, and then there would be none."""

# Fonts that every PDF viewer brings itself; ReportLab's own cover Latin alphabets only.
SCRIPTS = (
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


def invoice_pdf(invoice: InvoiceFacts) -> bytes:
    """Return the invoice as PDF. Words in scripts that no available font shows are approximated, never refused."""
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
            _head(invoice, document.width),
            Spacer(0, 9 * mm),
            _parties(invoice, document.width),
            Spacer(0, 8 * mm),
            _lines(invoice, document.width),
            Spacer(0, 4 * mm),
            _totals(invoice, document.width),
        ],
        onFirstPage=partial(_foot, invoice),
        onLaterPages=partial(_foot, invoice),
        # Without the invariant canvas the bytes hold the hour of rendering.
        canvasmaker=partial(Canvas, invariant=1),
    )
    return out.getvalue()


def _head(invoice: InvoiceFacts, width: float) -> Table:
    status = _style(11, font=BOLD, color=STATUS_COLORS.get(invoice.status, ACCENT), right=True)
    return _table(
        [[Paragraph("Berth", NAME), Paragraph(invoice.status.upper(), status)], [_words("Invoice", TITLE), ""]],
        [width * 0.6, width * 0.4],
        [("BOTTOMPADDING", (0, 0), (-1, 0), 10)],
    )


def _parties(invoice: InvoiceFacts, width: float) -> Table:
    zone = formatting.zone(invoice.timezone)
    facts = [("Number", invoice.number)]
    if invoice.issued_at is not None:
        facts.append(("Issued", formatting.day(invoice.issued_at, zone)))
    facts.append(
        ("Period", f"{formatting.day(invoice.period_start, zone)} to {formatting.day(invoice.period_end, zone)}")
    )
    if invoice.paid_at is not None:
        facts.append(("Paid", formatting.day(invoice.paid_at, zone)))
    if invoice.paid_by is not None:
        facts.append(("Paid by", invoice.paid_by))
    billed = [Paragraph("Billed to", SMALL), _words(invoice.organization_name, STRONG)]
    if invoice.country:
        billed.append(_words(invoice.country, BODY))
    if invoice.subscription_name:
        billed += [Spacer(0, 3 * mm), Paragraph("For", SMALL), _words(invoice.subscription_name, BODY)]
    right = _table(
        [[Paragraph(label, SMALL), _words(value, BODY_RIGHT)] for label, value in facts],
        [width * 0.12, width * 0.36],
        [("BOTTOMPADDING", (0, 0), (-1, -1), 2)],
    )
    return _table([[billed, right]], [width * 0.52, width * 0.48], [])


def _lines(invoice: InvoiceFacts, width: float) -> Table:
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


def _line(line: InvoiceLineFacts, invoice: InvoiceFacts) -> list[Any]:
    zone = formatting.zone(invoice.timezone)
    told = [f"{formatting.day(line.period_start, zone)} to {formatting.day(line.period_end, zone)}"]
    if line.discount:
        told.append(f"discount {_plain(line.discount)}")
    if line.tax:
        told.append(f"tax {_plain(line.tax)}")
    return [
        [_words(line.description, BODY), _words(", ".join(told), SMALL)],
        Paragraph(str(line.quantity), BODY_RIGHT),
        _words(_plain(line.unit_price), BODY_RIGHT),
        _words(_plain(line.amount), BODY_RIGHT),
    ]


def _totals(invoice: InvoiceFacts, width: float) -> Table:
    rows = [("Subtotal", invoice.subtotal, BODY, BODY_RIGHT)]
    if invoice.tax:
        rows.append(("Tax", invoice.tax, BODY, BODY_RIGHT))
    total = len(rows)
    rows.append(("Total", invoice.total, STRONG, STRONG_RIGHT))
    if invoice.status == "open":
        rows.append(("Amount due", invoice.due, STRONG, STRONG_RIGHT))
    return _table(
        [["", Paragraph(label, left), _words(_plain(amount), right)] for label, amount, left, right in rows],
        [width * 0.52, width * 0.26, width * 0.22],
        [("LINEABOVE", (1, total), (-1, total), 0.8, INK), ("TOPPADDING", (0, 0), (-1, -1), 3)],
    )


def _foot(invoice: InvoiceFacts, canvas: Canvas, document: SimpleDocTemplate) -> None:
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


def _plain(amount: Money) -> str:
    return formatting.money(amount.amount_minor, amount.currency)


def _words(text: str, style: ParagraphStyle) -> Paragraph:
    """Show somebody's words in whatever fonts they need; markup in them is words as well."""
    line = " ".join(text.split())
    if len(line) > LONGEST:
        line = f"{line[:LONGEST]}…"
    return Paragraph("".join(_run(char) for char in line) or "&nbsp;", style)


def _run(char: str) -> str:
    if _is_latin(char):
        return escape(char)
    name = unicodedata.name(char, "")
    for script, font in SCRIPTS:
        if name.startswith(script):
            _ensure(font)
            return f'<font name="{font}">{escape(char)}</font>'
    plain = unicodedata.normalize("NFKD", UNDIVIDED.get(char, char))
    return escape("".join(piece for piece in plain if _is_latin(piece)) or "?")


def _is_latin(char: str) -> bool:
    """Whether the built-in fonts have it: what Windows-1252 has, but control characters."""
    try:
        char.encode("cp1252")
    except UnicodeEncodeError:
        return False
    return char.isprintable()


def _ensure(font: str) -> None:
    if font not in pdfmetrics.getRegisteredFontNames():
        pdfmetrics.registerFont(UnicodeCIDFont(font))
