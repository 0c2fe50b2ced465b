"""The dispatcher of one channel: keeps draining its outbox, for ever.

The drain is one long activity that polls by itself, so that a quiet minute costs a handful of history events; the
workflow is what starts it again after a crash, on whichever worker is alive. It lives in real time.
"""

from __future__ import annotations

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from workflows import names, policies
    from workflows.ports.notifications import Dispatch, Drain, Notifications


@workflow.defn(name=names.NOTIFICATION_DISPATCH)
class NotificationDispatch:
    @workflow.init
    def __init__(self, given: Dispatch) -> None:
        self._away = given.away
        self._woken = False

    @workflow.run
    async def run(self, given: Dispatch) -> None:
        while not workflow.info().is_continue_as_new_suggested():
            self._woken = False
            drained = await workflow.execute_activity_method(
                Notifications.drain,
                Drain(channel=given.channel, seconds=policies.DRAIN_FOR.total_seconds()),
                task_queue=names.NOTICES,
                **policies.MAIL,
            )
            self._away = self._away + 1 if drained.away else 0
            if self._away:
                await self._pause()
        await workflow.wait_condition(workflow.all_handlers_finished)
        workflow.continue_as_new(Dispatch(channel=given.channel, away=self._away))

    @workflow.signal
    def wake(self) -> None:
        """Try at once, although the receiving server was away a moment ago."""
        self._woken = True

    async def _pause(self) -> None:
        try:
            await workflow.wait_condition(lambda: self._woken, timeout=policies.away_pause(self._away))
        except TimeoutError:
            return
