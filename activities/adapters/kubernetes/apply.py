"""Apply an instance's objects in order. Repeating it has no further effect; objects with another owner are kept."""

from __future__ import annotations

import asyncio
import base64
import secrets
import string
from collections.abc import Coroutine, Iterable, Mapping
from typing import Any

import bcrypt

from activities.adapters.kubernetes.client import KubernetesClient
from activities.adapters.kubernetes.errors import AlreadyExists, ClusterError, ClusterUnavailable, Conflict
from activities.adapters.kubernetes.ownership import require_owned
from activities.adapters.mail_addresses import with_ascii_domain
from activities.service_templates.definitions import BcryptHash, CustomerValue, GeneratedSecret, SecretValue
from activities.service_templates.manifests import InstanceSpec, Manifest
from activities.service_templates.registry import RenderedInstance
from workflows.rules.instance import FailureReason

# Prerequisites of pods precede the pods. The quota comes last: until the controller has computed its usage, it rejects
# claims. The requests of the templates fit the quota.
APPLY_PHASES: tuple[tuple[str, ...], ...] = (
    ("LimitRange", "ServiceAccount", "NetworkPolicy", "ConfigMap", "PersistentVolumeClaim", "Service"),
    ("StatefulSet", "Deployment", "Job"),
    ("ResourceQuota", "Ingress", "CronJob"),
)

IMMUTABLE_KINDS = ("Job", "PersistentVolumeClaim")
"""A Job's template cannot be changed, nor can a claim; ``storage.fit_storage`` lets claims grow."""

BCRYPT_ROUNDS = 4
"""A high cost protects passwords that can be guessed. These are generated, with more than 128 bits of entropy."""

ALPHABETS = {"hex": string.hexdigits[:16], "alphanumeric": string.ascii_letters + string.digits}


def is_terminating(stored: Manifest) -> bool:
    return "deletionTimestamp" in stored["metadata"]


async def apply_instance(client: KubernetesClient, rendered: RenderedInstance) -> dict[str, dict[str, str]]:
    """Apply all objects of the instance. Repeating it has no further effect.

    Returns:
        The plain-text values of the instance's Secrets, by Secret and key, as stored in the cluster.

    Raises:
        ClusterError: ``NameConflict`` for an existing object with another owner, ``Terminating`` while a namespace of
            the same name is being deleted, and the cluster's errors.
    """
    spec = rendered.spec
    existing = await client.get("Namespace", None, spec.namespace)
    if existing is not None:
        require_owned(existing, spec)
        _require_not_terminating(existing)
    (namespace,) = rendered.of_kind("Namespace")
    await _server_side_apply(client, namespace, spec)
    # A namespace that this call created holds no object with another owner.
    is_new_namespace = existing is None
    secret_values: dict[str, dict[str, str]] = {}

    async def secret(name: str, keys: Mapping[str, SecretValue]) -> None:
        secret_values[name] = await ensure_secret(client, spec, name, keys, is_new_namespace=is_new_namespace)

    secret_steps: list[Coroutine[Any, Any, None]] = [secret(*item) for item in rendered.service.secrets.items()]
    for index, kinds in enumerate(APPLY_PHASES):
        steps = [
            apply_object(client, manifest, spec, is_new_namespace=is_new_namespace)
            for manifest in rendered.of_kind(*kinds)
        ]
        await gather_prefer_permanent_error(steps + (secret_steps if index == 0 else []))
    return secret_values


async def require_namespace(client: KubernetesClient, spec: InstanceSpec) -> None:
    """Check that the instance's namespace exists.

    Raises:
        ClusterError: ``DeletedExternally`` if it does not exist, ``NameConflict`` if it has another owner.
    """
    existing = await client.get("Namespace", None, spec.namespace)
    if existing is None:
        raise ClusterError(FailureReason.DELETED_EXTERNALLY, f"Namespace {spec.namespace} does not exist.")
    require_owned(existing, spec)


async def ensure_secret(
    client: KubernetesClient,
    spec: InstanceSpec,
    name: str,
    keys: Mapping[str, SecretValue],
    *,
    is_new_namespace: bool,
) -> dict[str, str]:
    """Create a Secret with generated values. An existing Secret keeps its values; only missing keys are added.

    The create request decides between concurrent callers: one creates the Secret, the others read it.

    Returns:
        Its plain-text values, as stored in the cluster.
    """
    existing = None if is_new_namespace else await client.get("Secret", spec.namespace, name)
    if existing is None:
        values = _secret_values(spec, keys, {})
        manifest: Manifest = {
            "apiVersion": "v1",
            "kind": "Secret",
            "type": "Opaque",
            "metadata": {"name": name, "namespace": spec.namespace, "labels": spec.labels},
            "data": _encoded(values),
        }
        try:
            await client.create(manifest)
            return values
        except AlreadyExists:
            existing = await client.get("Secret", spec.namespace, name)
    if existing is None:
        raise ClusterUnavailable(f"Secret {name} was deleted while it was being created.")
    require_owned(existing, spec)
    present = {key: base64.b64decode(value).decode() for key, value in (existing.get("data") or {}).items()}
    values = _secret_values(spec, keys, present)
    missing = {key: value for key, value in values.items() if key not in present}
    if missing:
        version = existing["metadata"]["resourceVersion"]
        body = {"metadata": {"resourceVersion": version}, "data": _encoded(missing)}
        await client.patch("Secret", spec.namespace, name, body)
    return values


async def gather_prefer_permanent_error(steps: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Run all steps to completion. Then raise the first permanent error, or else the first error."""
    results = await asyncio.gather(*steps, return_exceptions=True)
    failures = [result for result in results if isinstance(result, BaseException)]
    failures.sort(key=lambda failure: not (isinstance(failure, ClusterError) and failure.is_permanent))
    if failures:
        raise failures[0]


async def apply_object(
    client: KubernetesClient, manifest: Manifest, spec: InstanceSpec, *, is_new_namespace: bool = False
) -> None:
    """Apply a manifest. An existing Job or volume claim stays as it is.

    Raises:
        ClusterError: ``NameConflict`` for an existing object with another owner, and the cluster's errors.
    """
    if not is_new_namespace:
        existing = await client.get(manifest["kind"], spec.namespace, manifest["metadata"]["name"])
        if existing is not None:
            require_owned(existing, spec)
            if manifest["kind"] in IMMUTABLE_KINDS:
                return
    await _server_side_apply(client, manifest, spec)


async def _server_side_apply(client: KubernetesClient, manifest: Manifest, spec: InstanceSpec) -> None:
    """Apply a manifest. On an object of this instance, take ownership of the declared fields from other managers."""
    try:
        stored = await client.apply(manifest)
    except Conflict as conflict:
        existing = await client.get(
            manifest["kind"], manifest["metadata"].get("namespace"), manifest["metadata"]["name"]
        )
        if existing is None or not conflict.fields:
            raise ClusterUnavailable(conflict.message) from conflict
        require_owned(existing, spec)
        stored = await client.apply(manifest, force=True)
    if manifest["kind"] == "Namespace":
        _require_not_terminating(stored)


def _require_not_terminating(stored: Manifest) -> None:
    if is_terminating(stored):
        raise ClusterError(FailureReason.TERMINATING, f"Namespace {stored['metadata']['name']} is still being deleted.")


def _secret_values(spec: InstanceSpec, keys: Mapping[str, SecretValue], present: Mapping[str, str]) -> dict[str, str]:
    """Return ``present`` with a value for each missing key. Hashes are computed from the returned values."""
    values = dict(present)
    for key, definition in keys.items():
        if key in values:
            continue
        if isinstance(definition, GeneratedSecret):
            values[key] = _generate(definition)
        elif isinstance(definition, CustomerValue):
            values[key] = _customer_value(spec, definition)
    for key, definition in keys.items():
        if isinstance(definition, BcryptHash) and key not in values:
            values[key] = bcrypt.hashpw(values[definition.bcrypt].encode(), bcrypt.gensalt(BCRYPT_ROUNDS)).decode()
    return values


def _customer_value(spec: InstanceSpec, definition: CustomerValue) -> str:
    """Return the address in lower case, which some applications compare case-sensitively at sign-in, and in ASCII.

    Applications refuse an owner at ``müller.de``, and take one at ``xn--mller-kva.de``.
    """
    chosen = spec.parameters.get(definition.parameter) if definition.parameter is not None else None
    value = str(chosen or spec.customer_email).lower()
    if not value:
        raise ClusterError(FailureReason.INVALID, f"The customer of instance {spec.instance_id} has no e-mail address.")
    return with_ascii_domain(value)


def _encoded(values: Mapping[str, str]) -> dict[str, str]:
    return {key: base64.b64encode(value.encode()).decode() for key, value in values.items()}


def _generate(spec: GeneratedSecret) -> str:
    """Return a random value with uniformly distributed characters. Bytes that would favor some are discarded."""
    alphabet = ALPHABETS[spec.alphabet]
    unbiased_limit = 256 - 256 % len(alphabet)
    value = ""
    while len(value) < spec.length:
        value += "".join(
            alphabet[byte % len(alphabet)] for byte in secrets.token_bytes(2 * spec.length) if byte < unbiased_limit
        )
    return value[: spec.length]
