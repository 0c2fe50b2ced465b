"""Makes the virtual environment: `environment.py FOLDER run|dev`, started by `bootstrap.py`. Quick when it is current.

Installs exactly what the requirement files pin, checked by hash, and the project itself as an editable install. Uses
uv, which is itself pinned and hashed, and pip where uv cannot run on this machine. Standard library of any Python
3.8; the environment gets the newest suitable interpreter. A failure ends with one line that names cause and remedy;
the installers' output is in `install.log` in the environment.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
OLDEST = (3, 11)
NEWEST = (3, 14)
FILES = {"run": "requirements.txt", "dev": "requirements-dev.txt"}
INSTALLER = "requirements-bootstrap.txt"
SOURCES = ("activities", "api", "db", "deploy", "worker", "workflows")
MIRRORS = {"PIP_INDEX_URL": "UV_DEFAULT_INDEX", "PIP_EXTRA_INDEX_URL": "UV_INDEX", "PIP_CERT": "SSL_CERT_FILE"}
"""pip's name of a setting for a mirror, and uv's."""

DISK_FULL = "the disk is full"
UNREACHABLE = "the package index cannot be reached. Check the network, or name a mirror in PIP_INDEX_URL"
CAUSES = (
    (DISK_FULL, ("No space left on device", "os error 28", "Disk quota exceeded")),
    (
        "Python's venv module is incomplete. On Debian and Ubuntu install the package python3-venv",
        ("ensurepip is not available", "No module named venv", "No module named ensurepip"),
    ),
    (
        "the certificate of the package index is not trusted. Name its authority in PIP_CERT",
        ("CERTIFICATE_VERIFY_FAILED", "invalid peer certificate"),
    ),
    (
        UNREACHABLE,
        ("connection broken by", "error sending request", "dns error", "tcp connect error", "ConnectTimeoutError"),
    ),
    (
        "a package is not the one that the requirement files pin",
        ("DO NOT MATCH THE HASHES", "Hash mismatch"),
    ),
)
"""What a failed installation means, by what the installers print. The first match counts."""

HOPELESS = (DISK_FULL, UNREACHABLE)
"""Causes that another installer meets as well."""


class InstallFailed(RuntimeError):
    """A step failed; the message is its output."""


def version_of(python: str) -> tuple[int, ...] | None:
    """(major, minor) of an interpreter, or None when there is none of that name."""
    ask = "import sys; print(*sys.version_info[:2])"
    try:
        process = subprocess.run([python, "-c", ask], capture_output=True, text=True, timeout=20, check=True)
        return tuple(int(part) for part in process.stdout.split())
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


def find_python() -> str:
    names = [sys.executable, "python3"] + [f"python3.{minor}" for minor in range(NEWEST[1], OLDEST[1] - 1, -1)]
    for name in names:
        version = version_of(name)
        if version and OLDEST <= version <= NEWEST:
            return name
    sys.exit(
        f"Berth needs Python {OLDEST[0]}.{OLDEST[1]} to {NEWEST[0]}.{NEWEST[1]}: python3 is Python"
        f" {sys.version_info[0]}.{sys.version_info[1]}, and no newer one was found on PATH."
    )


def fingerprint(kind: str) -> str:
    """Changes when anything changes that the environment is made from."""
    sum_ = hashlib.sha256()
    for name in (INSTALLER, FILES[kind], "pyproject.toml", "deploy/build/environment.py"):
        sum_.update((ROOT / name).read_bytes())
    # An environment does not work from another place: its scripts name their interpreter.
    sum_.update(os.fsencode(ROOT))
    return sum_.hexdigest()


def up_to_date(venv: Path, kind: str) -> bool:
    """A `dev` environment has everything that `run` needs."""
    for stamped in ("run", "dev") if kind == "run" else ("dev",):
        stamp = venv / f".berth-{stamped}"
        if stamp.exists() and stamp.read_text() == fingerprint(stamped) and (venv / "bin" / "python").exists():
            return True
    return False


def run(log: Path, *argv: Path | str, env: dict[str, str] | None = None) -> None:
    """Run one step; its output goes to `log`. Raises `InstallFailed`."""
    command = [str(arg) for arg in argv]
    done = subprocess.run(
        command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
        check=False,
    )  # fmt: skip
    text = f"$ {' '.join(command)}\n{done.stdout}"
    with log.open("a", encoding="utf-8") as out:
        out.write(text)
    if done.returncode != 0:
        raise InstallFailed(text)


def cause_of(output: str) -> str | None:
    """What the output of a failed installer means, in words; None when it is none of the known causes."""
    for cause, signs in CAUSES:
        if any(sign.lower() in output.lower() for sign in signs):
            return cause
    return None


def make_venv(venv: Path, log: Path) -> None:
    if version_of(str(venv / "bin" / "python")) is None:
        for name in ("bin", "lib", "lib64", "include", "pyvenv.cfg"):
            path = venv / name
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.exists() or path.is_symlink():
                path.unlink()
        run(log, find_python(), "-m", "venv", venv)


def install(venv: Path, kind: str, log: Path) -> None:
    python = venv / "bin" / "python"
    environ = {
        "PIP_RETRIES": "2", "UV_HTTP_RETRIES": "2",
        **os.environ,
        "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1",
    }  # fmt: skip
    for pip_name, uv_name in MIRRORS.items():
        if pip_name in environ:
            environ.setdefault(uv_name, environ[pip_name])
    pip: list[Path | str] = [python, "-m", "pip", "--quiet"]
    requirements = ["--require-hashes", "-r", FILES[kind]]
    project = ["--no-deps", "--no-build-isolation", "-e", "."]
    try:
        run(log, *pip, "install", "--require-hashes", "-r", INSTALLER, env=environ)
        uv: list[Path | str] = [venv / "bin" / "uv", "pip", "install", "--quiet", "--python", python]
        # Eight processes import these packages at every start of the stack: compiled once, that is seconds each time.
        run(log, *uv, "--compile-bytecode", *requirements, env=environ)
        run(log, *uv, *project, env=environ)
    except (OSError, InstallFailed) as error:
        if (isinstance(error, OSError) and error.errno == errno.ENOSPC) or cause_of(str(error)) in HOPELESS:
            raise
        print("uv failed; installing with pip, which takes longer", file=sys.stderr)
        run(log, *pip, "install", *requirements, env=environ)
        run(log, *pip, "install", *project, env=environ)


def compile_sources(venv: Path, log: Path) -> None:
    """Also where the environment forbids to write bytecode on import, as many containers do."""
    if os.access(ROOT, os.W_OK):
        run(log, venv / "bin" / "python", "-m", "compileall", "-q", *SOURCES)


def make_current(venv: Path, kind: str) -> None:
    venv.mkdir(parents=True, exist_ok=True)
    log = venv / "install.log"
    # Not `.lock`: by that name uv locks the environment itself.
    with open(venv / ".berth-lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of two that start together the second finds it done
        if up_to_date(venv, kind):
            return
        print(f"installing into {os.path.relpath(venv, ROOT) if ROOT in venv.parents else venv} (once) …", flush=True)
        log.write_text("")
        try:
            make_venv(venv, log)
            install(venv, kind, log)
            compile_sources(venv, log)
        except InstallFailed as error:
            cause = cause_of(str(error)) or str(error).strip().splitlines()[-1]
            if cause == DISK_FULL:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
            sys.exit(f"The installation failed: {cause}. Details: {log}")
        (venv / f".berth-{kind}").write_text(fingerprint(kind))


def main() -> None:
    venv, kind = Path(sys.argv[1]).absolute(), sys.argv[2]
    try:
        if not up_to_date(venv, kind):
            make_current(venv, kind)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            free = shutil.disk_usage(venv if venv.exists() else venv.parent).free // 2**20
            sys.exit(f"The installation failed: {DISK_FULL} ({venv}: {free} MiB free; about 1 GiB is needed).")
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM) and not os.environ.get("BERTH_HOME"):
            sys.exit(f"{venv.parent} is read-only: set BERTH_HOME to a folder that can be written to.")
        sys.exit(f"The installation failed: {error.filename or venv}: {error.strerror or error}.")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
