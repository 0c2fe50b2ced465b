"""No pattern accepts a line break after what it describes."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.api import parse_error
from tests.support.fake_workflow_client import STARTER, ApiWithCatalogue
from workflows.json_schema import ParameterValidator, find_schema_fault

ROOT = Path(__file__).resolve().parents[2]
PRODUCT = ("activities", "api", "db", "deploy", "worker", "workflows")
DRAFT = "https://json-schema.org/draft/2020-12/schema"


def anchored_patterns() -> Iterator[str]:
    """Yield the place of each pattern for Python that ends with ``$``."""
    for path in sorted(path for folder in PRODUCT for path in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Call(
                    func=ast.Attribute(value=ast.Name(id="re")), args=[ast.Constant(value=str(pattern)), *_]
                ) if re.search(r"(?<!\\)\$\Z", pattern):
                    yield f"{path.relative_to(ROOT)}:{node.lineno}"


def test_the_product_matches_whole_texts() -> None:
    """`re.fullmatch`, or `\\Z`: `$` also matches before a line break at the end."""
    assert list(anchored_patterns()) == []


@pytest.mark.parametrize("pattern", ["^[a-z]+$", r"^\$?(shop|[a-z]$)", r"^[a-z]{1,9}$"])
def test_the_end_of_a_json_schema_pattern_is_the_end_of_the_text(pattern: str) -> None:
    validator = ParameterValidator({"pattern": pattern})
    assert validator.is_valid("shop") or validator.is_valid("s")
    assert not validator.is_valid("s\n")
    assert validator.is_valid(1)


@pytest.mark.parametrize("pattern", ["^(a+)+$", "^([a-z0-9]+)+@x$", "(x+x+)+y"])
def test_a_pattern_takes_time_in_proportion_to_the_text(pattern: str) -> None:
    """With backtracking each of these takes longer than the universe has existed."""
    assert not ParameterValidator({"pattern": pattern}).is_valid("a" * 10_000 + "!")


@pytest.mark.parametrize(
    ("items", "are_unique"),
    [
        ([], True), ([1, True, "1", None, [1], {"a": 1}], True), ([0, False], True), ([[0], [False]], True),
        ([1, 1.0], False), ([{"a": 1, "b": [2]}, {"b": [2.0], "a": 1}], False), ([[1, 2], [2, 1]], True),
        ([None, None], False), ([[], {}], True), (["", ""], False),
    ],
)  # fmt: skip
def test_unique_items_are_compared_as_json(items: list[Any], are_unique: bool) -> None:
    assert ParameterValidator({"uniqueItems": True}).is_valid(items) is are_unique
    assert ParameterValidator({"uniqueItems": False}).is_valid(items)


def test_unique_items_are_counted_in_proportion_to_the_list() -> None:
    """Compared with each other, these are fifty million comparisons of objects."""
    items: list[Any] = [{"name": str(number), "tags": [number]} for number in range(10_000)]
    validator = ParameterValidator({"uniqueItems": True})
    assert validator.is_valid(items)
    assert not validator.is_valid([*items, items[0]])


@pytest.mark.parametrize("name", ["subdomain", "timezone"])
async def test_an_order_with_a_line_break_after_a_parameter_is_refused(seeded_api: ApiWithCatalogue, name: str) -> None:
    customer = seeded_api.customer
    response = await customer.http.post(
        "/subscriptions",
        json={"plan_id": STARTER, "parameters": {name: "shop\n"}},
        headers=customer.idempotency_header(),
    )
    assert (response.status_code, parse_error(response)["details"]["field"]) == (422, f"parameters.{name}")


def _patterns(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("pattern"), str):
            yield node["pattern"]
        for child in node.values():
            yield from _patterns(child)
    elif isinstance(node, list):
        for child in node:
            yield from _patterns(child)


async def test_no_body_of_the_api_accepts_a_line_break_after_a_pattern(seeded_api: ApiWithCatalogue) -> None:
    assert set(_patterns(seeded_api.api.app.openapi())) > {"^[A-Z]{3}$", "^[A-Z]{2}$"}
    for field, value in (("currency", "USD\n"), ("country", "DE\n")):
        registration = {"email": "new@example.com", "password": "correct horse", "name": "New", field: value}
        response = await seeded_api.api.http.post("/auth/register", json=registration)
        assert (response.status_code, parse_error(response)["details"]["field"]) == (422, field)


def test_a_schema_reads_no_other_document(tmp_path: Path) -> None:
    other = tmp_path / "schema.json"
    other.write_text('{"enum": ["a secret of the server"]}')
    for keyword in ("$ref", "$dynamicRef"):
        schema = {
            "properties": {"name": {keyword: other.as_uri()}, "local": {keyword: "#/$defs/word"}},
            "$defs": {"word": {"type": "string"}},
        }
        assert "no other document is read" in (find_schema_fault(schema) or "")
        validator = ParameterValidator(schema)
        assert [error.message for error in validator.iter_errors({"name": "x"})] == ["refers to another document"]
        assert validator.is_valid({"local": "x"})
        assert not validator.is_valid({"local": 1})


def _multiplied(levels: int) -> dict[str, Any]:
    """A schema whose references name twice what they refer to, so many levels deep."""
    parts = {f"p{n}": {"allOf": [{"$ref": f"#/$defs/p{n + 1}"}] * 2} for n in range(levels)}
    return {"$ref": "#/$defs/p0", "$defs": {**parts, f"p{levels}": {"type": "object"}}}


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"properties": {"a": {"$ref": "#/$defs/a"}}, "$defs": {"a": {"type": "string"}}}, None),
        ({"properties": {"a": {"$ref": "#/$defs/a~1b%20"}}, "$defs": {"a/b ": {"pattern": "^[a-z]$"}}}, None),
        ({"allOf": [{"$ref": "#/$defs/a/anyOf/0"}], "$defs": {"a": {"anyOf": [{}]}}}, None),
        ({"properties": {"pattern": {"type": "string"}, "$ref": {"type": "string"}}}, None),
        ({"$ref": "#"}, "no end"),
        ({"properties": {"a": {"$ref": "#/properties/a"}}}, "no end"),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"not": {"$ref": "#/$defs/a"}}}}, "no end"),
        (_multiplied(30), "more than 1000 parts"),
        ({"$ref": "#/$defs/a"}, "must point to a part"),
        ({"$ref": "#a", "$defs": {"a": {"$anchor": "a"}}}, "must point to a part"),
        ({"properties": {"a": {"pattern": "^(?!x)"}}}, "look-ahead"),
        ({"properties": {"a": {"pattern": r"(a)\1"}}}, "back-references"),
        ({"patternProperties": {"^(a+)+$": {}}}, "not supported"),
    ],
)
async def test_an_administrator_writes_only_schemas_that_can_be_checked_in_time(
    seeded_api: ApiWithCatalogue, schema: dict[str, Any], reason: str | None
) -> None:
    administrator = await seeded_api.api.administrator()
    service = {
        "slug": "gitea", "name": "Gitea", "description": "", "category": "code", "template": "gitea", "version": "1",
        "parameters_schema": schema,
    }  # fmt: skip
    response = await administrator.http.post("/admin/services", json=service)
    if reason is None:
        assert response.status_code == 201, response.text
        return
    error = parse_error(response)
    assert (response.status_code, error["details"]["field"]) == (422, "parameters_schema")
    assert reason in response.text


async def test_an_administrator_cannot_write_a_schema_that_refers_to_another_document(
    seeded_api: ApiWithCatalogue,
) -> None:
    administrator = await seeded_api.api.administrator()
    service = {
        "slug": "gitea", "name": "Gitea", "description": "", "category": "code", "template": "gitea", "version": "1",
        "parameters_schema": {"properties": {"name": {"$ref": "http://169.254.169.254/"}}},
    }  # fmt: skip
    response = await administrator.http.post("/admin/services", json=service)
    assert (response.status_code, parse_error(response)["details"]["field"]) == (422, "parameters_schema")


@pytest.mark.parametrize(
    "schema",
    [
        # A part with a `$schema` would be validated without RE2.
        {"properties": {"a": {"$schema": DRAFT, "pattern": "^(a+)+$"}}},
        {"properties": {"a": {"$ref": "#/$defs/a"}}, "$defs": {"a": {"$schema": DRAFT, "pattern": "^(a+)+$"}}},
        # The reference would be fetched.
        {
            "allOf": [{"$ref": "#/more/x"}],
            "more": {"x": {"allOf": [{"$id": "http://127.0.0.1:9/x", "$ref": "#/y"}]}},
            "y": {},
        },
    ],
)
def test_a_schema_with_another_document_in_it_is_refused(schema: dict[str, Any]) -> None:
    assert "one document" in (find_schema_fault({"$schema": DRAFT} | schema) or "")


def test_a_schema_may_name_its_draft_and_a_parameter_may_have_the_name_of_a_keyword() -> None:
    assert find_schema_fault({"$schema": DRAFT, "properties": {"$id": {"type": "string"}}}) is None
