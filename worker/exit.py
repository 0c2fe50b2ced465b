"""How every process of Berth ends."""

from __future__ import annotations

import logging
import os
import sys
from typing import NoReturn

SCHEMA_MISMATCH_EXIT_CODE = 3
"""``berth migrate`` ends with it when other migrations made the schema. The reason is its last line on stderr."""


def exit_process(code: int) -> NoReturn:
    """Flush what was written and leave at once with ``code``.

    The interpreter's own teardown can crash a process that used the Temporal SDK (return code 134 or 139,
    temporalio/sdk-python#300), and then the code that was meant is lost.
    """
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            # The reader has closed the pipe; the exit code stays as it is.
            continue
    os._exit(code)
