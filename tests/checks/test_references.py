"""The check of docstrings finds a name that the code does not have, and accepts one that it has."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.checks.references import check_docstring, class_members, defined_names

SOURCE = '''
class Base:
    """A base."""

    inherited: int


class Gateway(Base):
    """{class_docstring}"""

    trusted_proxies: str

    def charge(self, amount: int) -> None:
        """{docstring}"""
'''


def missing(docstring: str = "", class_docstring: str = "") -> list[str]:
    tree = ast.parse(SOURCE.format(docstring=docstring, class_docstring=class_docstring))
    trees = [(Path("gateway.py"), tree)]
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    defined, members = defined_names(trees), class_members(trees)
    return [name for node in nodes for name in check_docstring(node, defined, members)]


@pytest.mark.parametrize(
    ("docstring", "expected"),
    [
        ("See ``OldGateway``.", ["OldGateway"]),
        ("See `old_charge`.", ["old_charge"]),
        ("See ``OLD_LIMIT``.", ["OLD_LIMIT"]),
        ("Set ``BERTH_TRUSTED_PROXIES``.", []),
        ("See ``Gateway.trusted_proxies`` and ``ValueError``.", []),
        ("Charge.\n\n        Args:\n            sum: In cents.\n", ["sum"]),
        ("Charge.\n\n        Args:\n            amount: In cents.\n", []),
        ("Charge.\n\n        Raises:\n            ChargeRefused: by the bank.\n", ["ChargeRefused"]),
        ("Charge.\n\n        Raises:\n            ValueError: below zero.\n", []),
    ],
)
def test_names_in_the_docstring_of_a_function_exist(docstring: str, expected: list[str]) -> None:
    assert missing(docstring=docstring) == expected


def test_described_attributes_exist_in_the_class_or_its_bases() -> None:
    attributes = ("trusted_proxies: Networks.", "inherited: Yes.", "gone: No.")
    lines = ["A gateway.", "", "    Attributes:", *(f"        {attribute}" for attribute in attributes)]
    assert missing(class_docstring="\n".join(lines)) == ["gone"]


@pytest.mark.parametrize(
    ("docstring", "expected"),
    [
        ("``trusted_proxies`` are believed.", []),
        ("``inherited``: see the base.", []),
        ("``missing``: a count.", ["missing"]),
    ],
)
def test_an_attribute_that_a_docstring_begins_with_exists(docstring: str, expected: list[str]) -> None:
    assert missing(class_docstring=docstring) == expected
