"""Routers with the path prefix, response class and operation ids of the API."""

from __future__ import annotations

import inspect
import json
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request
from fastapi.dependencies.models import Dependant
from fastapi.dependencies.utils import get_parameterless_sub_dependant
from fastapi.exceptions import RequestValidationError
from fastapi.params import Depends
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import Scope

from api.pagination import parse_fields
from api.response_envelope import JsonResponse, Page

PREFIX = "/api/v1"
UNKNOWN = "extra_forbidden"
"""Pydantic's name of the fault of an unknown field."""

PathId = Annotated[str, Path(max_length=100)]
"""The id, code or slug of an object in the path of a route."""


class StrictRoute(APIRoute):
    """Refuses query parameters and bodies that the route does not declare, as its models refuse unknown fields.

    A misspelled filter would return everything, a misspelled option would be lost. A repeated parameter would lose
    all but one of its values; ``fields=`` with a misspelled name would return items without it.
    """

    query_names: frozenset[str]
    item_members: frozenset[str]
    """The members of an item of the route's list; empty for a route that returns no list."""
    constant_prefix: str

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        self.constant_prefix = self.path_format.partition("{")[0]
        self.query_names = frozenset(_query_names(self.dependant))
        self.item_members = _item_members(self.response_model)
        check = get_parameterless_sub_dependant(depends=Depends(reject_undeclared_input), path=self.path_format)
        # The last dependency: an unauthenticated caller learns nothing of a route.
        declared = replace(self.dependant, dependencies=[*self.dependant.dependencies, check])
        # Without a query and a body there is nothing to reject, and each optional parameter has its default. FastAPI
        # takes longer to find that out than most reads take.
        self.dependant = _without_optional_query(self.dependant)
        without_input = super().get_route_handler()
        self.dependant = declared
        with_input = super().get_route_handler()

        async def handle(request: Request) -> Response:
            return await (with_input if _has_input(request) else without_input)(request)

        return handle

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        # The routes are asked one after the other: to compare the beginning is cheaper than to match the pattern.
        if not scope.get("root_path") and not scope["path"].startswith(self.constant_prefix):
            return Match.NONE, {}
        return super().matches(scope)


def _without_optional_query(dependant: Dependant) -> Dependant:
    """Return the dependant without the query parameters whose default is that of the Python function."""
    assert dependant.call is not None
    parameters = inspect.signature(dependant.call).parameters
    return replace(
        dependant,
        query_params=[
            field
            for field in dependant.query_params
            if field.field_info.is_required() or parameters[field.name].default != field.field_info.default
        ],
        dependencies=[_without_optional_query(dependency) for dependency in dependant.dependencies],
    )


def _has_input(request: Request) -> bool:
    # A body without either of the headers does not exist in HTTP/1.1.
    headers = request.headers
    return bool(request.scope["query_string"]) or "content-length" in headers or "transfer-encoding" in headers


def _query_names(dependant: Dependant) -> Iterator[str]:
    for parameter in dependant.query_params:
        yield parameter.alias
    for dependency in dependant.dependencies:
        yield from _query_names(dependency)


def _item_members(response_model: Any) -> frozenset[str]:
    if not (isinstance(response_model, type) and issubclass(response_model, Page)):
        return frozenset()
    (item,) = response_model.__pydantic_generic_metadata__["args"]
    # Items are models, or dictionaries with declared members.
    return frozenset(item.model_fields if issubclass(item, BaseModel) else item.__annotations__)


async def reject_undeclared_input(request: Request) -> None:
    """Raise 422 for what a route does not declare: a query parameter, a body, a name in ``fields=``; or a repetition.

    An empty object is no body: some clients always send one.
    """
    route = request.scope["route"]
    assert isinstance(route, StrictRoute)
    query = request.query_params
    faults = [_fault("query", name, UNKNOWN) for name in query if name not in route.query_names]
    counts = Counter(name for name, _ in query.multi_items() if name in route.query_names)
    faults += [
        _fault("query", name, "repeated", "Repeated query parameter.")
        for name, count in counts.items()
        if count > 1  # No route takes a list.
    ]
    if route.item_members and parse_fields(query.get("fields")) - route.item_members:
        members = ", ".join(sorted(route.item_members))
        faults.append(_fault("query", "fields", "unknown_member", f"Unknown name. An item has: {members}."))
    if route.body_field is None and (body := await request.body()):
        faults += [_fault("body", name, UNKNOWN) for name in _member_names(body)]
    if faults:
        raise RequestValidationError(faults)


def _fault(place: str, name: str, kind: str, message: str = "") -> dict[str, Any]:
    return {"type": kind, "loc": (place, name), "msg": message}


def _member_names(body: bytes) -> list[str]:
    """Return the names of a JSON object's members; one empty name for any other body."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return [""]
    return list(value) if isinstance(value, dict) else [""]


def api_router(
    tag: str,
    *,
    prefix: str = "",
    base_path: str = PREFIX,
    dependencies: Sequence[Depends] = (),
    responses: Mapping[int | str, dict[str, Any]] | None = None,
    route_class: type[APIRoute] = StrictRoute,
) -> APIRouter:
    """Return a router whose routes have their full path; ``routers.all_routes`` adds them to the application.

    Included routers would be searched level by level for every request.

    Args:
        route_class: ``APIRoute`` for requests whose form is another's, as a gateway's.
    """
    return APIRouter(
        prefix=f"{base_path}{prefix}",
        tags=[tag],
        dependencies=list(dependencies),
        responses=dict(responses or {}),
        default_response_class=JsonResponse,
        route_class=route_class,
        generate_unique_id_function=_operation_id,
    )


def _operation_id(route: APIRoute) -> str:
    return f"{route.tags[0]}_{route.name}" if route.tags else route.name
