"""What a body may be before any route sees it: small enough, and JSON that means one thing only."""

from __future__ import annotations

import asyncio
import json
from typing import Any, NoReturn

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.errors import ApiError, response

DEEPEST = 32
LONGEST_NUMBER = 40
DRAIN_BYTES = 32 * 1024 * 1024
DRAIN_SECONDS = 3.0


class Malformed(Exception):
    """Not JSON as RFC 8259 and I-JSON want it; the message is for the caller."""


def parse(body: bytes) -> Any:
    """Read strict JSON: UTF-8, no key twice, no NaN, at most ``DEEPEST`` levels, no character that text cannot hold.

    Raises:
        Malformed: with the reason.
    """
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Malformed("The body is not UTF-8.") from error
    try:
        value = json.loads(
            text, object_pairs_hook=_unique, parse_constant=_no_constant, parse_int=_integer, parse_float=_number
        )
    except RecursionError as error:
        raise Malformed("The body is nested too deeply.") from error
    except ValueError as error:
        raise Malformed("The body is not valid JSON.") from error
    _inspect(value)
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise Malformed("The body names a key twice.")
    return found


def _no_constant(name: str) -> NoReturn:
    raise Malformed(f"{name} is not JSON.")


def _integer(digits: str) -> int:
    if len(digits) > LONGEST_NUMBER:
        raise Malformed("The body holds a number that is too long.")
    return int(digits)


def _number(digits: str) -> float:
    if len(digits) > LONGEST_NUMBER:
        raise Malformed("The body holds a number that is too long.")
    value = float(digits)
    if value in (float("inf"), float("-inf")):
        raise Malformed("The body holds a number that is too large.")
    return value


def _inspect(value: Any) -> None:
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > DEEPEST:
            raise Malformed("The body is nested too deeply.")
        below: list[Any] = []
        for item in level:
            if isinstance(item, str):
                _storable(item)
            elif isinstance(item, dict):
                for key in item:
                    _storable(key)
                below.extend(item.values())
            elif isinstance(item, list):
                below.extend(item)
        level = below


def _storable(text: str) -> None:
    if "\x00" in text:
        raise Malformed("The body holds a NUL character.")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise Malformed("The body holds half of a surrogate pair.") from error


class Bodies:
    """Reads the body once, refuses what is too large (413) or malformed (400), and hands the same bytes on."""

    def __init__(self, app: ASGIApp, *, limit: int) -> None:
        self._app = app
        self._limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            _check_target(scope)
            body = await self._read(scope, receive)
        except ApiError as error:
            await response(error, scope["state"]["request_id"])(scope, receive, send)
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
            raise self._too_large()
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ApiError(400, "MALFORMED_REQUEST", "The body was cut short.")
            body += message.get("body", b"")
            if len(body) > self._limit:
                await _drain(receive, DRAIN_BYTES if message.get("more_body") else 0)
                raise self._too_large()
            if not message.get("more_body"):
                break
        if body and _is_json(headers.get("content-type", "")):
            try:
                parse(bytes(body))
            except Malformed as error:
                raise ApiError(400, "MALFORMED_REQUEST", str(error)) from error
        return bytes(body)

    def _too_large(self) -> ApiError:
        return ApiError(
            413,
            "PAYLOAD_TOO_LARGE",
            f"The body may have {self._limit} bytes.",
            {"limit": self._limit},
            {"Connection": "close"},
        )


def _is_json(content_type: str) -> bool:
    kind = content_type.partition(";")[0].strip().lower()
    return kind == "application/json" or kind.endswith("+json")


def _check_target(scope: Scope) -> None:
    if "\x00" in scope["path"] or b"%00" in scope["query_string"] or b"\x00" in scope["query_string"]:
        raise ApiError(400, "MALFORMED_REQUEST", "The address holds a NUL character.")


async def _drain(receive: Receive, at_most: int) -> None:
    """Read on for a moment: a client that is still sending would otherwise see a reset instead of the answer."""
    left = min(at_most, DRAIN_BYTES)
    try:
        async with asyncio.timeout(DRAIN_SECONDS):
            while left > 0:
                message = await receive()
                left -= len(message.get("body", b""))
                if message["type"] == "http.disconnect" or not message.get("more_body"):
                    return
    except TimeoutError:
        return
