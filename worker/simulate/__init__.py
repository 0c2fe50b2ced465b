"""``berth simulate``: simulates one subscription's lifecycle on a separate, temporary stack."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from api.startup_errors import CannotStart
from worker.simulate.events import EARLIEST_START, MAX_MONTHS, Events, InvalidEventsFile, parse_instant


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--months",
        type=_parse_months,
        required=True,
        metavar="N",
        help=f"number of months to simulate (1 to {MAX_MONTHS})",
    )
    parser.add_argument("--plan", metavar="CODE", help="plan code; default: the example plan of the catalog")
    parser.add_argument(
        "--start",
        type=_parse_instant,
        metavar="RFC3339",
        help="start of billing (RFC 3339), past or future; default: now",
    )
    parser.add_argument("--events", type=Path, metavar="FILE", help="JSON file of events (see worker/simulate)")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(options: argparse.Namespace) -> int:
    began = time.monotonic()
    start: datetime = options.start or datetime.now(UTC).replace(microsecond=0)
    try:
        events = Events.read(options.events, start, options.months) if options.events else Events()
    except InvalidEventsFile as wrong:
        sys.stderr.write(f"berth simulate: {wrong}\n")
        return 2
    return asyncio.run(_run(options, start, events, began))


async def _run(options: argparse.Namespace, start: datetime, events: Events, began: float) -> int:
    # Imported late: the servers start while the other modules load.
    from deploy.local.postgres import PostgresError
    from deploy.local.temporal import TemporalError
    from worker.simulate.servers import ServerFailed, SimulationServers

    stopped = 0
    main_task = asyncio.current_task()

    def stop(number: int) -> None:
        nonlocal stopped
        stopped = number
        if main_task is not None:
            main_task.cancel()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop, number)
    try:
        with SimulationServers(with_cards=events.needs_card_gateway) as servers:
            from worker.simulate import report
            from worker.simulate.simulation import ProvisioningFailed, UnknownPlan, simulate_subscription

            try:
                simulated = await simulate_subscription(servers, options.plan, start, options.months, events)
            except UnknownPlan as wrong:
                sys.stderr.write(f"berth simulate: {wrong}\n")
                return 2
            except ProvisioningFailed as error:
                raise CannotStart(str(error)) from error
    except (PostgresError, ServerFailed, TemporalError) as error:
        raise CannotStart(str(error)) from error
    except asyncio.CancelledError:
        if not stopped:
            raise
        return 128 + stopped
    seconds = round(time.monotonic() - began, 2)
    sys.stdout.write(report.render_json(simulated, seconds) if options.json else report.render_text(simulated, seconds))
    return 0


def _parse_months(text: str) -> int:
    try:
        months = int(text)
    except ValueError:
        months = 0
    if not 1 <= months <= MAX_MONTHS:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 to {MAX_MONTHS}")
    return months


def _parse_instant(text: str) -> datetime:
    try:
        instant = parse_instant(text)
    except ValueError:
        instant = None
    if instant is None or instant < EARLIEST_START:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not an instant from {EARLIEST_START.year} on, such as 2027-01-31T00:00:00Z"
        )
    return instant


__all__ = ["arguments", "run"]
