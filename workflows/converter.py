"""Commands and outcomes as JSON: written by orjson, read back by validators that are built once per type.

The SDK's converter looks up a dataclass's type hints again for every payload, which takes a millisecond for the command
of a renewal. Both converters read each other's JSON.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import orjson
from pydantic import TypeAdapter
from temporalio.api.common.v1 import Payload
from temporalio.converter import (
    CompositePayloadConverter,
    DefaultPayloadConverter,
    EncodingPayloadConverter,
    JSONPlainPayloadConverter,
)


@lru_cache(maxsize=512)
def _type_adapter(type_hint: Any) -> TypeAdapter[Any]:
    return TypeAdapter(type_hint)


class OrjsonPayloadConverter(EncodingPayloadConverter):
    """``json/plain``, like the SDK's."""

    @property
    def encoding(self) -> str:
        return "json/plain"

    def to_payload(self, value: Any) -> Payload:
        return Payload(metadata={"encoding": b"json/plain"}, data=orjson.dumps(value))

    def from_payload(self, payload: Payload, type_hint: Any = None) -> Any:
        if type_hint is None or type_hint is Any:
            return orjson.loads(payload.data)
        return _type_adapter(type_hint).validate_json(payload.data)


class PayloadConverter(CompositePayloadConverter):
    def __init__(self) -> None:
        converters = (
            OrjsonPayloadConverter() if isinstance(converter, JSONPlainPayloadConverter) else converter
            for converter in DefaultPayloadConverter.default_encoding_payload_converters
        )
        super().__init__(*converters)
