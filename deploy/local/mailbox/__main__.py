"""`python -m deploy.local.mailbox`: serve until SIGTERM or SIGINT."""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import sys
from pathlib import Path

from deploy.local.mailbox.mailbox import Mailbox


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m deploy.local.mailbox", description="A mailbox on loopback.")
    parser.add_argument("--http-port", type=int, default=0, help="0 chooses a free one")
    parser.add_argument("--smtp-port", type=int, default=0, help="0 chooses a free one")
    parser.add_argument("--state", type=Path, required=True, help="folder that keeps the mails")
    return parser.parse_args()


async def _serve(arguments: argparse.Namespace) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with Mailbox(
        state_dir=arguments.state, http_port=arguments.http_port, smtp_port=arguments.smtp_port
    ) as mailbox:
        sys.stdout.write(f"mailbox on {mailbox.http_url}, SMTP on {mailbox.smtp_host}:{mailbox.smtp_port}\n")
        sys.stdout.flush()
        await stop.wait()


def main() -> None:
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    try:
        asyncio.run(_serve(_arguments()))
    except OSError as error:
        # Most often the port is taken.
        raise SystemExit(f"mailbox: {error}") from error


if __name__ == "__main__":
    main()
