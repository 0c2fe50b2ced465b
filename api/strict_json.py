"""What a body may be before any route sees it: small enough, and JSON that means one thing only."""

from __future__ import annotations

import asyncio
import json
from typing import Any, NoReturn

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.errors import ApiError, error_response

MAX_DEPTH = 32
MAX_NUMBER_DIGITS = 40
DRAIN_BYTES = 32 * 1024 * 1024
DRAIN_SECONDS = 3.0


class MalformedJson(Exception):
    """Not JSON as RFC 8259 and I-JSON want it; the message is for the caller."""


def parse_strict_json(body: bytes) -> Any:
    """Read strict JSON: UTF-8, no key twice, no NaN, at most ``MAX_DEPTH`` levels, no character that text cannot hold.

    Raises:
        MalformedJson: with the reason.
    """
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise MalformedJson("The body is not UTF-8.") from error
    try:
        value = json.loads(
            text,
            object_pairs_hook=_reject_duplicate_keys,
            parse_constant=_reject_constant,
            parse_int=_parse_integer,
            parse_float=_parse_number,
        )
    except RecursionError as error:
        raise MalformedJson("The body is nested too deeply.") from error
    except ValueError as error:
        raise MalformedJson("The body is not valid JSON.") from error
    _check_depth_and_text(value)
    return value


def _reject_duplicate_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise MalformedJson("The body contains a duplicate key.")
    return members


def _reject_constant(name: str) -> NoReturn:
    raise MalformedJson(f"{name} is not a valid JSON value (RFC 8259).")


def _parse_integer(digits: str) -> int:
    if len(digits) > MAX_NUMBER_DIGITS:
        raise MalformedJson(f"A number in the body has more than {MAX_NUMBER_DIGITS} digits.")
    return int(digits)


def _parse_number(digits: str) -> float:
    if len(digits) > MAX_NUMBER_DIGITS:
        raise MalformedJson(f"A number in the body has more than {MAX_NUMBER_DIGITS} digits.")
    value = float(digits)
    if value in (float("inf"), float("-inf")):
        raise MalformedJson("A number in the body is out of range.")
    return value


def _check_depth_and_text(value: Any) -> None:
    current, depth = [value], 0
    while current:
        depth += 1
        if depth > MAX_DEPTH:
            raise MalformedJson("The body is nested too deeply.")
        next_level: list[Any] = []
        for item in current:
            if isinstance(item, str):
                _require_storable_text(item)
            elif isinstance(item, dict):
                for key in item:
                    _require_storable_text(key)
                next_level.extend(item.values())
            elif isinstance(item, list):
                next_level.extend(item)
        current = next_level


def _require_storable_text(text: str) -> None:
    if "\x00" in text:
        raise MalformedJson("The body contains a NUL character (U+0000).")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise MalformedJson("The body contains an unpaired surrogate.") from error


class StrictJsonMiddleware:
    """Reads the body once, refuses what is too large (413) or malformed (400), and hands the same bytes on."""

    def __init__(self, app: ASGIApp, *, limit: int) -> None:
        self._app = app
        self._limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            _check_url(scope)
            body = await self._read(scope, receive)
        except ApiError as error:
            await error_response(error, scope["state"]["request_id"])(scope, receive, send)
            return
        if body is None:
            await self._app(scope, receive, send)
            return
        sent = False

        async def replay() -> Message:
            nonlocal sent
            if sent:
                return await receive()
            sent = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, replay, send)

    async def _read(self, scope: Scope, receive: Receive) -> bytes | None:
        headers = Headers(scope=scope)
        length = headers.get("content-length")
        if length is None and "transfer-encoding" not in headers and scope["method"] in ("GET", "HEAD", "OPTIONS"):
            return None
        if length is not None and length.isdigit() and int(length) > self._limit:
            await _drain(receive, int(length))
            raise self._too_large_error()
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ApiError(400, "MALFORMED_REQUEST", "The request body ended before Content-Length.")
            body += message.get("body", b"")
            if len(body) > self._limit:
                await _drain(receive, DRAIN_BYTES if message.get("more_body") else 0)
                raise self._too_large_error()
            if not message.get("more_body"):
                break
        if body and _is_json(headers.get("content-type", "")):
            try:
                parse_strict_json(bytes(body))
            except MalformedJson as error:
                raise ApiError(400, "MALFORMED_REQUEST", str(error)) from error
        return bytes(body)

    def _too_large_error(self) -> ApiError:
        return ApiError(
            413,
            "PAYLOAD_TOO_LARGE",
            f"The request body exceeds {self._limit} bytes.",
            {"limit": self._limit},
            {"Connection": "close"},
        )


def _is_json(content_type: str) -> bool:
    kind = content_type.partition(";")[0].strip().lower()
    return kind == "application/json" or kind.endswith("+json")


def _check_url(scope: Scope) -> None:
    if "\x00" in scope["path"] or b"%00" in scope["query_string"] or b"\x00" in scope["query_string"]:
        raise ApiError(400, "MALFORMED_REQUEST", "The URL contains a NUL character.")


async def _drain(receive: Receive, at_most: int) -> None:
    """Read on for a moment: a client that is still sending would otherwise see a reset instead of the answer."""
    remaining = min(at_most, DRAIN_BYTES)
    try:
        async with asyncio.timeout(DRAIN_SECONDS):
            while remaining > 0:
                message = await receive()
                remaining -= len(message.get("body", b""))
                if message["type"] == "http.disconnect" or not message.get("more_body"):
                    return
    except TimeoutError:
        return
