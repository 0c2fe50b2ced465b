"""Orphan cleanup: deletes the namespaces of deleted and failed instances, and reports those of unknown instances."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from temporalio import activity

from activities.adapters.kubernetes import deletion
from activities.adapters.kubernetes.client import KubernetesClient
from activities.adapters.kubernetes.deletion import OwnedNamespace
from activities.adapters.kubernetes.ownership import Owner
from activities.operator_alerts import daily_dedup_key, list_names
from db.queries import instances as queries
from db.queries import outbox
from db.session import SessionFactory
from workflows import names
from workflows.ports.instances import CleanUpOrphans, OrphanCleanupOutcome
from workflows.rules.instance import NamespaceVerdict, judge_namespace, max_orphans


class OrphanCleaner:
    """Cleans up the orphans of one installation.

    Args:
        deletion_timeout_seconds: How long a run waits for the deletion of one namespace.
    """

    def __init__(
        self,
        client: KubernetesClient,
        sessions: SessionFactory,
        installation_id: str,
        *,
        deletion_timeout_seconds: float,
    ) -> None:
        self._client = client
        self._sessions = sessions
        self._installation_id = installation_id
        self._deletion_timeout_seconds = deletion_timeout_seconds

    async def run(self, command: CleanUpOrphans) -> OrphanCleanupOutcome:
        """Clean up once. Deletes nothing when there are more orphans than the command allows."""
        namespaces = await deletion.list_owned_namespaces(self._client, self._installation_id)
        async with self._sessions() as session:
            statuses = await queries.get_statuses(session, {namespace.instance_id for namespace in namespaces})
        now = datetime.now(UTC)  # `created_at` comes from the cluster's clock, so no simulated time applies
        verdicts = [
            (
                judge_namespace(
                    statuses.get((namespace.instance_id, namespace.namespace)),
                    namespace.created_at,
                    now,
                    command.minimum_age,
                ),
                namespace,
            )
            for namespace in namespaces
        ]
        orphans = [namespace for verdict, namespace in verdicts if verdict is NamespaceVerdict.COLLECT]
        unknown = tuple(
            sorted(namespace.namespace for verdict, namespace in verdicts if verdict is NamespaceVerdict.REPORT)
        )
        # A deletion that was started cannot be stopped, so namespaces that are being deleted do not count.
        fresh = [orphan for orphan in orphans if not orphan.terminating]
        allowed = max_orphans(len(namespaces), minimum=command.max_orphans, share=command.max_orphan_share)
        paused = tuple(sorted(orphan.namespace for orphan in fresh)) if len(fresh) > allowed else ()
        await self._report(unknown, paused, allowed, now)
        removed: list[str] = []
        pending: list[str] = []
        for orphan in [] if paused else fresh[: command.limit]:
            await self._delete(orphan, self._deletion_timeout_seconds, removed, pending)
        # Stuck namespaces are checked last, without waiting, from another start each minute: they delay no other.
        for orphan in _rotated([orphan for orphan in orphans if orphan.terminating], now)[: command.limit]:
            await self._delete(orphan, 0.0, removed, pending)
        self._record_metrics(len(unknown), len(paused), len(pending))
        return OrphanCleanupOutcome(removed=tuple(removed), pending=tuple(pending), unknown=unknown, paused=paused)

    async def _delete(
        self, orphan: OwnedNamespace, within_seconds: float, removed: list[str], pending: list[str]
    ) -> None:
        """Delete the namespace, and add it to ``removed``, or to ``pending`` if its deletion is not complete."""
        owner = Owner(installation_id=self._installation_id, instance_id=orphan.instance_id)
        blockers = await deletion.delete_instance(self._client, owner, orphan.namespace, within_seconds=within_seconds)
        activity.logger.warning("orphan %s: %s", orphan.namespace, ", ".join(blockers) or "removed")
        (pending if blockers else removed).append(orphan.namespace)

    async def _report(self, unknown: Sequence[str], paused: Sequence[str], allowed: int, now: datetime) -> None:
        """Alert the operators, once a day about the same namespaces."""
        alerts = []
        if unknown:
            activity.logger.error("namespaces of unknown instances, not deleted: %s", ", ".join(unknown))
            alerts.append(
                outbox.build_operator_alert(
                    daily_dedup_key("orphans/unknown", unknown, now),
                    now,
                    "Namespaces of instances that the database does not know",
                    f"{len(unknown)} namespaces carry this installation's label, but the database has no such instance:"
                    f" {list_names(unknown)}. Nothing was deleted. If the database was restored from a backup, restore"
                    " these instances as well; otherwise delete the namespaces by hand.",
                    severity="critical",
                )
            )
        if paused:
            activity.logger.error("orphan cleanup paused: %d orphans, %d allowed", len(paused), allowed)
            alerts.append(
                outbox.build_operator_alert(
                    daily_dedup_key("orphans/paused", paused, now),
                    now,
                    "Orphan cleanup paused",
                    f"{len(paused)} namespaces belong to deleted or failed instances; one run deletes at most"
                    f" {allowed}: {list_names(paused)}. Nothing was deleted. To approve the deletion, start the"
                    f" workflow {names.ORPHAN_CLEANUP} with max_orphans {len(paused)}.",
                    severity="critical",
                )
            )
        if alerts:
            async with self._sessions.begin() as session:
                await outbox.enqueue(session, *alerts)

    def _record_metrics(self, unknown: int, paused: int, pending: int) -> None:
        for name, description, value in (
            ("berth_orphans_unknown", "Namespaces of instances that the database does not know", unknown),
            ("berth_orphans_paused", "Orphans that are not deleted because there are too many", paused),
            ("berth_orphans_pending", "Orphans that are still being deleted", pending),
        ):
            activity.metric_meter().create_gauge(name, description).set(value)


def _rotated(orphans: Sequence[OwnedNamespace], now: datetime) -> list[OwnedNamespace]:
    start = int(now.timestamp() // 60) % len(orphans) if orphans else 0
    return [*orphans[start:], *orphans[:start]]
