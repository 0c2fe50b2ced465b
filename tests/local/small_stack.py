"""A small stack: the real supervisor, PostgreSQL and Temporal; everything else is a stand-in that only answers HTTP.

Run as a program it is what `make run` runs, for tests of the supervisor alone.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from deploy.local.home import Home
from deploy.local.process import Process
from deploy.local.screen import Screen
from deploy.local.stack import Component, Stack
from deploy.local.supervisor import serve

STAND_IN = """
import http.server, sys
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(b"{}")
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Answer).serve_forever()
"""


class SmallStack(Stack):
    def program(self, name: str, argv: list[str], *, patience: float = 3.0) -> Process:
        port = self.port if name == "api" else self.ports["worker_metrics"]
        return super().program(name, [sys.executable, "-c", STAND_IN, str(port)], patience=patience)

    def simulation(self, name: str, path: str, argv: list[str]) -> Component:
        stand_in = [sys.executable, "-c", STAND_IN, str(self.ports[name])]
        return super().simulation(name, path, stand_in)

    def schema_steps(self) -> list[Process]:
        return []


if __name__ == "__main__":
    home = Home(Path(os.environ["BERTH_HOME"]))
    home.make()
    sys.exit(asyncio.run(serve(home, Screen(), SmallStack)))
