"""`python -m deploy.local.mailbox`: serve until SIGTERM or SIGINT."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from deploy.local.mailbox.mailbox import Mailbox
from deploy.local.server_process import run_server


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m deploy.local.mailbox", description="A mailbox on loopback.")
    parser.add_argument("--http-port", type=int, default=0, help="0 chooses a free one")
    parser.add_argument("--smtp-port", type=int, default=0, help="0 chooses a free one")
    parser.add_argument("--state", type=Path, required=True, help="folder that keeps the mails")
    return parser.parse_args()


def main() -> None:
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    arguments = _arguments()
    run_server(
        "mailbox",
        lambda: Mailbox(state_dir=arguments.state, http_port=arguments.http_port, smtp_port=arguments.smtp_port),
        lambda mailbox: f"mailbox on {mailbox.http_url}, SMTP on {mailbox.smtp_host}:{mailbox.smtp_port}",
    )


if __name__ == "__main__":
    main()
