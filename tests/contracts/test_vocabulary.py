"""The vocabulary gate finds banned terms in names, prose and documents, and names the preferred term."""

from __future__ import annotations

import ast
import re
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

from db.base import Base
from tests.checks.vocabulary import DOCUMENTS, ROOT, Vocabulary, check_document, check_python, defined_names

import_module("db.models")

SAMPLES = tomllib.loads(Path(__file__).with_name("vocabulary_samples.toml").read_text())["samples"]
"""Sources with one banned term each. They are kept outside Python, where the gate would find them."""
GLOSSARY = ROOT / "docs" / "glossary.md"


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return Vocabulary.load()


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample["term"])
def test_each_kind_of_use_is_found_with_its_replacement(
    vocabulary: Vocabulary, tmp_path: Path, sample: dict[str, str]
) -> None:
    path = tmp_path / "example.py"
    path.write_text(sample["source"])
    findings = list(check_python(path, vocabulary))
    assert [(finding.term, finding.preferred) for finding in findings] == [(sample["term"], sample["preferred"])]
    assert str(findings[0]).endswith(f"'{sample['term']}': use {sample['preferred']}")


@pytest.mark.parametrize(
    "source", ["def release_hold(): ...", "# The worker retries.", "retained = noted = 1", "row['till']"]
)
def test_plain_code_passes(vocabulary: Vocabulary, tmp_path: Path, source: str) -> None:
    path = tmp_path / "example.py"
    path.write_text(source)
    assert list(check_python(path, vocabulary)) == []


def test_names_of_other_code_are_not_judged() -> None:
    tree = ast.parse("import library\nresult = library.tell(standing=1)")
    assert [name for _, name in defined_names(tree)] == ["result"]


def test_documents_are_read(vocabulary: Vocabulary) -> None:
    paths = {path for pattern in DOCUMENTS for path in ROOT.glob(pattern)}
    assert {ROOT / "README.md", GLOSSARY} <= paths
    assert list(check_document(GLOSSARY, vocabulary)) == []


def test_the_glossary_names_tables_and_types_that_exist() -> None:
    """Each entry has two lines: what the term means, and the table or the type that holds it."""
    entries = re.findall(r"^\*\*(.+?)\*\*: (.+)\nHeld in (.+)$", GLOSSARY.read_text(), re.MULTILINE)
    assert len(entries) == GLOSSARY.read_text().count("\n**")
    assert len(entries) >= 50
    for term, _, held in entries:
        kind, names = held.split(" ", 1)
        quoted = re.findall(r"`([A-Za-z_.:<>]+)`", names)
        if kind.startswith("table"):
            tables = [name for name in quoted if name in Base.metadata.tables]
            assert tables, f"{term}: no such table in {held}"
        else:
            module, _, attribute = quoted[0].rpartition(".")
            assert hasattr(import_module(module), attribute), f"{term}: {quoted[0]} does not exist"
