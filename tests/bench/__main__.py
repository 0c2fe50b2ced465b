"""``python -m tests.bench``: run the benchmarks, print the table, write ``bench/results.json``."""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import structlog

from tests.bench import orders, renewals
from tests.bench.ground import ground
from tests.bench.results import Figure, table, write
from worker.exit import leave

RESULTS = Path(__file__).resolve().parents[2] / "bench" / "results.json"
PARTS = ("trips", "latency", "orders", "renewals")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How much is measured: groups of renewals, a few before that ``warm`` up, ``rounds`` of ``round`` orders,
    ``requests`` one by one."""

    groups: tuple[int, ...] = (1000, 2000, 2000)
    warm: tuple[int, ...] = (10, 50)
    rounds: int = 2
    round: int = 40
    requests: int = 150
    trips: int = 5


QUICK = Sizes(groups=(3, 3), warm=(2,), rounds=1, round=2, requests=5, trips=1)


async def run(sizes: Sizes, parts: list[str]) -> list[Figure]:
    figures: list[Figure] = []
    for part in parts:
        began = time.monotonic()
        async with ground() as made:
            match part:
                case "trips":
                    figures += await orders.trips(made, count=sizes.trips)
                case "latency":
                    figures += await orders.latency(made, requests=sizes.requests)
                case "orders":
                    figures += await orders.throughput(made, rounds=sizes.rounds, size=sizes.round)
                case _:
                    figures += await renewals.measure(made, sizes.groups, sizes.warm)
        sys.stderr.write(f"{part}: {time.monotonic() - began:.0f} s\n")
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that it runs, measures nothing")
    parser.add_argument("--only", action="append", choices=PARTS, help="one part; may be repeated")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FILE")
    told = parser.parse_args()
    sizes = QUICK if told.quick else Sizes()
    # A line per request would be measured too, and stand in the table.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    figures = asyncio.run(run(sizes, told.only or list(PARTS)))
    print(table(figures))
    write(figures, told.results)
    leave(0)


if __name__ == "__main__":
    main()
