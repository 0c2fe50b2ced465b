"""Check that names, docstrings, comments and documents use the terms of `docs/glossary.md`.

`vocabulary.toml` lists the banned terms, each with the preferred one. Three kinds of text are read:

- names that the code defines (modules, classes, functions, parameters, variables, attributes, columns);
- prose: docstrings, comments and those string literals of the code that contain a space (the others are keys, column
  names or values of a contract);
- documents: Markdown files, templates, service definitions and `pyproject.toml`.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(__file__).with_name("vocabulary.toml")
PYTHON_FOLDERS = ("activities", "api", "db", "deploy", "tests", "worker", "workflows")
DOCUMENTS = (
    "README.md", "docs/**/*.md", "*/**/README.md", "templates/**/*.j2", "templates/**/*.html", "templates/**/*.yaml",
    "pyproject.toml",
)  # fmt: skip
WHITE_SPACE = re.compile(r"\s")
WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")


@dataclass(frozen=True, slots=True)
class Finding:
    """One use of a banned term."""

    path: Path
    line: int
    term: str
    preferred: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: '{self.term}': use {self.preferred}"


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Banned terms and their replacements.

    Attributes:
        names: Banned whole names.
        words: Banned words inside a name (`snake_case` and `CamelCase` are split into words).
        phrases: Banned regular expressions in prose and documents, matched without regard to case.
        allowed: Names that stay because the contract or a library defines them.
    """

    names: dict[str, str]
    words: dict[str, str]
    phrases: tuple[tuple[re.Pattern[str], str], ...]
    allowed: frozenset[str]

    @classmethod
    def load(cls, path: Path = DATA) -> Vocabulary:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
        return cls(
            names=data["names"],
            words=data["words"],
            phrases=tuple(
                (re.compile(pattern, re.IGNORECASE), preferred) for pattern, preferred in data["phrases"].items()
            ),
            allowed=frozenset(data["allowed"]["names"]),
        )

    def check_name(self, name: str) -> tuple[str, str] | None:
        """Return the banned term in `name` with its replacement, or None."""
        bare = name.strip("_")
        if not bare or bare in self.allowed or name in self.allowed:
            return None
        for candidate in (name, bare):
            if candidate in self.names:
                return candidate, self.names[candidate]
        for word in WORD.findall(bare):
            if word.lower() in self.words:
                return f"{word.lower()} (in {bare})", self.words[word.lower()]
        return None

    def check_prose(self, text: str) -> Iterator[tuple[int, str, str]]:
        """Yield (line offset, matched text, replacement) for each banned phrase."""
        for pattern, preferred in self.phrases:
            for match in pattern.finditer(text):
                yield text.count("\n", 0, match.start()), match.group(0), preferred


def defined_names(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield (line, name) for every name that the code itself defines. Uses of other code's names are not included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.lineno, node.name
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id
        elif (
            isinstance(node, ast.Attribute)
            and isinstance(node.ctx, ast.Store)
            and isinstance(node.value, ast.Name)
            and node.value.id in ("self", "cls")
        ):
            yield node.lineno, node.attr
        elif isinstance(node, ast.MatchAs | ast.MatchStar) and node.name:
            yield node.lineno, node.name


def prose(source: str, tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield (line, text) of comments, docstrings and string literals that contain white space."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and WHITE_SPACE.search(node.value):
            yield node.lineno, node.value


def check_python(path: Path, vocabulary: Vocabulary) -> Iterator[Finding]:
    """Yield every use of a banned term in a module: its own name, the names that it defines, and its prose."""
    relative_path = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
    source = path.read_text(encoding="utf-8")
    tree = ast.parse(source, str(path))
    if match := vocabulary.check_name(path.stem):
        yield Finding(relative_path, 1, *match)
    for line, name in defined_names(tree):
        if match := vocabulary.check_name(name):
            yield Finding(relative_path, line, *match)
    for line, text in prose(source, tree):
        for offset, term, preferred in vocabulary.check_prose(text):
            yield Finding(relative_path, line + offset, term, preferred)


def check_document(path: Path, vocabulary: Vocabulary) -> Iterator[Finding]:
    """Yield every banned phrase in a document."""
    for offset, term, preferred in vocabulary.check_prose(path.read_text(encoding="utf-8")):
        yield Finding(path.relative_to(ROOT), offset + 1, term, preferred)


def findings(vocabulary: Vocabulary) -> list[Finding]:
    """Return every use of a banned term in the repository, ordered by place."""
    result: list[Finding] = []
    for folder in PYTHON_FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            result.extend(check_python(path, vocabulary))
    documents = {path for pattern in DOCUMENTS for path in ROOT.glob(pattern) if ".venv" not in path.parts}
    for path in sorted(documents):
        result.extend(check_document(path, vocabulary))
    return sorted(result, key=lambda finding: (str(finding.path), finding.line))


def main() -> int:
    arguments = sys.argv[1:]
    result = [
        finding
        for finding in findings(Vocabulary.load())
        if not arguments or any(str(finding.path).startswith(prefix) for prefix in arguments)
    ]
    for finding in result:
        print(finding)
    if result:
        print(f"{len(result)} banned terms; vocabulary.toml lists the replacements")
    return 1 if result else 0


if __name__ == "__main__":
    sys.exit(main())
