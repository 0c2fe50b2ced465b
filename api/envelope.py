"""The one shape of every answer, and how it becomes bytes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Generic, Literal, TypeVar

import orjson
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, PlainSerializer

T = TypeVar("T")


def instant_text(at: datetime) -> str:
    """RFC 3339 in UTC: ``2026-01-15T10:30:00Z``, with microseconds where there are any."""
    return at.astimezone(UTC).isoformat().replace("+00:00", "Z")


Instant = Annotated[datetime, PlainSerializer(instant_text, return_type=str, when_used="json")]
"""A field that answers RFC 3339 UTC whatever the zone of its value."""


def now() -> datetime:
    return datetime.now(UTC)


class Schema(BaseModel):
    """What the API answers. Build it by keyword or from a row's attributes."""

    model_config = ConfigDict(from_attributes=True, frozen=True)


class Body(BaseModel):
    """What the API is sent. Unknown fields are ignored: none of them can reach a column."""

    model_config = ConfigDict(frozen=True, extra="ignore", str_max_length=10_000)


class Amount(Schema):
    """``{"amount_minor": 1500, "currency": "USD"}`` is 15 dollars."""

    amount_minor: int = Field(examples=[1500])
    currency: str = Field(examples=["USD"])


class Envelope(Schema, Generic[T]):
    success: Literal[True] = True
    data: T
    message: str = "OK"
    timestamp: Instant = Field(default_factory=now, examples=["2026-01-15T10:30:00Z"])


class Meta(Schema):
    """``next_cursor`` is null on the last page."""

    next_cursor: str | None
    limit: int
    total: int | None = None


class Page(Envelope[list[T | dict[str, Any]]], Generic[T]):
    """``data`` holds whole items, or with ``fields=`` objects that have these members only."""

    meta: Meta


class ErrorBody(Schema):
    code: str = Field(examples=["VALIDATION_ERROR"])
    message: str
    details: dict[str, Any] = {}


class ErrorEnvelope(Schema):
    success: Literal[False] = False
    error: ErrorBody
    timestamp: Instant = Field(default_factory=now, examples=["2026-01-15T10:30:00Z"])
    request_id: str


class Json(JSONResponse):
    """Rendered by orjson; models are dumped first."""

    def render(self, content: Any) -> bytes:
        try:
            return orjson.dumps(content, default=_plain, option=orjson.OPT_PASSTHROUGH_DATETIME)
        except orjson.JSONEncodeError:
            # Whole numbers beyond 64 bits, which stored JSON documents may hold; slower, but it writes them.
            return json.dumps(content, default=_plain, ensure_ascii=False, separators=(",", ":")).encode()


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, datetime):
        return instant_text(value)
    raise TypeError(type(value).__name__)


def ok(data: T, message: str = "OK") -> Envelope[T]:
    return Envelope(data=data, message=message)


def answer(data: Any, *, status: int = 200, message: str = "OK", headers: Mapping[str, str] | None = None) -> Json:
    """A whole response, for routes whose status is decided while they run."""
    content = {"success": True, "data": data, "message": message, "timestamp": instant_text(now())}
    return Json(content, status_code=status, headers=headers)


def error_content(code: str, message: str, details: Mapping[str, Any], request_id: str) -> dict[str, Any]:
    return {
        "success": False,
        "error": {"code": code, "message": message, "details": dict(details)},
        "timestamp": instant_text(now()),
        "request_id": request_id,
    }


def listed(items: Sequence[BaseModel], meta: Meta, fields: frozenset[str] | None = None) -> Json:
    """A list's answer; ``fields`` keeps only these members of each item (and always ``id``, where there is one)."""
    dumped: list[Any] = [item.model_dump(mode="json") for item in items]
    if fields is not None:
        kept = fields | {"id"}
        dumped = [{name: value for name, value in item.items() if name in kept} for item in dumped]
    content = {
        "success": True,
        "data": dumped,
        "message": "OK",
        "timestamp": instant_text(now()),
        "meta": meta.model_dump(mode="json"),
    }
    return Json(content)
