"""`workflows.rules` takes only the standard library, and from that no clock, no chance, no input or output."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

RULES = Path(__file__).resolve().parents[2] / "workflows" / "rules"
HOME = "workflows.rules"

# Of the standard library: what would make a decision depend on when or where it is taken.
FORBIDDEN = {
    "asyncio", "ctypes", "http", "importlib", "io", "logging", "multiprocessing", "os", "pathlib", "random", "secrets",
    "select", "selectors", "shutil", "signal", "socket", "socketserver", "sqlite3", "ssl", "subprocess", "sys",
    "tempfile", "threading", "time", "urllib",
}  # fmt: skip
CLOCKS = {"now", "utcnow", "today", "uuid1", "uuid4", "uuid6", "uuid7", "fromtimestamp"}
"""`fromtimestamp` without a zone takes the machine's; the rules get instants, never stamps."""
BUILTINS = {"open", "input", "print", "exec", "eval", "__import__"}


def offences(path: Path) -> Iterator[tuple[int, str]]:
    """Line and reason of everything a rule may not do."""
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if reason := wrong_module(alias.name):
                    yield node.lineno, reason
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                yield node.lineno, "a relative import"
            elif reason := wrong_module(node.module or ""):
                yield node.lineno, reason
        elif isinstance(node, ast.Call):
            if isinstance(node.func, ast.Attribute) and node.func.attr in CLOCKS:
                yield node.lineno, f"asks for the time or for chance: {node.func.attr}()"
            elif isinstance(node.func, ast.Name) and node.func.id in BUILTINS:
                yield node.lineno, f"calls {node.func.id}()"


def wrong_module(name: str) -> str | None:
    top = name.split(".", 1)[0]
    if name == HOME or name.startswith(f"{HOME}.") or top == "__future__":
        return None
    if top not in sys.stdlib_module_names:
        return f"imports {name}, which is not of the standard library"
    return f"imports {name}" if top in FORBIDDEN else None


def main() -> int:
    found = [
        f"{path.relative_to(RULES.parents[1])}:{line}: {reason}"
        for path in sorted(RULES.rglob("*.py"))
        for line, reason in offences(path)
    ]
    if found:
        print("\n".join(found))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
