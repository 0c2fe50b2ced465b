"""Every route refuses a field of a body, a query parameter and a body that it does not declare."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx

from api.pagination import encode_cursor
from tests.support.api import ApiFixture, RegisteredUser, parse_error

UNKNOWN_FIELD = "unknown_field_of_the_test"

Json = dict[str, Any]


def _operations(schema: Json) -> Iterator[tuple[str, str, Json]]:
    """Yield the method, the path and the body's schema of each operation with a JSON body."""
    for path, methods in schema["paths"].items():
        for method, operation in methods.items():
            content = operation.get("requestBody", {}).get("content", {}).get("application/json")
            if content is not None:
                yield method.upper(), path, content["schema"]


def _resolve(schema: Json, node: Json) -> Json:
    """Return the schema that a node names: behind a reference, or the one of its alternatives that is not null."""
    for alternative in node.get("anyOf", ()):
        if alternative.get("type") != "null":
            return _resolve(schema, alternative)
    if "$ref" in node:
        resolved: Json = schema["components"]["schemas"][node["$ref"].rpartition("/")[2]]
        return resolved
    return node


def _objects(schema: Json, node: Json, place: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Yield the place of each object with declared fields in a body: ``()`` is the body, ``("prices", 0)`` an item."""
    node = _resolve(schema, node)
    if node.get("type") == "array":
        yield from _objects(schema, node["items"], (*place, 0))
    if "properties" in node:
        yield place
        for name, member in node["properties"].items():
            yield from _objects(schema, member, (*place, name))


def _body_with_unknown_field(place: tuple[str | int, ...]) -> Any:
    body: Any = {UNKNOWN_FIELD: 1}
    for part in reversed(place):
        body = [body] if part == 0 else {part: body}
    return body


async def _send(user: RegisteredUser, method: str, path: str, body: Any) -> httpx.Response:
    path = path.replace("{", "").replace("}", "")
    return await user.http.request(method, f"http://api{path}", json=body, headers=user.idempotency_header())


async def test_each_json_body_refuses_an_unknown_field(api: ApiFixture) -> None:
    schema = api.app.openapi()
    user = await api.administrator()
    accepted: list[str] = []
    checked: set[str] = set()
    for method, path, body_schema in _operations(schema):
        for place in _objects(schema, body_schema):
            field = ".".join(str(part) for part in (*place, UNKNOWN_FIELD))
            response = await _send(user, method, path, _body_with_unknown_field(place))
            failures: list[Json] = []
            if response.status_code == 422:
                details = parse_error(response)["details"]
                failures = details.get("errors", [details])
            if not any((item["field"], item["reason"]) == (field, "Unknown field.") for item in failures):
                accepted.append(f"{method} {path}: {field}")
            checked.add(field)
    assert accepted == []
    # The body itself, an object in it and an object in a list of it.
    assert {UNKNOWN_FIELD, f"organization.{UNKNOWN_FIELD}", f"prices.0.{UNKNOWN_FIELD}"} <= checked


async def test_an_order_with_a_misspelled_coupon_is_refused(api: ApiFixture) -> None:
    user = await api.register_verified_user()
    response = await user.http.post(
        "/subscriptions",
        json={"plan_id": "n8n-starter", "coupon_code": "WELCOME10"},
        headers=user.idempotency_header(),
    )
    assert response.status_code == 422
    error = parse_error(response)
    assert error["message"] == "Request validation failed: coupon_code: Unknown field."
    assert error["details"] == {"field": "coupon_code", "reason": "Unknown field."}


def _without_gateways(schema: Json) -> Iterator[tuple[str, str, Json]]:
    """Yield the method, the path and the operation of each route but the webhooks', whose form is the gateway's."""
    for path, methods in schema["paths"].items():
        for method, operation in methods.items():
            if "webhook" not in path:
                yield method.upper(), path, operation


async def test_each_route_refuses_an_unknown_query_parameter(api: ApiFixture) -> None:
    user = await api.administrator()
    accepted = []
    for method, path, _ in _without_gateways(api.app.openapi()):
        response = await _send(user, method, f"{path}?{UNKNOWN_FIELD}=1", None)
        details = parse_error(response)["details"] if response.status_code == 422 else {}
        if details != {"field": UNKNOWN_FIELD, "reason": "Unknown query parameter."}:
            accepted.append((method, path, response.status_code, details))
    assert accepted == []


def _query_parameters(schema: Json) -> Iterator[tuple[str, str, Json]]:
    """Yield the method, the path and the schema of each query parameter."""
    for method, path, operation in _without_gateways(schema):
        for parameter in operation.get("parameters", ()):
            if parameter["in"] == "query":
                yield method, path, parameter


def _valid_value(schema: Json, parameter: Json) -> str:
    if parameter["name"] == "cursor":
        return encode_cursor("x")
    if parameter["name"] == "fields":
        return ""
    return str(_resolve(schema, parameter["schema"]).get("enum", ["1"])[0])


async def test_each_query_parameter_is_refused_if_it_is_repeated(api: ApiFixture) -> None:
    schema = api.app.openapi()
    user = await api.administrator()
    accepted, checked = [], 0
    for method, path, parameter in _query_parameters(schema):
        checked += 1
        pair = f"{parameter['name']}={_valid_value(schema, parameter)}"
        response = await _send(user, method, f"{path}?{pair}&{pair}", None)
        details = parse_error(response)["details"] if response.status_code == 422 else {}
        if details != {"field": parameter["name"], "reason": "Repeated query parameter."}:
            accepted.append((method, path, pair, response.status_code, details))
    assert accepted == []
    assert checked > 40


async def test_each_list_refuses_a_name_that_its_items_do_not_have(api: ApiFixture) -> None:
    user = await api.administrator()
    accepted, checked = [], 0
    for method, path, parameter in _query_parameters(api.app.openapi()):
        if parameter["name"] != "fields":
            continue
        checked += 1
        response = await _send(user, method, f"{path}?fields=id,{UNKNOWN_FIELD}", None)
        details = parse_error(response)["details"] if response.status_code == 422 else {}
        if not str(details.get("reason")).startswith("Unknown name. An item has: "):
            accepted.append((method, path, response.status_code, details))
    assert accepted == []
    assert checked > 15


async def test_a_list_returns_the_members_that_it_is_asked_for(api: ApiFixture) -> None:
    user = await api.register_verified_user()
    response = await user.http.get("/services", params={"fields": "slug, plans"})
    assert response.status_code == 200
    assert all(item.keys() == {"id", "slug", "plans"} for item in response.json()["data"])


async def test_each_route_without_a_body_refuses_one(api: ApiFixture) -> None:
    user = await api.administrator()
    accepted, checked = [], 0
    for method, path, operation in _without_gateways(api.app.openapi()):
        if "requestBody" in operation:
            continue
        checked += 1
        response = await _send(user, method, path, {UNKNOWN_FIELD: 1})
        details = parse_error(response)["details"] if response.status_code == 422 else {}
        if details != {"field": UNKNOWN_FIELD, "reason": "Unknown field."}:
            accepted.append((method, path, response.status_code, details))
        without = await _send(user, method, path, {})
        assert without.status_code != 422 or UNKNOWN_FIELD not in without.text
    assert accepted == []
    assert checked > 40


async def test_a_filter_that_is_misspelled_does_not_return_everything(api: ApiFixture) -> None:
    user = await api.register_verified_user()
    response = await user.http.get("/subscriptions", params={"state": "active"})
    assert response.status_code == 422
    assert parse_error(response)["message"] == "Request validation failed: state: Unknown query parameter."
    anonymous = await api.http.get("/subscriptions", params={"state": "active"})
    assert anonymous.status_code == 401


async def test_a_body_that_is_no_object_is_refused_where_none_is_taken(api: ApiFixture) -> None:
    user = await api.register_verified_user()
    for content in (b"[1]", b"1", b"text"):
        response = await user.http.post(
            "/subscriptions/sub_1/pause", content=content, headers={"Content-Type": "text/plain"}
        )
        assert (response.status_code, parse_error(response)["code"]) == (422, "VALIDATION_ERROR")
    assert (await user.http.post("/subscriptions/sub_1/pause", json={})).status_code == 404
