"""The envelope of every response, and its JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Generic, Literal, TypeVar

from fastapi.responses import JSONResponse
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import to_json
from typing_extensions import TypedDict  # Pydantic refuses `typing.TypedDict` before Python 3.12.

T = TypeVar("T")


def format_instant(at: datetime) -> str:
    """RFC 3339 in UTC: ``2026-01-15T10:30:00Z``, with microseconds where there are any."""
    return at.astimezone(UTC).isoformat().replace("+00:00", "Z")


def to_utc(at: datetime) -> datetime:
    """Return the same instant in UTC; one without a zone is returned as it is."""
    return at.astimezone(UTC) if at.utcoffset() else at


Instant = Annotated[datetime, AfterValidator(to_utc)]
"""A field that is returned in UTC whatever the zone of its value.

Pydantic itself writes it like ``format_instant``: a serializer in Python would be called for every instant of a list.
"""


def now() -> datetime:
    return datetime.now(UTC)


class ResponseModel(BaseModel):
    """What the API answers. Build it by keyword or from a row's attributes.

    What is read most is a ``TypedDict`` instead: made from rows of our own queries, it needs no second validation
    (most of a list's time). Its instants are returned as they are: they have to be in UTC, as the API's
    connections return them (``to_utc`` for any other).
    """

    model_config = ConfigDict(from_attributes=True, frozen=True)


class RequestModel(BaseModel):
    """What the API is sent. An unknown field is refused: a misspelled one would silently change an order."""

    model_config = ConfigDict(frozen=True, extra="forbid", str_max_length=10_000)


class Amount(TypedDict):
    """``{"amount_minor": 1500, "currency": "USD"}`` is 15 dollars."""

    amount_minor: Annotated[int, Field(examples=[1500])]
    currency: Annotated[str, Field(examples=["USD"])]


class Envelope(ResponseModel, Generic[T]):
    success: Literal[True] = True
    data: T
    message: str = "OK"
    timestamp: Instant = Field(default_factory=now, examples=["2026-01-15T10:30:00Z"])


class Meta(ResponseModel):
    """``next_cursor`` is null on the last page."""

    next_cursor: str | None
    limit: int
    total: int | None = None


class Page(Envelope[list[T | dict[str, Any]]], Generic[T]):
    """``data`` holds whole items, or with ``fields=`` objects that have these members only."""

    meta: Meta


class ErrorBody(ResponseModel):
    code: str = Field(examples=["VALIDATION_ERROR"])
    message: str
    details: dict[str, Any] = {}


class ErrorEnvelope(ResponseModel):
    success: Literal[False] = False
    error: ErrorBody
    timestamp: Instant = Field(default_factory=now, examples=["2026-01-15T10:30:00Z"])
    request_id: str


class JsonResponse(JSONResponse):
    """JSON that is serialized once, models included.

    ``is_final`` False: a retry under the same Idempotency-Key does the work again instead of returning this response.
    """

    is_final = True

    def render(self, content: Any) -> bytes:
        return to_json(content, inf_nan_mode="null")


def success(
    data: BaseModel | Mapping[str, Any] | None, message: str = "OK", *, status: int = 200, is_final: bool = True
) -> JsonResponse:
    """Return the response for ``data``. FastAPI neither validates nor serializes it again."""
    content = {"success": True, "data": data, "message": message, "timestamp": format_instant(now())}
    response = JsonResponse(content, status_code=status)
    response.is_final = is_final
    return response


def error_envelope(code: str, message: str, details: Mapping[str, Any], request_id: str) -> dict[str, Any]:
    return {
        "success": False,
        "error": {"code": code, "message": message, "details": dict(details)},
        "timestamp": format_instant(now()),
        "request_id": request_id,
    }


def list_response(
    items: Sequence[BaseModel | Mapping[str, Any]], meta: Meta, fields: frozenset[str] | None = None
) -> JsonResponse:
    """Return the response for a page of a list.

    Args:
        fields: The members to return of each item, in addition to ``id``; None for all.
    """
    data: Sequence[Any] = items
    if fields is not None:
        included = {*fields, "id"}
        data = [_select_members(item, included) for item in items]
    content = {"success": True, "data": data, "message": "OK", "timestamp": format_instant(now()), "meta": meta}
    return JsonResponse(content)


def _select_members(item: BaseModel | Mapping[str, Any], included: set[str]) -> Mapping[str, Any]:
    if isinstance(item, BaseModel):
        return item.model_dump(mode="json", include=included)
    return {name: value for name, value in item.items() if name in included}
