"""Known vulnerabilities of what is pinned. Holds, with a word about it, where the service cannot be reached."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
UNREACHABLE = ("ConnectionError", "ServiceError", "Max retries exceeded", "Name or service not known", "timed out")
LONGEST = 240


def main() -> int:
    argv = [
        sys.executable, "-m", "pip_audit", "--progress-spinner", "off", "--timeout", "10",
        "--require-hashes", "--disable-pip", "-r", "requirements.txt",
    ]  # fmt: skip
    try:
        done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=LONGEST, check=False)
    except subprocess.TimeoutExpired:
        print("not reachable within its time: nothing was audited")
        return 0
    said = f"{done.stdout}\n{done.stderr}".strip()
    if done.returncode != 0 and any(sign in done.stderr for sign in UNREACHABLE):
        print("not reachable: nothing was audited")
        return 0
    print(said)
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
