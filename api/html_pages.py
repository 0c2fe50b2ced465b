"""Small pages for people who follow a mailed link. Templates are data; everything put into them is escaped."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import HTMLResponse

from api.errors import ApiError, forbidden_error

TEMPLATES = Path(__file__).resolve().parents[1] / "templates" / "pages"
FORM = "application/x-www-form-urlencoded"


@cache
def _environment() -> Environment:
    return Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined)


def render_page(name: str, *, status: int = 200, **values: Any) -> HTMLResponse:
    return HTMLResponse(_environment().get_template(f"{name}.html").render(**values), status_code=status)


async def parse_form(request: Request) -> dict[str, str]:
    """The first value of each field.

    Raises:
        ApiError: 403 when another site sent it, 400 when it is not a form.
    """
    if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        raise forbidden_error("Cross-site form submission rejected.")
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != FORM:
        raise ApiError(400, "MALFORMED_REQUEST", "Expected application/x-www-form-urlencoded.")
    try:
        fields = parse_qs((await request.body()).decode("utf-8"), errors="strict", max_num_fields=20)
    except ValueError as error:
        raise ApiError(400, "MALFORMED_REQUEST", "Expected application/x-www-form-urlencoded.") from error
    return {name: values[0] for name, values in fields.items()}
