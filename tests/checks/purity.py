"""Check that `workflows.rules` imports only the standard library, and from it no clock, randomness, input or output."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

RULES = Path(__file__).resolve().parents[2] / "workflows" / "rules"
HOME = "workflows.rules"

# Modules of the standard library that make a decision depend on time or place.
FORBIDDEN = {
    "asyncio", "ctypes", "http", "importlib", "io", "logging", "multiprocessing", "os", "pathlib", "random", "secrets",
    "select", "selectors", "shutil", "signal", "socket", "socketserver", "sqlite3", "ssl", "subprocess", "sys",
    "tempfile", "threading", "time", "urllib",
}  # fmt: skip
NONDETERMINISTIC_CALLS = {"now", "utcnow", "today", "uuid1", "uuid4", "uuid6", "uuid7", "fromtimestamp"}
"""`fromtimestamp` without a zone uses the machine's. Rules receive instants as arguments."""
BUILTINS = {"open", "input", "print", "exec", "eval", "__import__"}


def find_violations(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line, reason) for everything that a rule must not do."""
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if reason := forbidden_import_reason(alias.name):
                    yield node.lineno, reason
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                yield node.lineno, "a relative import"
            elif reason := forbidden_import_reason(node.module or ""):
                yield node.lineno, reason
        elif isinstance(node, ast.Call):
            if isinstance(node.func, ast.Attribute) and node.func.attr in NONDETERMINISTIC_CALLS:
                yield node.lineno, f"reads the clock or a random source: {node.func.attr}()"
            elif isinstance(node.func, ast.Name) and node.func.id in BUILTINS:
                yield node.lineno, f"calls {node.func.id}()"


def forbidden_import_reason(name: str) -> str | None:
    top = name.split(".", 1)[0]
    if name == HOME or name.startswith(f"{HOME}.") or top == "__future__":
        return None
    if top not in sys.stdlib_module_names:
        return f"imports {name}, which is not of the standard library"
    return f"imports {name}" if top in FORBIDDEN else None


def main() -> int:
    violations = [
        f"{path.relative_to(RULES.parents[1])}:{line}: {reason}"
        for path in sorted(RULES.rglob("*.py"))
        for line, reason in find_violations(path)
    ]
    if violations:
        print("\n".join(violations))
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
