"""``NotificationDispatch``: one long-running workflow per channel, which drains the channel's outbox.

The drain is one long activity that polls the database, so that a minute without mails costs a handful of history
events. The workflow starts it again after a crash of its worker. It uses real time, no subscription's clock.
"""

from __future__ import annotations

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from workflows import names, policies
    from workflows.ports.notifications import DispatchInput, DrainOutbox, NotificationActivities


@workflow.defn(name=names.NOTIFICATION_DISPATCH)
class NotificationDispatch:
    @workflow.init
    def __init__(self, input: DispatchInput) -> None:
        self._consecutive_outages = input.consecutive_outages
        self._wake_requested = False

    @workflow.run
    async def run(self, input: DispatchInput) -> None:
        while not workflow.info().is_continue_as_new_suggested():
            self._wake_requested = False
            drained = await workflow.execute_activity_method(
                NotificationActivities.drain_outbox,
                DrainOutbox(channel=input.channel, duration_seconds=policies.DRAIN_DURATION.total_seconds()),
                task_queue=names.NOTIFICATIONS_QUEUE,
                **policies.NOTIFICATION_DRAIN,
            )
            self._consecutive_outages = self._consecutive_outages + 1 if drained.server_unavailable else 0
            if self._consecutive_outages:
                await self._back_off()
        await workflow.wait_condition(workflow.all_handlers_finished)
        workflow.continue_as_new(DispatchInput(channel=input.channel, consecutive_outages=self._consecutive_outages))

    @workflow.signal
    def wake(self) -> None:
        """Send at once, although the mail server was unavailable at the last attempt."""
        self._wake_requested = True

    async def _back_off(self) -> None:
        try:
            await workflow.wait_condition(
                lambda: self._wake_requested, timeout=policies.mail_outage_backoff(self._consecutive_outages)
            )
        except TimeoutError:
            return
