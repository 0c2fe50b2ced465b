"""``berth simulate``: one subscription's life on a stack of its own that leaves nothing behind."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from worker.simulate.events import EARLIEST, MOST_MONTHS, Events, WrongEvents, instant_of


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--months", type=_months, required=True, metavar="N", help=f"how long, 1 to {MOST_MONTHS}")
    parser.add_argument("--plan", metavar="CODE", help="default: the catalogue's example")
    parser.add_argument(
        "--start",
        type=_instant,
        metavar="RFC3339",
        help="when the instance becomes ready and billing begins, in the past or in the future; default: now",
    )
    parser.add_argument("--events", type=Path, metavar="FILE", help="what happens on the way (see worker/simulate)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the story")


def run(told: argparse.Namespace) -> int:
    began = time.monotonic()
    start: datetime = told.start or datetime.now(UTC).replace(microsecond=0)
    try:
        events = Events.read(told.events, start, told.months) if told.events else Events()
    except WrongEvents as wrong:
        sys.stderr.write(f"berth simulate: {wrong}\n")
        return 2
    return asyncio.run(_run(told, start, events, began))


async def _run(told: argparse.Namespace, start: datetime, events: Events, began: float) -> int:
    # What this needs takes a second to import: the servers start meanwhile.
    from worker.simulate.servers import Servers

    stopped = 0
    whole = asyncio.current_task()

    def stop(number: int) -> None:
        nonlocal stopped
        stopped = number
        if whole is not None:
            whole.cancel()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop, number)
    try:
        with Servers(with_cards=events.need_cards) as servers:
            from worker.simulate import report
            from worker.simulate.life import NoSuchPlan, live

            try:
                story = await live(servers, told.plan, start, told.months, events)
            except NoSuchPlan as wrong:
                sys.stderr.write(f"berth simulate: {wrong}\n")
                return 2
    except asyncio.CancelledError:
        if not stopped:
            raise
        return 128 + stopped
    seconds = round(time.monotonic() - began, 2)
    sys.stdout.write(report.as_json(story, seconds) if told.json else report.as_text(story, seconds))
    return 0


def _months(given: str) -> int:
    try:
        months = int(given)
    except ValueError:
        months = 0
    if not 1 <= months <= MOST_MONTHS:
        raise argparse.ArgumentTypeError(f"{given!r} is not a whole number from 1 to {MOST_MONTHS}")
    return months


def _instant(given: str) -> datetime:
    try:
        found = instant_of(given)
    except ValueError:
        found = None
    if found is None or found < EARLIEST:
        raise argparse.ArgumentTypeError(
            f"{given!r} is not an instant from {EARLIEST.year} on, such as 2027-01-31T00:00:00Z"
        )
    return found


__all__ = ["arguments", "run"]
