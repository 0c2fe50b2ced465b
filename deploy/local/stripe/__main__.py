"""`python -m deploy.local.stripe`: serve until SIGTERM or SIGINT."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from deploy.local.server_process import run_server
from deploy.local.stripe.sandbox import DEFAULT_WEBHOOK_EVENTS, StripeSandbox


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m deploy.local.stripe", description="A Stripe sandbox on loopback.")
    parser.add_argument("--port", type=int, default=0, help="port to listen on; 0 chooses a free one")
    parser.add_argument("--state", type=Path, required=True, help="folder that keeps the sandbox's state")
    parser.add_argument("--webhook-url", help="where events are delivered")
    parser.add_argument("--webhook-secret", default="whsec_sandbox", help="secret that signs them")
    parser.add_argument("--webhook-event", action="append", help="type or glob to deliver; may be repeated")
    parser.add_argument("--api-key", help="the one sk_test_ key to accept; by default every one")
    return parser.parse_args()


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    arguments = _arguments()
    run_server(
        "stripe sandbox",
        lambda: StripeSandbox(
            webhook_url=arguments.webhook_url,
            webhook_secret=arguments.webhook_secret,
            state_dir=arguments.state,
            port=arguments.port,
            api_key=arguments.api_key,
            events=tuple(arguments.webhook_event or DEFAULT_WEBHOOK_EVENTS),
        ),
        lambda sandbox: f"stripe sandbox on {sandbox.url}",
    )


if __name__ == "__main__":
    main()
