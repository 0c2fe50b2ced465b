"""A small stack: the real supervisor, PostgreSQL and Temporal; everything else is a stand-in that only answers HTTP.

Run as a program it is what `make run` runs, for tests of the supervisor alone.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from deploy.local.console import Console
from deploy.local.data_directory import Home
from deploy.local.process import ChildProcess
from deploy.local.stack import Stack, StackProcess
from deploy.local.supervisor import serve
from worker.exit import SCHEMA_MISMATCH_EXIT_CODE

STAND_IN = """
import http.server, sys
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(b"{}")
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Answer).serve_forever()
"""


class SmallStack(Stack):
    def product_process(self, name: str, argv: list[str], *, stop_timeout: float = 3.0) -> ChildProcess:
        port = self.port if name == "api" else self.ports["worker_metrics"]
        return super().product_process(name, [sys.executable, "-c", STAND_IN, str(port)], stop_timeout=stop_timeout)

    def simulation_process(self, name: str, path: str, argv: list[str]) -> StackProcess:
        stand_in = [sys.executable, "-c", STAND_IN, str(self.ports[name])]
        return super().simulation_process(name, path, stand_in)

    def pending_schema_steps(self) -> list[ChildProcess]:
        return []


class OtherSchemaStack(SmallStack):
    """Its database has a schema that other migrations made."""

    def pending_schema_steps(self) -> list[ChildProcess]:
        program = f"import sys; print('the migration 0003 is another one'); sys.exit({SCHEMA_MISMATCH_EXIT_CODE})"
        return [Stack.product_process(self, "migrate", [sys.executable, "-c", program])]


if __name__ == "__main__":
    home = Home(Path(os.environ["BERTH_HOME"]))
    home.create()
    stack = OtherSchemaStack if "--other-schema" in sys.argv else SmallStack
    sys.exit(asyncio.run(serve(home, Console(), stack)))
