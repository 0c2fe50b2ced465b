"""Garbage collection of the API's and the worker's process."""

from __future__ import annotations

import gc

YOUNG_OBJECTS = 10_000
"""Objects after which the youngest generation is collected (Python's default: 700). The oldest one is collected after a
million instead of 70,000, so that evicted workflows, which hold cycles, keep some 100 MB at most."""


def tune_garbage_collection() -> None:
    """Exempt what the process has loaded from collection, and collect what it allocates less often.

    Call it once everything is imported. Otherwise each collection of the oldest generation walks every module, which
    stops the process for 100 ms and more, some request or workflow task in a hundred.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS, 10, 10)
