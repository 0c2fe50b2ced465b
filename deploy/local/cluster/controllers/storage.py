"""The sizes of bound claims, and the status of quotas."""

from __future__ import annotations

from collections.abc import Iterable

from deploy.local.cluster import quotas
from deploy.local.cluster.controllers.base import Controller, Key, Keys, itself
from deploy.local.cluster.resources import PODS, QUOTAS, VOLUME_CLAIMS, Obj
from deploy.local.cluster.store import Change


class Claims(Controller):
    """Grows the volume of a bound claim to the size that the claim requests."""

    name = "claims"

    def watches(self) -> dict[str, Keys]:
        return {"/persistentvolumeclaims": itself}

    def reconcile(self, namespace: str, name: str) -> float | None:
        claim = self.store.get(VOLUME_CLAIMS, namespace, name)
        if claim is not None and claim.obj["status"]["phase"] == "Bound":
            capacity = {"storage": claim.obj["spec"]["resources"]["requests"]["storage"]}
            self.registry.modify(VOLUME_CLAIMS, claim, lambda obj: obj["status"].update(capacity=capacity))
        return None


class Quotas(Controller):
    """Writes `status.hard` and `status.used` of quotas."""

    name = "quotas"

    def watches(self) -> dict[str, Keys]:
        return {"/resourcequotas": itself, "/pods": self._within, "/persistentvolumeclaims": self._within}

    def _within(self, change: Change) -> Iterable[Key]:
        ended = change.new.obj["status"].get("phase") in ("Succeeded", "Failed")
        if change.type == "MODIFIED" and change.resource is PODS and not ended:
            return ()
        return [(stored.namespace, stored.name) for stored in self.store.every(QUOTAS, change.new.namespace)]

    def reconcile(self, namespace: str, name: str) -> float | None:
        stored = self.store.get(QUOTAS, namespace, name)
        if stored is None:
            return None
        hard: dict[str, str] = stored.obj["spec"].get("hard") or {}
        total = quotas.used_in(self.store, namespace)
        used = {key: quotas.format_quantity(key, total.get(key, 0)) for key in hard}

        def write(obj: Obj) -> None:
            obj["status"] = {"hard": hard, "used": used}

        self.registry.modify(QUOTAS, stored, write)
        return None
