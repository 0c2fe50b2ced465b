"""Delivery of stored events: signed as Stripe signs, again and again until a 2xx, over restarts.

Events of one payment leave one after another in the order they happened (each one's first attempt; a failed one is
retried later and does not hold up the rest), events of different payments side by side.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import json
import logging
import time
from dataclasses import dataclass

import aiohttp

from deploy.local.stripe.faults import Fault, FaultInjector
from deploy.local.stripe.store import SandboxStore

_BACKOFF = (1.0, 2.0, 5.0, 10.0, 20.0, 30.0)
_TIMEOUT = aiohttp.ClientTimeout(total=15.0)
MAX_CONCURRENT_DELIVERIES = 16
_REORDER_WINDOW = 1.0

log = logging.getLogger("berth.sandbox.stripe")


def signature(payload: bytes, secret: str, at: int) -> str:
    """The `Stripe-Signature` header for a payload sent at Unix second `at`."""
    digest = hmac.new(secret.encode(), b"%d." % at + payload, hashlib.sha256).hexdigest()
    return f"t={at},v1={digest}"


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookEndpoint:
    url: str
    secret: str


@dataclass(slots=True, kw_only=True)
class _HeldDeliveries:
    fault: Fault
    events: list[str]


class WebhookDispatcher:
    """One task that hands due deliveries to short-lived senders. `endpoint` None keeps everything queued."""

    def __init__(self, store: SandboxStore, faults: FaultInjector, endpoint: WebhookEndpoint | None) -> None:
        self.endpoint = endpoint
        self._store = store
        self._faults = faults
        self._wake = asyncio.Event()
        self._attempted = asyncio.Event()
        self._busy_ordering_keys: set[str] = set()
        self._senders: set[asyncio.Task[None]] = set()
        self._held: list[_HeldDeliveries] = []
        self._reorder_flush = 0.0
        self._session: aiohttp.ClientSession | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        # A death with held or waiting deliveries must not delay them further.
        self._store.execute("UPDATE deliveries SET held = 0, due = MIN(due, ?) WHERE done = 0", (time.time(),))
        self._session = aiohttp.ClientSession(timeout=_TIMEOUT)
        self._task = asyncio.create_task(self._run(), name="stripe-webhooks")

    async def stop(self) -> None:
        tasks = [task for task in (self._task, *self._senders) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._session is not None:
            await self._session.close()

    def notify(self) -> None:
        """Something was queued, cleared or configured."""
        self._wake.set()

    async def redeliver(self, *, event: str | None, reverse: bool, wait: float) -> tuple[int, int]:
        """Queue every subscribed event again; (how many, how many were answered 2xx once each had its turn)."""
        self._store.execute(
            "UPDATE deliveries SET done = 0, attempts = 0, judged = 0, held = 0, due = 0, round = round + 1, "
            "place = (SELECT seq FROM objects WHERE id = event) * ? WHERE ? IS NULL OR event = ?",
            (-1 if reverse else 1, event, event),
        )
        self.notify()
        until = time.monotonic() + wait
        while self.endpoint is not None and time.monotonic() < until and self._count("attempts = 0 AND held = 0"):
            self._attempted.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, until - time.monotonic())):
                    await self._attempted.wait()
        chosen = event or "*"
        return self._count("event GLOB ?", chosen), self._count("done = 1 AND event GLOB ?", chosen)

    def _count(self, where: str, *values: str) -> int:
        return int(self._store.execute(f"SELECT COUNT(*) FROM deliveries WHERE {where}", values)[0][0])  # noqa: S608

    async def _run(self) -> None:
        while True:
            self._wake.clear()
            pause = self._dispatch()
            # Not wait_for: on Python 3.11 it can swallow a cancellation that meets the wake-up.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._wake.wait()

    def _dispatch(self) -> float:
        """Start what can start now; seconds until it is worth looking again."""
        now = time.time()
        self._release_held()
        if self.endpoint is None or len(self._senders) >= MAX_CONCURRENT_DELIVERIES:
            return 5.0
        rows = self._store.execute(
            "SELECT event, lane, round, judged FROM deliveries WHERE done = 0 AND held = 0 AND due <= ? "
            "ORDER BY place LIMIT 500",
            (now,),
        )
        for row in rows:
            if not row["judged"] and self._apply_first_attempt_faults(row["event"], now):
                continue
            if row["lane"] in self._busy_ordering_keys or len(self._senders) >= MAX_CONCURRENT_DELIVERIES:
                continue
            duplicate = self._faults.consume(("duplicate_webhook",)) is not None if not row["judged"] else False
            self._store.execute("UPDATE deliveries SET judged = 1 WHERE event = ?", (row["event"],))
            self._busy_ordering_keys.add(row["lane"])
            sender = asyncio.create_task(self._deliver(row["event"], row["lane"], row["round"], duplicate))
            self._senders.add(sender)
        soonest = self._store.execute("SELECT MIN(due) FROM deliveries WHERE done = 0 AND held = 0 AND due > ?", (now,))
        pauses = [5.0, *(held.fault.until - time.monotonic() for held in self._held if held.fault.until is not None)]
        if soonest[0][0] is not None:
            pauses.append(soonest[0][0] - now)
        return max(0.005, min(pauses))

    def _apply_first_attempt_faults(self, event: str, now: float) -> bool:
        """Apply a hold or a reordering to a delivery's first attempt; True when it must not leave now."""
        fault = self._faults.consume(("hold_webhook", "reorder_webhook"))
        if fault is None:
            return False
        if fault.kind == "hold_webhook":
            self._store.execute("UPDATE deliveries SET judged = 1, held = 1 WHERE event = ?", (event,))
            for held in self._held:
                if held.fault is fault:
                    held.events.append(event)
                    break
            else:
                self._held.append(_HeldDeliveries(fault=fault, events=[event]))
            return True
        if self._reorder_flush <= now:
            self._reorder_flush = now + _REORDER_WINDOW
        self._store.execute(
            "UPDATE deliveries SET judged = 1, due = ?, place = -ABS(place) WHERE event = ?",
            (self._reorder_flush, event),
        )
        return True

    def _release_held(self) -> None:
        """Let go what was held by a fault that was cleared or ran out of time (not one that ran out of count)."""
        now = time.monotonic()
        for held in list(self._held):
            if held.fault.until is None or held.fault.until > now:
                continue
            self._held.remove(held)
            self._unhold(held.events)

    def release_all(self) -> None:
        """The hold fault was cleared."""
        for held in self._held:
            self._unhold(held.events)
        self._held.clear()
        self.notify()

    def _unhold(self, events: list[str]) -> None:
        for event in events:
            self._store.execute("UPDATE deliveries SET held = 0 WHERE event = ?", (event,))

    async def _deliver(self, event: str, lane: str, redelivery_count: int, twice: bool) -> None:
        try:
            sends = [self._send(event) for _ in range(2 if twice else 1)]
            outcomes = await asyncio.gather(*sends)
            accepted = any(outcome.isdigit() and 200 <= int(outcome) < 300 for outcome in outcomes)
            self._record_attempt(event, redelivery_count, accepted, outcomes[0])
        finally:
            self._busy_ordering_keys.discard(lane)
            if (sender := asyncio.current_task()) is not None:
                self._senders.discard(sender)
            self._attempted.set()
            self.notify()

    def _record_attempt(self, event: str, turn: int, accepted: bool, outcome: str) -> None:
        rows = self._store.execute("SELECT attempts FROM deliveries WHERE event = ? AND round = ?", (event, turn))
        if not rows:
            return
        attempts = rows[0]["attempts"] + 1
        pause = _BACKOFF[min(attempts, len(_BACKOFF)) - 1]
        with self._store.transaction():
            self._store.execute(
                "UPDATE deliveries SET attempts = ?, done = ?, due = ?, outcome = ? WHERE event = ? AND round = ?",
                (attempts, int(accepted), time.time() + pause, outcome, event, turn),
            )
            body = self._store.get("event", event)
            if accepted and body is not None and body["pending_webhooks"]:
                self._store.put({**body, "pending_webhooks": 0})
        if not accepted:
            log.info("webhook %s refused (%s), attempt %d, again in %.0f s", event, outcome, attempts, pause)

    async def _send(self, event: str) -> str:
        """One attempt; the HTTP status as text, or the name of what went wrong."""
        endpoint, session = self.endpoint, self._session
        body = self._store.get("event", event)
        if endpoint is None or session is None or body is None:
            return "no endpoint"
        payload = json.dumps(body, indent=2).encode()
        headers = {
            "Content-Type": "application/json; charset=utf-8",
            "User-Agent": "Stripe/1.0 (+https://stripe.com/docs/webhooks)",
            "Stripe-Signature": signature(payload, endpoint.secret, int(time.time())),
        }
        try:
            async with session.post(endpoint.url, data=payload, headers=headers, allow_redirects=False) as reply:
                await reply.read()
                return str(reply.status)
        except (aiohttp.ClientError, TimeoutError, OSError) as refused:
            return type(refused).__name__
