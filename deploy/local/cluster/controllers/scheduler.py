"""The scheduler: which node a pod goes to, and why to none."""

from __future__ import annotations

from deploy.local.cluster import quotas
from deploy.local.cluster.controllers.base import World, has_condition
from deploy.local.cluster.quantities import milli
from deploy.local.cluster.resources import BY_KEY, Obj
from deploy.local.cluster.store import Change, Record

PODS, NODES, CLAIMS, CLASSES = (
    BY_KEY["/pods"],
    BY_KEY["/nodes"],
    BY_KEY["/persistentvolumeclaims"],
    BY_KEY["storage.k8s.io/storageclasses"],
)
SELECTED = "volume.kubernetes.io/selected-node"
Needs = dict[str, int]


def _needs(pod: Obj) -> Needs:
    return {**quotas.requests(pod["spec"]), "pods": 1000}


def _tolerates(taint: Obj, tolerations: list[Obj]) -> bool:
    for toleration in tolerations:
        if toleration.get("effect") not in (None, "", taint.get("effect")):
            continue
        if toleration.get("operator") == "Exists" and toleration.get("key") in (None, "", taint["key"]):
            return True
        if toleration.get("key") == taint["key"] and toleration.get("value", "") == taint.get("value", ""):
            return True
    return False


def _expression(rule: Obj, labels: dict[str, str]) -> bool:
    key, values = rule["key"], rule.get("values") or ()
    have = labels.get(key)
    return {
        "In": have in values,
        "NotIn": have not in values,
        "Exists": key in labels,
        "DoesNotExist": key not in labels,
        "Gt": have is not None and have.isdigit() and int(have) > int(values[0]) if values else False,
        "Lt": have is not None and have.isdigit() and int(have) < int(values[0]) if values else False,
    }.get(rule["operator"], False)


def _fits_labels(spec: Obj, labels: dict[str, str]) -> bool:
    if any(labels.get(k) != v for k, v in (spec.get("nodeSelector") or {}).items()):
        return False
    affinity = ((spec.get("affinity") or {}).get("nodeAffinity") or {}).get(
        "requiredDuringSchedulingIgnoredDuringExecution"
    ) or {}
    terms = affinity.get("nodeSelectorTerms") or ()
    if not terms:
        return True
    return any(all(_expression(rule, labels) for rule in term.get("matchExpressions") or ()) for term in terms)


class Scheduler:
    """Keeps what each node has given away, from the store's changes."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.store = world.store
        self._used: dict[str, Needs] = {}
        for record in self.store.every(PODS):
            self._count(record, 1)

    def changed(self, change: Change) -> None:
        """Follow a pod's binding, ending or going."""
        before = self._node(change.old)
        after = self._node(change.new) if change.type != "DELETED" else ""
        if before == after:
            return
        if before and change.old is not None:
            self._count(change.old, -1)
        if after:
            self._count(change.new, 1)

    @staticmethod
    def _node(record: Record | None) -> str:
        if record is None or record.obj["status"].get("phase") in ("Succeeded", "Failed"):
            return ""
        node: str = record.obj["spec"].get("nodeName", "")
        return node

    def _count(self, record: Record, sign: int) -> None:
        node = self._node(record)
        if not node:
            return
        used = self._used.setdefault(node, {})
        for name, value in _needs(record.obj).items():
            used[name] = used.get(name, 0) + sign * value

    def place(self, pod: Obj) -> tuple[str, str]:
        """(node, "") or ("", why not)."""
        spec = pod["spec"]
        needs = _needs(pod)
        tolerations = spec.get("tolerations") or []
        reasons: dict[str, int] = {}
        best, best_share = "", 2.0
        nodes = sorted(self.store.every(NODES), key=lambda r: r.name)
        for record in nodes:
            node = record.obj
            why = self._refuses(node, spec, tolerations, needs)
            if why:
                for text in why:
                    reasons[text] = reasons.get(text, 0) + 1
                continue
            used = self._used.get(record.name, {})
            room = node["status"].get("allocatable") or {}
            share = max(
                (used.get(k, 0) / max(1, milli(room[k])) for k in ("cpu", "memory", "pods") if k in room), default=0.0
            )
            if share < best_share:
                best, best_share = record.name, share
        if best:
            return best, ""
        listed = ", ".join(f"{count} {text}" for text, count in sorted(reasons.items()))
        total = len(nodes)
        return "", (
            f"0/{total} nodes are available: {listed or 'no nodes'}. preemption: 0/{total} nodes are available: "
            f"{total} Preemption is not helpful for scheduling."
        )

    def _refuses(self, node: Obj, spec: Obj, tolerations: list[Obj], needs: Needs) -> list[str]:
        if node["spec"].get("unschedulable"):
            return ["node(s) were unschedulable"]
        for taint in node["spec"].get("taints") or ():
            if taint.get("effect") in ("NoSchedule", "NoExecute") and not _tolerates(taint, tolerations):
                return [f"node(s) had untolerated taint(s) {{{taint['key']}: {taint.get('value', '')}}}"]
        if not has_condition(node, "Ready"):
            return ["node(s) were not ready"]
        if not _fits_labels(spec, node["metadata"].get("labels") or {}):
            return ["node(s) didn't match Pod's node affinity/selector"]
        room = node["status"].get("allocatable") or {}
        used = self._used.get(node["metadata"]["name"], {})
        short = []
        for name, value in needs.items():
            if value and used.get(name, 0) + value > milli(room.get(name, "0")):
                short.append("Too many pods" if name == "pods" else f"Insufficient {name}")
        return short

    def volumes(self, pod: Record, node: str) -> str | None:
        """Why the pod's claims hold it back: "" where one is being bound now, None where none does."""
        waiting = False
        for volume in pod.obj["spec"].get("volumes") or ():
            claim_name = (volume.get("persistentVolumeClaim") or {}).get("claimName")
            if not claim_name:
                continue
            claim = self.store.get(CLAIMS, pod.namespace, claim_name)
            total = sum(1 for _ in self.store.every(NODES))
            if claim is None:
                return f'0/{total} nodes are available: persistentvolumeclaim "{claim_name}" not found.'
            if claim.obj["metadata"].get("deletionTimestamp"):
                return f'0/{total} nodes are available: persistentvolumeclaim "{claim_name}" is being deleted.'
            if claim.obj["status"].get("phase") == "Bound":
                continue
            storage = self.store.get(CLASSES, "", claim.obj["spec"].get("storageClassName") or "")
            if storage is None or storage.obj["volumeBindingMode"] == "Immediate":
                return f"0/{total} nodes are available: pod has unbound immediate PersistentVolumeClaims."
            if node and (claim.obj["metadata"].get("annotations") or {}).get(SELECTED) != node:

                def choose(obj: Obj) -> None:
                    obj["metadata"].setdefault("annotations", {})[SELECTED] = node

                self.world.registry.modify(CLAIMS, claim, choose)
            waiting = True
        return "" if waiting else None
