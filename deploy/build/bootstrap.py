"""Makes the virtual environment: `python3 bootstrap.py FOLDER run|dev`. Quick when there is nothing to do.

Installs exactly what the requirement files pin, checked by hash, and the project itself as an editable install. Uses
uv, which is itself pinned and hashed, and pip where uv does not come through. Standard library of any Python 3.8; the
environment gets the newest suitable interpreter.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
OLDEST = (3, 11)
NEWEST = (3, 14)
FILES = {"run": "requirements.txt", "dev": "requirements-dev.txt"}
INSTALLER = "requirements-bootstrap.txt"
SOURCES = ("activities", "api", "db", "deploy", "worker", "workflows")
# How pip is told of a mirror, and how uv is.
MIRRORS = {"PIP_INDEX_URL": "UV_DEFAULT_INDEX", "PIP_EXTRA_INDEX_URL": "UV_INDEX", "PIP_CERT": "SSL_CERT_FILE"}


def version_of(python: str) -> tuple[int, ...] | None:
    """(major, minor) of an interpreter, or None when there is none of that name."""
    ask = "import sys; print(*sys.version_info[:2])"
    try:
        answer = subprocess.run([python, "-c", ask], capture_output=True, text=True, timeout=20, check=True)
        return tuple(int(part) for part in answer.stdout.split())
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


def find_python() -> str:
    names = [sys.executable, "python3"] + [f"python3.{minor}" for minor in range(NEWEST[1], OLDEST[1] - 1, -1)]
    for name in names:
        version = version_of(name)
        if version and OLDEST <= version <= NEWEST:
            return name
    sys.exit(f"Berth needs Python {OLDEST[0]}.{OLDEST[1]} to {NEWEST[0]}.{NEWEST[1]}; none was found on PATH")


def fingerprint(kind: str) -> str:
    """Changes when anything changes that the environment is made from."""
    sum_ = hashlib.sha256()
    for name in (INSTALLER, FILES[kind], "pyproject.toml", "deploy/build/bootstrap.py"):
        sum_.update((ROOT / name).read_bytes())
    # An environment does not work from another place: its scripts name their interpreter.
    sum_.update(str(ROOT).encode())
    return sum_.hexdigest()


def up_to_date(venv: Path, kind: str) -> bool:
    """A `dev` environment has everything that `run` needs."""
    for stamped in ("run", "dev") if kind == "run" else ("dev",):
        stamp = venv / f".berth-{stamped}"
        if stamp.exists() and stamp.read_text() == fingerprint(stamped) and (venv / "bin" / "python").exists():
            return True
    return False


def run(*argv: Path | str, **options: Any) -> None:
    subprocess.run([str(arg) for arg in argv], cwd=ROOT, check=True, **options)


def make_venv(venv: Path) -> None:
    if version_of(str(venv / "bin" / "python")) is None:
        for name in ("bin", "lib", "lib64", "include", "pyvenv.cfg"):
            path = venv / name
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.exists() or path.is_symlink():
                path.unlink()
        run(find_python(), "-m", "venv", venv)


def install(venv: Path, kind: str) -> None:
    python = venv / "bin" / "python"
    environ = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1"}
    for theirs, ours in MIRRORS.items():
        if theirs in environ:
            environ.setdefault(ours, environ[theirs])
    pip: list[Path | str] = [python, "-m", "pip", "--quiet"]
    requirements = ["--require-hashes", "-r", FILES[kind]]
    project = ["--no-deps", "--no-build-isolation", "-e", "."]
    try:
        run(*pip, "install", "--require-hashes", "-r", INSTALLER, env=environ)
        uv: list[Path | str] = [venv / "bin" / "uv", "pip", "install", "--quiet", "--python", python]
        # Eight processes import these packages at every start of the stack: compiled once, that is seconds each time.
        run(*uv, "--compile-bytecode", *requirements, env=environ)
        run(*uv, *project, env=environ)
    except (OSError, subprocess.CalledProcessError):
        print("uv did not come through; installing with pip, which takes longer", file=sys.stderr)
        run(*pip, "install", *requirements, env=environ)
        run(*pip, "install", *project, env=environ)


def compile_sources(venv: Path) -> None:
    """Also where the environment forbids to write bytecode on import, as many containers do."""
    run(venv / "bin" / "python", "-m", "compileall", "-q", *SOURCES)


def main() -> None:
    venv, kind = Path(sys.argv[1]).absolute(), sys.argv[2]
    if up_to_date(venv, kind):
        return
    venv.mkdir(exist_ok=True)
    # Not `.lock`: by that name uv locks the environment itself.
    with open(venv / ".berth-lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of two that start together the second finds it done
        if up_to_date(venv, kind):
            return
        print(f"installing into {venv.name} (once) …", flush=True)
        try:
            make_venv(venv)
            install(venv, kind)
            compile_sources(venv)
        except subprocess.CalledProcessError as error:
            sys.exit(f"the installation failed: {' '.join(error.cmd[:6])} … ended with {error.returncode}")
        (venv / f".berth-{kind}").write_text(fingerprint(kind))


if __name__ == "__main__":
    main()
