"""Makes the virtual environment: `python3 bootstrap.py FOLDER run|dev`.

Parses under every Python since 2.7: an old interpreter gets an answer in words instead of a SyntaxError. It hands over
to `environment.py` in the first interpreter on PATH that is new enough.
"""

import os
import runpy
import subprocess
import sys

# The oldest that `environment.py` runs in. The virtual environment itself gets 3.11 or newer.
OLDEST = (3, 8)
CANDIDATES = ["python3.%d" % minor for minor in range(14, 10, -1)]


def works(python):
    # type: (str) -> bool
    """Whether the program runs: a version manager's placeholder exists on PATH and fails when it is executed."""
    with open(os.devnull, "r+") as null_device:
        try:
            return subprocess.call([python, "-c", ""], stdin=null_device, stdout=null_device, stderr=null_device) == 0
        except OSError:
            return False


def main():
    # type: () -> None
    program = os.path.join(os.path.dirname(os.path.abspath(__file__)), "environment.py")
    if sys.version_info >= OLDEST:
        runpy.run_path(program, run_name="__main__")
        return
    for python in CANDIDATES:
        if works(python):
            os.execvp(python, [python, program] + sys.argv[1:])
    sys.exit(
        "Berth needs Python 3.11 to 3.14: python3 is Python %d.%d, and no newer one was found on PATH."
        % tuple(sys.version_info[:2])
    )


if __name__ == "__main__":
    main()
