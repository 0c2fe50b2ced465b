"""``python -m tests.bench``: run the benchmarks, print the table, write ``bench/results.json``."""

from __future__ import annotations

import argparse
import logging
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import structlog
import uvloop

from api.garbage_collection import tune_garbage_collection
from tests.bench import aged, orders, reads, renewals
from tests.bench.ground import ground
from tests.bench.results import Figure, table, write
from worker.exit import exit_process

RESULTS = Path(__file__).resolve().parents[2] / "bench" / "results.json"
PARTS = ("trips", "latency", "reads", "orders", "renewals", "aged")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How much is measured.

    Attributes:
        groups: Renewals that are due at once, group by group.
        warm: Groups before the measurement.
        rounds, round: Number of rounds of orders and orders per round.
        requests: Orders over HTTP, one after the other.
        trips: Orders and renewals whose transactions are counted.
        aged: New and year-old subscriptions that are due at once.
        rows: Subscriptions of other organizations in the database while routes are read.
        reads: Requests per read route.
    """

    groups: tuple[int, ...] = (1000, 2000, 2000)
    warm: tuple[int, ...] = (10, 50)
    rounds: int = 2
    round: int = 40
    requests: int = 150
    trips: int = 5
    aged: int = 300
    rows: int = 20_000
    reads: int = 300


QUICK = Sizes(groups=(3, 3), warm=(2,), rounds=1, round=2, requests=5, trips=1, aged=1, rows=10, reads=5)


async def run(sizes: Sizes, parts: list[str]) -> list[Figure]:
    figures: list[Figure] = []
    for part in parts:
        started = time.monotonic()
        async with ground() as servers:
            match part:
                case "trips":
                    figures += await orders.trips(servers, count=sizes.trips)
                case "latency":
                    figures += await orders.latency(servers, requests=sizes.requests)
                case "reads":
                    figures += await reads.measure(servers, rows=sizes.rows, requests=sizes.reads)
                case "orders":
                    figures += await orders.throughput(servers, rounds=sizes.rounds, size=sizes.round)
                case "aged":
                    figures += await aged.measure(servers, sizes.aged)
                case _:
                    figures += await renewals.measure(servers, sizes.groups, sizes.warm)
        sys.stderr.write(f"{part}: {time.monotonic() - started:.0f} s\n")
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that it runs, measures nothing")
    parser.add_argument("--only", action="append", choices=PARTS, help="one part; may be repeated")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FILE")
    arguments = parser.parse_args()
    sizes = QUICK if arguments.quick else Sizes()
    # A line per request would be measured too, and stand in the table.
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        cache_logger_on_first_use=True,  # as `api.logs` does
    )
    tune_garbage_collection()
    figures = uvloop.run(run(sizes, arguments.only or list(PARTS)))
    print(table(figures))
    write(figures, arguments.results)
    exit_process(0)


if __name__ == "__main__":
    main()
