"""`make run`: starts the one-machine stack, restarts processes that fail, and stops everything in order."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from deploy.local.console import Console
from deploy.local.data_directory import Home, HomeInUse, write_atomically
from deploy.local.first_order import place_first_order
from deploy.local.process import ChildProcess, ProcessIdentity, terminate_process
from deploy.local.settings_check import require_valid_settings
from deploy.local.stack import ConfigurationError, Stack, StackProcess
from deploy.ports import is_free
from worker.exit import SCHEMA_MISMATCH_EXIT_CODE

# Seconds.
POLL_INTERVAL = 0.1
"""Time between two liveness checks of a process."""
READY_TIMEOUT = 120.0
"""A process that is not ready by then is restarted."""
HEALTH_CHECK_INTERVAL = 5.0
UNHEALTHY_TIMEOUT = 60.0
"""A running process that has not answered for so long is restarted. Long, so that a busy machine is not a failure."""
STABLE_AFTER = 30.0
"""A process that ran this long resets its restart backoff."""
MAX_RESTART_BACKOFF = 3.0
MIN_FREE_BYTES = 96 * 2**20
"""A new database and the logs of a first order need some 80 MiB."""
CARD_GUARD = Path(__file__).with_name("card_guard.py")
MAX_START_ATTEMPTS = 5
"""Failed starts in a row, before the first ready state, after which the stack stops."""


class StartFailed(RuntimeError):
    """The stack cannot start; the message names the cause."""


class Supervisor:
    """Runs one stack until a signal stops it."""

    def __init__(self, stack: Stack, screen: Console) -> None:
        self.stack = stack
        self.home = stack.home
        self.screen = screen
        self.started_at = time.monotonic()
        self._stop = asyncio.Event()
        self._ready_events = {name: asyncio.Event() for name in (*stack.components, "schema")}
        self._running: dict[str, ProcessIdentity] = {}
        self._summary_printed = False
        self._steps: list[ChildProcess] = []
        self._card_guard: subprocess.Popen[bytes] | None = None

    def stop(self, why: str = "") -> None:
        """Request the stop. A second request kills every process at once."""
        self.screen.event(f"received {why}: stopping")
        if self._stop.is_set():
            for process in self._processes():
                process.signal(signal.SIGKILL)
        self._stop.set()

    async def run(self) -> None:
        """Serve until stopped. Raises `StartFailed`."""
        await self._stop_stale_processes()
        if not is_free(self.stack.port):
            raise StartFailed(f"port {self.stack.port} is taken; choose another with BERTH_PORT")
        self._start_card_guard()
        tasks = [asyncio.create_task(self._supervise(component)) for component in self.stack.components.values()]
        tasks.append(asyncio.create_task(self._run_schema_steps()))
        tasks.append(asyncio.create_task(self._publish_card()))
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
            await self._stop_all()

    # ------------------------------------------------------------ one process

    async def _supervise(self, component: StackProcess) -> None:
        """Start the process once its dependencies are ready, and restart it whenever it ends."""
        process, failures = component.process, 0
        ready_event = self._ready_events[component.name]
        while True:
            for needed in component.depends_on:
                await self._ready_events[needed].wait()
            attempt_started = time.monotonic()
            try:
                if component.before_start is not None:
                    await asyncio.to_thread(component.before_start)
                # On the main thread: Linux sends the parent-death signal when the thread that started the child ends.
                process.start()
                self._record_pid(component.name, process)
                await self._wait_until_ready(component)
                if component.after_ready is not None:
                    await asyncio.to_thread(component.after_ready)
                if not ready_event.is_set():
                    self.screen.success(component.name, f"{time.monotonic() - self.started_at:.1f} s")
                    self.screen.log_event(f"{component.name} is ready (pid {process.pid})")
                else:
                    self.screen.event(f"{component.name} is ready again (pid {process.pid})")
                ready_event.set()
                await self._wait_until_unhealthy_or_exited(component)
                reason = f"exited with {process.exit_code}" if not process.is_alive else "did not answer"
            except (OSError, RuntimeError) as error:
                reason = str(error)
                if not ready_event.is_set() and failures + 1 >= MAX_START_ATTEMPTS:
                    words = await asyncio.to_thread(process.log_tail)
                    raise StartFailed(f"{component.name} does not start: {reason}\n{words}") from error
            if process.is_alive:
                await asyncio.to_thread(process.stop)
            failures = 0 if time.monotonic() - attempt_started > STABLE_AFTER else failures + 1
            self.screen.event(f"{component.name}: {reason.splitlines()[0]}; restarting")
            # The first restart is immediate; a crash loop backs off.
            await asyncio.sleep(min(0.1 * 2 ** (failures - 1), MAX_RESTART_BACKOFF) if failures else 0)

    async def _wait_until_ready(self, component: StackProcess) -> None:
        deadline = time.monotonic() + READY_TIMEOUT
        while not await asyncio.to_thread(component.is_ready):
            if not component.process.is_alive:
                raise StartFailed(f"exited with {component.process.exit_code} before it was ready")
            if time.monotonic() > deadline:
                raise StartFailed(f"not ready after {READY_TIMEOUT:g} s")
            await asyncio.sleep(POLL_INTERVAL / 2)

    async def _wait_until_unhealthy_or_exited(self, component: StackProcess) -> None:
        checked = last_healthy = time.monotonic()
        while component.process.is_alive:
            await asyncio.sleep(POLL_INTERVAL)
            now = time.monotonic()
            if now - checked < HEALTH_CHECK_INTERVAL:
                continue
            if await asyncio.to_thread(component.is_ready):
                last_healthy = time.monotonic()
            elif now - last_healthy > UNHEALTHY_TIMEOUT:
                return
            checked = time.monotonic()

    def _record_pid(self, name: str, process: ChildProcess) -> None:
        identity = ProcessIdentity.of(process.pid) if process.pid is not None else None
        if identity is not None:
            self._running[name] = identity
        self.home.save_processes(self._running)
        if self._summary_printed:
            self._write_card()

    # ------------------------------------------------------------ the stack

    async def _run_schema_steps(self) -> None:
        await self._ready_events["postgres"].wait()
        for step in self.stack.pending_schema_steps():
            self._steps.append(step)
            step.start()
            await self._wait_for_exit(step)
            if step.exit_code == SCHEMA_MISMATCH_EXIT_CODE:
                raise StartFailed(
                    f"{self.home.path} was made by another version of the schema: run the version of Berth that made"
                    f" it, or remove the folder (its data is lost) and run `make run` again\n{step.log_tail(1)}"
                )
            if step.exit_code != 0:
                raise StartFailed(f"{step.name} failed\n{step.log_tail(40)}")
            self.screen.success(step.name, f"{time.monotonic() - self.started_at:.1f} s")
        self.stack.mark_schema_current()
        self._ready_events["schema"].set()

    async def _wait_for_exit(self, process: ChildProcess) -> None:
        while process.is_alive:  # noqa: ASYNC110 - the exit of a child has no event here
            await asyncio.sleep(POLL_INTERVAL / 2)

    async def _publish_card(self) -> None:
        """Once every process is ready: write the card, place the first order, print the card."""
        for ready_event in self._ready_events.values():
            await ready_event.wait()
        self._write_card()
        self._summary_printed = True
        if not self.home.state.get("begun"):
            placed = not self.stack.places_first_order or await asyncio.to_thread(
                place_first_order, self._card(), self.screen, self._stop.is_set
            )
            if placed:
                self.home.save_state(begun=True)
        self.screen.print_card(self._card(), {"Logs": str(self.home.logs), "Card": str(self.home.card_file)})
        self.screen.note("Press Ctrl-C to stop. Data is kept.")

    def _card(self) -> dict[str, object]:
        pids = {"supervisor": os.getpid()} | {name: identity.pid for name, identity in self._running.items()}
        return self.stack.card(pids)

    def _write_card(self) -> None:
        write_atomically(self.home.card_file, self._card())

    def _processes(self) -> list[ChildProcess]:
        return [component.process for component in self.stack.components.values()] + self._steps

    def _start_card_guard(self) -> None:
        """Start the process that removes the card if this one is killed."""
        self._card_guard = subprocess.Popen(
            [sys.executable, "-I", "-S", str(CARD_GUARD), str(self.home.card_file), str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            # Not part of the terminal's group: Ctrl-C must not end it before the supervisor.
            start_new_session=True,
        )

    async def _stop_stale_processes(self) -> None:
        """Terminate the processes that a killed supervisor left behind. PostgreSQL cleans up at its start."""
        self.home.card_file.unlink(missing_ok=True)
        leftovers = [identity for name, identity in self.home.load_processes().items() if name != "postgres"]
        await asyncio.gather(*(asyncio.to_thread(terminate_process, identity, timeout=2.0) for identity in leftovers))

    async def _stop_all(self) -> None:
        """Stop the API first, so that no new requests arrive, then the worker, then their dependencies."""
        self.home.card_file.unlink(missing_ok=True)
        for step in self._steps:
            await asyncio.to_thread(step.stop)
        components = self.stack.components.values()
        for stage in sorted({component.stop_stage for component in components}):
            chosen = [component.process for component in components if component.stop_stage == stage]
            await asyncio.gather(*(asyncio.to_thread(process.stop) for process in chosen))
        self.stack.postgres.remove_socket_directory()
        self.home.save_processes({})
        if self._card_guard is not None and self._card_guard.stdin is not None:
            self._card_guard.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._card_guard.wait(2)
        self.screen.event("stopped")


async def serve(home: Home, screen: Console, create_stack: Callable[[Home], Stack] = Stack) -> int:
    """Run the stack of one data directory until a signal stops it; return the exit code."""
    try:
        with home.locked():
            require_free_space(home.path)
            screen.event_log = home.logs / "supervisor.log"
            stack = create_stack(home)
            require_valid_settings(stack)
            supervisor = Supervisor(stack, screen)
            loop = asyncio.get_running_loop()
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                loop.add_signal_handler(number, supervisor.stop, number.name)
            await supervisor.run()
    except HomeInUse as error:
        screen.failure(
            "already running", f"stack with data directory {home.path} is running (pid {error}); see {home.card_file}"
        )
        return 1
    except (StartFailed, ConfigurationError) as error:
        screen.failure("the stack did not start", str(error))
        screen.log_event(f"the stack did not start: {error}")
        return 1
    return 0


def require_free_space(folder: Path) -> None:
    """Raises StartFailed if the file system of `folder` has no room for a database."""
    free = shutil.disk_usage(folder).free
    if free < MIN_FREE_BYTES:
        raise StartFailed(
            f"the disk is full ({folder}: {free // 2**20} MiB free, {MIN_FREE_BYTES // 2**20} MiB needed);"
            " free some space or set BERTH_HOME to another disk"
        )


def main() -> int:
    # A parent may have left signals blocked or ignored (make, nohup, a shell's background job).
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    home, screen = Home(Path(os.environ.get("BERTH_HOME") or ".berth")), Console()
    try:
        home.create()
        return asyncio.run(serve(home, screen))
    except OSError as error:
        screen.failure("the stack did not start", f"BERTH_HOME {home.path}: {error.strerror or error}")
        return 1


if __name__ == "__main__":
    sys.exit(main())
