"""What the API refuses with 422: the rules that our kinds can break, in Kubernetes' words."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from deploy.local.cluster import selectors
from deploy.local.cluster.errors import Cause, not_allowed, required, unsupported, wrong
from deploy.local.cluster.naming import SUBDOMAIN, SUBDOMAIN_TEXT, check_key, check_name
from deploy.local.cluster.quantities import milli
from deploy.local.cluster.resources import Obj
from deploy.local.cluster.validation_pods import check_pod_spec, check_template

_MODES = ("ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod")
_QUOTAS = (
    "cpu",
    "memory",
    "ephemeral-storage",
    "requests.cpu",
    "requests.memory",
    "requests.storage",
    "requests.ephemeral-storage",
    "limits.cpu",
    "limits.memory",
    "limits.ephemeral-storage",
    "pods",
    "services",
    "replicationcontrollers",
    "resourcequotas",
    "secrets",
    "configmaps",
    "persistentvolumeclaims",
    "services.nodeports",
    "services.loadbalancers",
)
_DATA_KEY = re.compile(r"^[-._a-zA-Z0-9]+$")
_HOST = re.compile(r"^(\*\.)?[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$")


def _selector(spec: Obj) -> list[Cause]:
    selector = spec.get("selector")
    if selector is None:
        return [required("spec.selector")]
    if not selector.get("matchLabels") and not selector.get("matchExpressions"):
        return [wrong("spec.selector", selector, "empty selector is invalid for deployment")]
    labels = spec.get("template", {}).get("metadata", {}).get("labels") or {}
    if not selectors.matches(selector, labels):
        return [wrong("spec.template.metadata.labels", labels, "`selector` does not match template `labels`")]
    return []


def _count(spec: Obj, *names: str) -> list[Cause]:
    return [
        wrong(f"spec.{name}", spec[name], "must be greater than or equal to 0")
        for name in names
        if isinstance(spec.get(name), int) and spec[name] < 0
    ]


def _workload(obj: Obj) -> list[Cause]:
    spec = obj["spec"]
    problems = _count(spec, "replicas", "minReadySeconds", "revisionHistoryLimit", "progressDeadlineSeconds")
    problems += _selector(spec)
    claims = tuple((c.get("metadata") or {}).get("name", "") for c in spec.get("volumeClaimTemplates") or ())
    problems += check_template(spec.get("template"), "spec.template", ("Always",), claims)
    return problems


def _deployment(obj: Obj) -> list[Cause]:
    problems = _workload(obj)
    spec = obj["spec"]
    strategy = spec.get("strategy", {})
    if strategy.get("type") not in ("Recreate", "RollingUpdate"):
        shown = {"Type": strategy.get("type"), "RollingUpdate": strategy.get("rollingUpdate")}
        problems.append(unsupported("spec.strategy", shown, ("Recreate", "RollingUpdate")))
    elif strategy["type"] == "Recreate" and "rollingUpdate" in strategy:
        problems.append(
            not_allowed("spec.strategy.rollingUpdate", "may not be specified when strategy `type` is 'Recreate'")
        )
    if spec.get("progressDeadlineSeconds", 600) <= spec.get("minReadySeconds", 0):
        problems.append(
            wrong(
                "spec.progressDeadlineSeconds", spec["progressDeadlineSeconds"], "must be greater than minReadySeconds"
            )
        )
    return problems


def _stateful_set(obj: Obj) -> list[Cause]:
    problems = _workload(obj)
    spec = obj["spec"]
    if spec.get("podManagementPolicy") not in ("OrderedReady", "Parallel"):
        problems.append(
            wrong("spec.podManagementPolicy", spec.get("podManagementPolicy"), "must be 'OrderedReady' or 'Parallel'")
        )
    return problems


def _job(obj: Obj) -> list[Cause]:
    spec = obj["spec"]
    return _count(spec, "parallelism", "completions", "backoffLimit", "ttlSecondsAfterFinished") + check_template(
        spec.get("template"), "spec.template", ("OnFailure", "Never")
    )


def _cron_job(obj: Obj) -> list[Cause]:
    from deploy.local.cluster.cron import BadSchedule, Schedule

    spec = obj["spec"]
    problems: list[Cause] = []
    if len(obj["metadata"]["name"]) > 52:
        problems.append(wrong("metadata.name", obj["metadata"]["name"], "must be no more than 52 characters"))
    if not spec.get("schedule"):
        problems.append(required("spec.schedule"))
    else:
        try:
            Schedule(spec["schedule"])
        except BadSchedule as exc:
            problems.append(wrong("spec.schedule", spec["schedule"], str(exc)))
    if spec.get("concurrencyPolicy") not in ("Allow", "Forbid", "Replace"):
        problems.append(
            unsupported("spec.concurrencyPolicy", spec.get("concurrencyPolicy"), ("Allow", "Forbid", "Replace"))
        )
    template = (spec.get("jobTemplate") or {}).get("spec", {}).get("template")
    return problems + check_template(template, "spec.jobTemplate.spec.template", ("OnFailure", "Never"))


def _pod(obj: Obj) -> list[Cause]:
    return check_pod_spec(obj["spec"], "spec", ("Always", "OnFailure", "Never"))


def _service(obj: Obj) -> list[Cause]:
    spec = obj["spec"]
    problems: list[Cause] = []
    kinds = ("ClusterIP", "ExternalName", "LoadBalancer", "NodePort")
    if spec["type"] not in kinds:
        problems.append(unsupported("spec.type", spec["type"], kinds))
    ports = spec.get("ports") or []
    if not ports and spec["type"] != "ExternalName" and spec.get("clusterIP") != "None":
        problems.append(required("spec.ports"))
    if spec["type"] == "ExternalName" and not spec.get("externalName"):
        problems.append(required("spec.externalName"))
    seen: set[Any] = set()
    for index, port in enumerate(ports):
        where = f"spec.ports[{index}]"
        if len(ports) > 1 and not port.get("name"):
            problems.append(required(f"{where}.name"))
        if port.get("name"):
            problems += check_name(port["name"], "label", f"{where}.name")
        if not 1 <= port.get("port", 0) <= 65535:
            problems.append(wrong(f"{where}.port", port.get("port", 0), "must be between 1 and 65535, inclusive"))
        key = (port.get("port"), port.get("protocol"))
        if key in seen:
            problems.append(
                {"reason": "FieldValueDuplicate", "message": f"Duplicate value: {port}", "field": f"{where}"}
            )
        seen.add(key)
    return problems


def _data(obj: Obj) -> list[Cause]:
    problems = []
    for name in ("data", "binaryData"):
        for key in obj.get(name) or {}:
            if not _DATA_KEY.match(key) or len(key) > 253:
                problems.append(
                    wrong(
                        f"{name}[{key}]",
                        key,
                        "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name', "
                        " or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')",
                    )
                )
    return problems


def _secret(obj: Obj) -> list[Cause]:
    problems = _data(obj)
    wanted = {"kubernetes.io/tls": ("tls.crt", "tls.key"), "kubernetes.io/dockerconfigjson": (".dockerconfigjson",)}
    for key in wanted.get(obj.get("type", ""), ()):
        if key not in (obj.get("data") or {}):
            problems.append(required(f"data[{key}]"))
    return problems


def _claim(obj: Obj) -> list[Cause]:
    spec = obj["spec"]
    problems: list[Cause] = []
    if not spec.get("accessModes"):
        problems.append(required("spec.accessModes", "at least 1 access mode is required"))
    for mode in spec.get("accessModes") or ():
        if mode not in _MODES:
            problems.append(unsupported("spec.accessModes", mode, _MODES))
    size = (spec.get("resources") or {}).get("requests", {}).get("storage")
    if size is None:
        problems.append(required("spec.resources[storage]"))
    elif milli(size) <= 0:
        problems.append(wrong("spec.resources[storage]", size, "must be greater than zero"))
    return problems


def _ingress(obj: Obj) -> list[Cause]:
    spec = obj["spec"]
    problems: list[Cause] = []
    if not spec.get("rules") and not spec.get("defaultBackend"):
        problems.append(wrong("spec", None, "either `defaultBackend` or `rules` must be specified"))
    for index, rule in enumerate(spec.get("rules") or ()):
        where = f"spec.rules[{index}]"
        host = rule.get("host", "")
        if host and not _HOST.match(host):
            problems.append(
                wrong(
                    f"{where}.host",
                    host,
                    SUBDOMAIN_TEXT,
                )
            )
        http = rule.get("http")
        if http is not None and not http.get("paths"):
            problems.append(required(f"{where}.http.paths"))
        for at, path in enumerate((http or {}).get("paths") or ()):
            here = f"{where}.http.paths[{at}]"
            if not path.get("pathType"):
                problems.append(required(f"{here}.pathType", "pathType must be specified"))
            elif path["pathType"] not in ("Exact", "Prefix", "ImplementationSpecific"):
                problems.append(
                    unsupported(f"{here}.pathType", path["pathType"], ("Exact", "ImplementationSpecific", "Prefix"))
                )
            elif path["pathType"] != "ImplementationSpecific" and not str(path.get("path", "")).startswith("/"):
                problems.append(wrong(f"{here}.path", path.get("path", ""), "must be an absolute path"))
            service = (path.get("backend") or {}).get("service")
            if service is None and "resource" not in (path.get("backend") or {}):
                problems.append(wrong(f"{here}.backend", "", "resource or service backend is required"))
            elif service is not None and not (service.get("port") or {}):
                problems.append(required(f"{here}.backend", "port name or number is required"))
    return problems


def _quota(obj: Obj) -> list[Cause]:
    problems = []
    for name in obj["spec"].get("hard") or {}:
        field = f"spec.hard[{name}]"
        problems += check_key(name, field)
        if "/" not in name and name not in _QUOTAS:
            problems.append(wrong(field, name, "must be a standard resource type or fully qualified"))
            problems.append(wrong(field, name, "must be a standard resource for quota"))
    return problems


def _limit_range(obj: Obj) -> list[Cause]:
    problems = []
    for index, limit in enumerate(obj.get("spec", {}).get("limits") or ()):
        most = limit.get("max") or {}
        for name, least in (limit.get("min") or {}).items():
            if name in most and milli(least) > milli(most[name]):
                field = f"spec.limits[{index}].min[{name}]"
                problems.append(wrong(field, least, f"min value {least} is greater than max value {most[name]}"))
    return problems


def _network_policy(obj: Obj) -> list[Cause]:
    return [
        required(f"spec.{side}[{at}].{key}[{index}]", "must specify a peer")
        for side, key in (("ingress", "from"), ("egress", "to"))
        for at, rule in enumerate(obj["spec"].get(side) or ())
        for index, peer in enumerate(rule.get(key) or ())
        if not peer
    ]


def _budget(obj: Obj) -> list[Cause]:
    spec = obj["spec"]
    if "minAvailable" in spec and "maxUnavailable" in spec:
        return [wrong("spec", spec, "minAvailable and maxUnavailable cannot be both set")]
    return []


def _certificate(obj: Obj) -> list[Cause]:
    spec = obj.get("spec") or {}
    problems = []
    if not spec.get("secretName"):
        problems.append(required("spec.secretName"))
    if not (spec.get("issuerRef") or {}).get("name"):
        problems.append(required("spec.issuerRef.name"))
    if not spec.get("dnsNames") and not spec.get("commonName"):
        problems.append(
            wrong(
                "spec",
                "",
                "at least one of commonName (from the commonName field or from a literalSubject), dnsNames, "
                "uriSANs, ipAddresses, emailSANs or otherNames must be set",
            )
        )
    for index, name in enumerate(spec.get("dnsNames") or ()):
        if not isinstance(name, str) or not SUBDOMAIN.match(name.removeprefix("*.")):
            problems.append(wrong(f"spec.dnsNames[{index}]", name, "must be a DNS name"))
    return problems


_CHECKS: dict[str, Callable[[Obj], list[Cause]]] = {
    "/pods": _pod,
    "/services": _service,
    "/configmaps": _data,
    "/secrets": _secret,
    "/persistentvolumeclaims": _claim,
    "/resourcequotas": _quota,
    "/limitranges": _limit_range,
    "networking.k8s.io/networkpolicies": _network_policy,
    "policy/poddisruptionbudgets": _budget,
    "apps/deployments": _deployment,
    "apps/replicasets": _workload,
    "apps/statefulsets": _stateful_set,
    "apps/daemonsets": _workload,
    "batch/jobs": _job,
    "batch/cronjobs": _cron_job,
    "networking.k8s.io/ingresses": _ingress,
    "cert-manager.io/certificates": _certificate,
}


def check(key: str, obj: Obj) -> list[Cause]:
    """Problems of an object of the kind `key`, metadata aside."""
    found = _CHECKS.get(key)
    return found(obj) if found else []
