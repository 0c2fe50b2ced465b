"""How a family of routes is declared: its address under ``/api/v1``, and what all of its answers have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import APIRouter
from fastapi.params import Depends
from fastapi.routing import APIRoute

from api.envelope import Json

PREFIX = "/api/v1"


def family(
    tag: str,
    *,
    prefix: str = "",
    under: str = PREFIX,
    dependencies: Sequence[Depends] = (),
    responses: Mapping[int | str, dict[str, Any]] | None = None,
) -> APIRouter:
    """Return a router whose routes are complete: the application takes them as they are (``areas.routes``).

    Routers that are included in one another would be put together anew for every application and searched level by
    level for every request.
    """
    return APIRouter(
        prefix=f"{under}{prefix}",
        tags=[tag],
        dependencies=list(dependencies),
        responses=dict(responses or {}),
        default_response_class=Json,
        generate_unique_id_function=_operation_id,
    )


def _operation_id(route: APIRoute) -> str:
    return f"{route.tags[0]}_{route.name}" if route.tags else route.name
