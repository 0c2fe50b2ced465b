"""Bringing an instance's objects into the cluster: in order, once, and never over somebody else's."""

from __future__ import annotations

import asyncio
import base64
import secrets
import string
from collections.abc import Coroutine, Iterable, Mapping
from typing import Any

from activities.adapters.kubernetes.errors import ClusterError, Conflict, Exists, Unavailable
from activities.adapters.kubernetes.gateway import KubernetesGateway, Object
from activities.templates import INSTANCE, MANAGED_BY, MANAGER, Generated, InstanceSpec, Rendered
from workflows.rules.instance import Trouble

# What pods need is there before the pods. The quota comes last: it would refuse claims until it has been counted for
# the first time, and what the templates ask for fits it.
PHASES: tuple[tuple[str, ...], ...] = (
    ("LimitRange", "ServiceAccount", "NetworkPolicy", "ConfigMap", "PersistentVolumeClaim", "Service"),
    ("StatefulSet", "Deployment", "Job"),
    ("ResourceQuota", "Ingress", "CronJob"),
)

ALPHABETS = {"hex": string.hexdigits[:16], "alphanumeric": string.ascii_letters + string.digits}


def ours(found: Object, instance_id: str) -> bool:
    labels = found["metadata"].get("labels") or {}
    return labels.get(MANAGED_BY) == MANAGER and labels.get(INSTANCE) == instance_id


def going(found: Object) -> bool:
    return "deletionTimestamp" in found["metadata"]


async def apply_instance(gateway: KubernetesGateway, rendered: Rendered) -> None:
    """Apply everything; a second call changes nothing.

    Raises:
        ClusterError: ``ForeignOwner`` for an object that is there and not ours, ``Terminating`` while a namespace of
            the same name is still going, and whatever the cluster refuses.
    """
    spec = rendered.spec
    found = await gateway.get("Namespace", None, spec.namespace)
    if found is not None:
        _require_ours(found, spec)
        _require_staying(found)
    (namespace,) = rendered.of("Namespace")
    await _applied(gateway, namespace, spec)
    # In a namespace that this very call made, nothing can be somebody else's yet.
    fresh = found is None
    pods_need: list[Coroutine[Any, Any, None]] = [
        ensure_secret(gateway, spec, name, keys) for name, keys in rendered.service.secrets.items()
    ]
    for index, kinds in enumerate(PHASES):
        steps = [_ensure(gateway, made, spec, fresh=fresh) for made in rendered.of(*kinds)]
        await together(steps + (pods_need if index == 0 else []))


async def ensure_secret(
    gateway: KubernetesGateway, spec: InstanceSpec, name: str, keys: Mapping[str, Generated]
) -> None:
    """Create a Secret with generated values. One that exists keeps its values; only missing keys are added.

    Creation is what makes it once: of two that try, one finds the other's.
    """
    values = {key: _generate(how) for key, how in keys.items()}
    made: Object = {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "Opaque",
        "metadata": {"name": name, "namespace": spec.namespace, "labels": spec.labels},
        "data": values,
    }
    try:
        await gateway.create(made)
        return
    except Exists:
        found = await gateway.get("Secret", spec.namespace, name)
    if found is None:
        raise Unavailable(f"Secret {name} came and went")
    _require_ours(found, spec)
    missing = {key: value for key, value in values.items() if key not in (found.get("data") or {})}
    if missing:
        version = found["metadata"]["resourceVersion"]
        body = {"metadata": {"resourceVersion": version}, "data": missing}
        await gateway.patch("Secret", spec.namespace, name, body)


async def together(steps: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Run all to their end; then raise what no retry helps, or else the first failure."""
    results = await asyncio.gather(*steps, return_exceptions=True)
    failures = [result for result in results if isinstance(result, BaseException)]
    failures.sort(key=lambda failure: not (isinstance(failure, ClusterError) and failure.permanent))
    if failures:
        raise failures[0]


async def _ensure(gateway: KubernetesGateway, made: Object, spec: InstanceSpec, *, fresh: bool) -> None:
    if not fresh:
        found = await gateway.get(made["kind"], spec.namespace, made["metadata"]["name"])
        if found is not None:
            _require_ours(found, spec)
            if made["kind"] == "Job":
                # A Job's template never changes; that it is there is all there is to do.
                return
    await _applied(gateway, made, spec)


async def _applied(gateway: KubernetesGateway, made: Object, spec: InstanceSpec) -> None:
    """Apply. Fields that another manager took on an object of ours are taken back, those that we declare only."""
    try:
        stored = await gateway.apply(made)
    except Conflict as conflict:
        found = await gateway.get(made["kind"], made["metadata"].get("namespace"), made["metadata"]["name"])
        if found is None or not conflict.fields:
            raise Unavailable(conflict.message) from conflict
        _require_ours(found, spec)
        stored = await gateway.apply(made, force=True)
    if made["kind"] == "Namespace":
        _require_staying(stored)


def _require_ours(found: Object, spec: InstanceSpec) -> None:
    if not ours(found, spec.instance_id):
        what = f"{found['kind']} {found['metadata']['name']}"
        raise ClusterError(Trouble.FOREIGN_OWNER, f"{what} exists and is not this instance's; it is left alone.")


def _require_staying(found: Object) -> None:
    if going(found):
        raise ClusterError(Trouble.TERMINATING, f"Namespace {found['metadata']['name']} is still being deleted.")


def _generate(how: Generated) -> str:
    """Return a random value in base 64, every character equally likely: bytes that would favour some are left out."""
    alphabet = ALPHABETS[how.alphabet]
    fair = 256 - 256 % len(alphabet)
    value = ""
    while len(value) < how.length:
        value += "".join(alphabet[byte % len(alphabet)] for byte in secrets.token_bytes(2 * how.length) if byte < fair)
    return base64.b64encode(value[: how.length].encode()).decode()
