"""Check that docstrings refer to what exists: names in backticks, documented arguments, attributes and exceptions.

A name survives in prose when the code renames it, and then sends its reader on a search for nothing.
"""

from __future__ import annotations

import ast
import builtins
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("activities", "api", "db", "deploy", "tests", "worker", "workflows")
EXTERNAL_NAMES = frozenset(
    {
        "BCRYPT_HASH_RE",  # n8n
        "CamelCase",
        "LabelSelector",  # Kubernetes
        "NoResultFound",  # SQLAlchemy
        "access_override_creds",  # Linux
        "snake_case",
    }
)
"""Names that other projects define or that stand for themselves."""

IDENTIFIER = re.compile(r"[A-Z][a-z0-9]+(?:[A-Z][a-z0-9]*)+|[a-z]+(?:_[a-z0-9]+)+|[A-Z]+(?:_[A-Z0-9]+)+")
QUOTED = re.compile(r"``([^`]+)``|`([^`]+)`")
SECTION = re.compile(r"^(Args|Attributes|Raises|Returns|Yields):(.*)$")
ENTRY = re.compile(r"^    (\*{0,2}\w+(?:, \*{0,2}\w+)*): ")
SUBJECT = re.compile(r"``([a-z][a-z0-9_]*)``")
"""The first word of a class's docstring that describes an attribute, or a member by its value."""

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


@dataclass(frozen=True, slots=True)
class Finding:
    """A docstring that names what does not exist."""

    path: Path
    line: int
    name: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: '{self.name}' does not exist"


def defined_names(trees: Iterable[tuple[Path, ast.Module]]) -> frozenset[str]:
    """Return every name that the code or one of its keys, columns and settings has."""
    names = {*dir(builtins), *EXTERNAL_NAMES}
    for path, tree in trees:
        names.add(path.stem)
        for node in ast.walk(tree):
            match node:
                case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                    names.add(name)
                case ast.Name(id=name) | ast.arg(arg=name) | ast.Attribute(attr=name):
                    names.add(name)
                case ast.keyword(arg=str(name)):
                    names.add(name)
                case ast.alias(name=name, asname=alias):
                    names |= {*name.split("."), alias or name}
                case ast.Constant(value=str(text)) if " " not in text:
                    # Keys, columns, statuses and the like.
                    names |= set(IDENTIFIER.findall(text))
                case _:
                    pass
    # Settings are fields; their variables have a prefix.
    names |= {f"BERTH_{name.upper()}" for name in names}
    return frozenset(names)


def class_members(trees: Iterable[tuple[Path, ast.Module]]) -> dict[str, frozenset[str]]:
    """Return the attributes and methods of each class by the name of the class, without those that it inherits."""
    members: dict[str, frozenset[str]] = {}
    for _, tree in trees:
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                members[node.name] = members.get(node.name, frozenset()) | _own_members(node)
    return members


def check_docstring(
    node: Definition | ast.Module, defined: frozenset[str], members_by_class: Mapping[str, frozenset[str]]
) -> Iterator[str]:
    """Yield the names in the docstring of a node that do not exist."""
    docstring = ast.get_docstring(node) or ""
    for quoted in QUOTED.findall(docstring):
        for part in re.split(r"[.(]", quoted[0] or quoted[1]):
            if IDENTIFIER.fullmatch(part) and part not in defined:
                yield part
    described = _own_members(node)
    if isinstance(node, ast.ClassDef):
        for base in node.bases:
            described |= members_by_class.get(ast.unparse(base).split("[")[0].rpartition(".")[2], frozenset())
        subject = SUBJECT.match(docstring)
        if subject and subject[1] not in {name.lower() for name in described}:
            yield subject[1]
    section = ""
    for line in docstring.splitlines():
        heading = SECTION.match(line)
        if heading:
            section = heading[1]
        entry = ENTRY.match(line)
        if not entry:
            continue
        for name in re.split(r", ", entry[1]):
            bare = name.lstrip("*")
            if section == "Raises" and bare not in defined:
                yield bare
            if section in ("Args", "Attributes") and bare not in described:
                yield bare


def _own_members(node: Definition | ast.Module) -> frozenset[str]:
    """Return the names that the sections ``Args`` and ``Attributes`` of a node may describe."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        arguments = node.args
        listed = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
        return frozenset(argument.arg for argument in listed if argument is not None)
    names: set[str] = set()
    for inner in ast.walk(node):
        match inner:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                names.add(name)
            case ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()) | ast.arg(arg=name):
                names.add(name)
            case _:
                pass
    return frozenset(names)


def findings() -> list[Finding]:
    paths = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
    trees = [(path, ast.parse(path.read_text(encoding="utf-8"))) for path in paths]
    defined, members = defined_names(trees), class_members(trees)
    return [
        Finding(path.relative_to(ROOT), getattr(node, "lineno", 1), name)
        for path, tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        for name in check_docstring(node, defined, members)
    ]


def main() -> int:
    missing = findings()
    for finding in missing:
        print(finding)
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
