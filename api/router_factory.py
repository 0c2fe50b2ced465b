"""Routers with the path prefix, response class and operation ids of the API."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Path
from fastapi.params import Depends
from fastapi.routing import APIRoute

from api.response_envelope import JsonResponse

PREFIX = "/api/v1"

PathId = Annotated[str, Path(max_length=100)]
"""The id, code or slug of an object in the path of a route."""


def api_router(
    tag: str,
    *,
    prefix: str = "",
    base_path: str = PREFIX,
    dependencies: Sequence[Depends] = (),
    responses: Mapping[int | str, dict[str, Any]] | None = None,
) -> APIRouter:
    """Return a router whose routes have their full path; ``routers.all_routes`` adds them to the application.

    Included routers would be searched level by level for every request.
    """
    return APIRouter(
        prefix=f"{base_path}{prefix}",
        tags=[tag],
        dependencies=list(dependencies),
        responses=dict(responses or {}),
        default_response_class=JsonResponse,
        generate_unique_id_function=_operation_id,
    )


def _operation_id(route: APIRoute) -> str:
    return f"{route.tags[0]}_{route.name}" if route.tags else route.name
