"""Starts the one-machine stack, keeps every process of it alive, and stops it in order. `make run` is this."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from deploy.local.first_order import place_first_order
from deploy.local.home import Home, HomeInUse, write_atomically
from deploy.local.ports import is_free
from deploy.local.process import Identity, Process, end
from deploy.local.screen import Screen
from deploy.local.stack import Component, Misconfigured, Stack

# Seconds.
LOOK = 0.1
"""Between two looks at a process."""
SERVES_WITHIN = 120.0
"""A process that does not serve by then is started anew."""
CHECK_EVERY = 5.0
SICK_AFTER = 60.0
"""A process that lives but has not answered for so long is started anew. Long: a busy machine is no illness."""
STEADY_AFTER = 30.0
"""A process that lived so long does not count as one that crashes at its start."""
LONGEST_PAUSE = 3.0
ATTEMPTS = 5
"""Failed starts in a row, before it ever served, after which the stack gives up."""


class StartFailed(RuntimeError):
    """The stack cannot come up; the message says why."""


class Supervisor:
    """Runs one stack until it is told to stop."""

    def __init__(self, stack: Stack, screen: Screen) -> None:
        self.stack = stack
        self.home = stack.home
        self.screen = screen
        self.began = time.monotonic()
        self._stop = asyncio.Event()
        self._serves = {name: asyncio.Event() for name in (*stack.components, "schema")}
        self._running: dict[str, Identity] = {}
        self._card_shown = False
        self._steps: list[Process] = []

    def stop(self, why: str = "") -> None:
        """Ask for the end; asked again, everything is killed at once."""
        self.screen.note(f"{why}: stopping")
        if self._stop.is_set():
            for process in self._processes():
                process.signal(signal.SIGKILL)
        self._stop.set()

    async def run(self) -> None:
        """Serve until stopped. Raises `StartFailed`."""
        await self._clear_leftovers()
        if not is_free(self.stack.port):
            raise StartFailed(f"port {self.stack.port} is taken; choose another with BERTH_PORT")
        tasks = [asyncio.create_task(self._keep(component)) for component in self.stack.components.values()]
        tasks.append(asyncio.create_task(self._prepare_schema()))
        tasks.append(asyncio.create_task(self._announce()))
        stopping = asyncio.create_task(self._stop.wait())
        try:
            waiting: set[asyncio.Future[Any]] = {*tasks, stopping}
            while not stopping.done():
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
        finally:
            self._stop.set()
            for task in (*tasks, stopping):
                task.cancel()
            await asyncio.gather(*tasks, stopping, return_exceptions=True)
            await self._shut_down()

    # ------------------------------------------------------------ one process

    async def _keep(self, component: Component) -> None:
        """Start it once what it needs serves, and again whenever it ends."""
        process, failures = component.process, 0
        serves = self._serves[component.name]
        while True:
            for needed in component.needs:
                await self._serves[needed].wait()
            begun = time.monotonic()
            try:
                if component.prepare is not None:
                    await asyncio.to_thread(component.prepare)
                # On the main thread: on Linux a child is told of the death of the thread that started it.
                process.start()
                self._record(component.name, process)
                await self._until_it_serves(component)
                if component.settle is not None:
                    await asyncio.to_thread(component.settle)
                if not serves.is_set():
                    self.screen.good(component.name, f"{time.monotonic() - self.began:.1f} s")
                else:
                    self.screen.note(f"{component.name} serves again (pid {process.pid})")
                serves.set()
                await self._until_it_ends(component)
                reason = f"ended with {process.exit_code}" if not process.alive else "did not answer"
            except (OSError, RuntimeError) as error:
                reason = str(error)
                if not serves.is_set() and failures + 1 >= ATTEMPTS:
                    words = await asyncio.to_thread(process.last_words)
                    raise StartFailed(f"{component.name} does not start: {reason}\n{words}") from error
            if process.alive:
                await asyncio.to_thread(process.stop)
            failures = 0 if time.monotonic() - begun > STEADY_AFTER else failures + 1
            self.screen.note(f"{component.name} {reason.splitlines()[0]}; starting it again")
            # The first time at once; a crash loop ever more slowly.
            await asyncio.sleep(min(0.1 * 2 ** (failures - 1), LONGEST_PAUSE) if failures else 0)

    async def _until_it_serves(self, component: Component) -> None:
        deadline = time.monotonic() + SERVES_WITHIN
        while not await asyncio.to_thread(component.ready):
            if not component.process.alive:
                raise StartFailed(f"ended with {component.process.exit_code} before it served")
            if time.monotonic() > deadline:
                raise StartFailed(f"did not serve within {SERVES_WITHIN:g} s")
            await asyncio.sleep(LOOK / 2)

    async def _until_it_ends(self, component: Component) -> None:
        checked = well = time.monotonic()
        while component.process.alive:
            await asyncio.sleep(LOOK)
            now = time.monotonic()
            if now - checked < CHECK_EVERY:
                continue
            if await asyncio.to_thread(component.ready):
                well = time.monotonic()
            elif now - well > SICK_AFTER:
                return
            checked = time.monotonic()

    def _record(self, name: str, process: Process) -> None:
        identity = Identity.of(process.pid) if process.pid is not None else None
        if identity is not None:
            self._running[name] = identity
        self.home.record_processes(self._running)
        if self._card_shown:
            self._write_card()

    # ------------------------------------------------------------ the whole

    async def _prepare_schema(self) -> None:
        await self._serves["postgres"].wait()
        for step in self.stack.schema_steps():
            self._steps.append(step)
            step.start()
            await self._end_of(step)
            if step.exit_code != 0:
                raise StartFailed(f"{step.name} failed\n{step.last_words(40)}")
            self.screen.good(step.name, f"{time.monotonic() - self.began:.1f} s")
        self.stack.schema_done()
        self._serves["schema"].set()

    async def _end_of(self, process: Process) -> None:
        while process.alive:  # noqa: ASYNC110 - nothing tells of a child's end but looking
            await asyncio.sleep(LOOK / 2)

    async def _announce(self) -> None:
        """Once everything serves: write the card, place the first order, show the card."""
        for serves in self._serves.values():
            await serves.wait()
        self._write_card()
        self._card_shown = True
        if not self.home.state.get("begun"):
            wanted = self.stack.environ.get("BERTH_DEMO") != "0"
            if not wanted or await asyncio.to_thread(place_first_order, self._card(), self.screen, self._stop.is_set):
                self.home.remember(begun=True)
        self.screen.card(self._card(), {"Logs": str(self.home.logs), "Card": str(self.home.card_file)})
        self.screen.note("Ctrl-C stops everything; the next start finds it as it was.")

    def _card(self) -> dict[str, object]:
        pids = {"supervisor": os.getpid()} | {name: identity.pid for name, identity in self._running.items()}
        return self.stack.card(pids)

    def _write_card(self) -> None:
        write_atomically(self.home.card_file, self._card())

    def _processes(self) -> list[Process]:
        return [component.process for component in self.stack.components.values()] + self._steps

    async def _clear_leftovers(self) -> None:
        """End what a killed supervisor of this home left behind. PostgreSQL sees to its own."""
        self.home.card_file.unlink(missing_ok=True)
        leftovers = [identity for name, identity in self.home.recorded_processes().items() if name != "postgres"]
        await asyncio.gather(*(asyncio.to_thread(end, identity, patience=2.0) for identity in leftovers))

    async def _shut_down(self) -> None:
        """The API first, so that nothing new comes in; then the worker; what they stand on last."""
        self.home.card_file.unlink(missing_ok=True)
        for step in self._steps:
            await asyncio.to_thread(step.stop)
        components = self.stack.components.values()
        for stage in sorted({component.stage for component in components}):
            chosen = [component.process for component in components if component.stage == stage]
            await asyncio.gather(*(asyncio.to_thread(process.stop) for process in chosen))
        self.stack.postgres.tidy()
        self.home.record_processes({})
        self.screen.note("stopped")


async def serve(home: Home, screen: Screen, make: Callable[[Home], Stack] = Stack) -> int:
    """Serve one home until a signal ends it; returns the exit code."""
    try:
        with home.locked():
            supervisor = Supervisor(make(home), screen)
            loop = asyncio.get_running_loop()
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                loop.add_signal_handler(number, supervisor.stop, number.name)
            await supervisor.run()
    except HomeInUse as error:
        screen.bad("this home is in use", f"a stack runs on {home.path} already (pid {error}); see {home.card_file}")
        return 1
    except (StartFailed, Misconfigured) as error:
        screen.bad("the stack did not start", str(error))
        return 1
    return 0


def main() -> int:
    # A parent may have left signals blocked or ignored (make, nohup, a shell's background job).
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    home = Home(Path(os.environ.get("BERTH_HOME") or ".berth"))
    home.make()
    return asyncio.run(serve(home, Screen()))


if __name__ == "__main__":
    sys.exit(main())
