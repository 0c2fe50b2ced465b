"""The 422 rules of pod specs and pod templates."""

from __future__ import annotations

import re
from typing import Any

from deploy.local.cluster.errors import Cause, duplicate, required, unsupported, wrong
from deploy.local.cluster.naming import check_labels, check_name
from deploy.local.cluster.quantities import milli
from deploy.local.cluster.resources import Obj

_ENV = re.compile(r"^[^=\x00-\x1f\x7f]+$")
_PORT_NAME = re.compile(r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$")
_PULL = ("Always", "IfNotPresent", "Never")


def check_template(
    template: Obj | None, path: str, restarts: tuple[str, ...], claims: tuple[str, ...] = ()
) -> list[Cause]:
    """Problems of a pod template; its restart policy must be one of `restarts`, `claims` are volumes from elsewhere."""
    if not template:
        return [required(path)]
    problems = check_labels((template.get("metadata") or {}).get("labels") or {}, f"{path}.labels")
    return problems + check_pod_spec(template.get("spec") or {}, f"{path}.spec", restarts, claims)


def check_pod_spec(spec: Obj, path: str, restarts: tuple[str, ...], claims: tuple[str, ...] = ()) -> list[Cause]:
    """Problems of a pod's spec."""
    problems: list[Cause] = []
    volumes: set[str] = set()
    for index, volume in enumerate(spec.get("volumes") or ()):
        where = f"{path}.volumes[{index}]"
        name = volume.get("name", "")
        if not name:
            problems.append(required(f"{where}.name"))
        elif name in volumes:
            problems.append(duplicate(f"{where}.name", name))
        else:
            problems += check_name(name, "label", f"{where}.name")
        volumes.add(name)
        kinds = [key for key in volume if key != "name"]
        if len(kinds) > 1:
            problems.append(
                {
                    "reason": "FieldValueForbidden",
                    "message": "Forbidden: may not specify more than 1 volume type",
                    "field": f"{where}.{kinds[1]}",
                }
            )
        claim = volume.get("persistentVolumeClaim")
        if claim is not None and not claim.get("claimName"):
            problems.append(required(f"{where}.persistentVolumeClaim.claimName"))
    volumes.update(claims)
    if not spec.get("containers"):
        problems.append(required(f"{path}.containers"))
    names: set[str] = set()
    for key in ("initContainers", "containers"):
        for index, container in enumerate(spec.get(key) or ()):
            where = f"{path}.{key}[{index}]"
            problems += _container(container, where, volumes)
            name = container.get("name", "")
            if name in names:
                problems.append(duplicate(f"{where}.name", name))
            names.add(name)
    if spec.get("restartPolicy") == "Always" and "Always" not in restarts:
        # "Always" is also what a silent template was filled up with.
        problems.append(required(f"{path}.restartPolicy", 'valid values: "OnFailure", "Never"'))
    elif spec.get("restartPolicy") not in restarts:
        problems.append(unsupported(f"{path}.restartPolicy", spec.get("restartPolicy"), restarts))
    return problems


def _container(container: Obj, where: str, volumes: set[str]) -> list[Cause]:
    problems: list[Cause] = []
    if not container.get("name"):
        problems.append(required(f"{where}.name"))
    else:
        problems += check_name(container["name"], "label", f"{where}.name")
    image = container.get("image", "")
    if not image:
        problems.append(required(f"{where}.image"))
    if container.get("imagePullPolicy", "Always") not in _PULL:
        problems.append(unsupported(f"{where}.imagePullPolicy", container["imagePullPolicy"], _PULL))
    seen: set[Any] = set()
    for index, port in enumerate(container.get("ports") or ()):
        here = f"{where}.ports[{index}]"
        number = port.get("containerPort", 0)
        if not 1 <= number <= 65535:
            problems.append(wrong(f"{here}.containerPort", number, "must be between 1 and 65535, inclusive"))
        name = port.get("name")
        if name:
            if len(name) > 15:
                problems.append(wrong(f"{here}.name", name, "must be no more than 15 characters"))
            elif not _PORT_NAME.match(name):
                problems.append(
                    wrong(
                        f"{here}.name", name, "must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)"
                    )
                )
            if name in seen:
                problems.append(duplicate(f"{here}.name", name))
            seen.add(name)
    for index, env in enumerate(container.get("env") or ()):
        here = f"{where}.env[{index}]"
        if not env.get("name"):
            problems.append(required(f"{here}.name"))
        elif not _ENV.match(env["name"]):
            problems.append(
                wrong(
                    f"{here}.name",
                    env["name"],
                    "a valid environment variable name must consist only of printable ASCII characters other than '='",
                )
            )
        if env.get("value") and env.get("valueFrom"):
            problems.append(wrong(f"{here}.valueFrom", "", "may not be specified when `value` is not empty"))
    mounts: set[str] = set()
    for index, mount in enumerate(container.get("volumeMounts") or ()):
        here = f"{where}.volumeMounts[{index}]"
        if not mount.get("mountPath"):
            problems.append(required(f"{here}.mountPath"))
        elif mount["mountPath"] in mounts:
            problems.append(wrong(f"{here}.mountPath", mount["mountPath"], "must be unique"))
        mounts.add(mount.get("mountPath", ""))
        if mount.get("name") not in volumes:
            problems.append(
                {
                    "reason": "FieldValueNotFound",
                    "message": f'Not found: "{mount.get("name")}"',
                    "field": f"{here}.name",
                }
            )
    problems += _resources(container.get("resources") or {}, f"{where}.resources")
    for probe in ("livenessProbe", "readinessProbe", "startupProbe"):
        problems += _probe(container.get(probe), f"{where}.{probe}")
    return problems


def _resources(resources: Obj, where: str) -> list[Cause]:
    problems: list[Cause] = []
    limits = resources.get("limits") or {}
    for side in ("limits", "requests"):
        for name, value in (resources.get(side) or {}).items():
            if milli(value) < 0:
                problems.append(wrong(f"{where}.{side}[{name}]", value, "must be greater than or equal to 0"))
    for name, value in (resources.get("requests") or {}).items():
        if name in limits and milli(value) > milli(limits[name]):
            problems.append(
                wrong(f"{where}.requests", value, f"must be less than or equal to {name} limit of {limits[name]}")
            )
    return problems


def _probe(probe: Obj | None, where: str) -> list[Cause]:
    if probe is None:
        return []
    handlers = [name for name in ("exec", "httpGet", "tcpSocket", "grpc") if name in probe]
    if not handlers:
        return [required(where, "must specify a handler type")]
    problems: list[Cause] = []
    for name in ("httpGet", "tcpSocket", "grpc"):
        port = (probe.get(name) or {}).get("port")
        if name in probe and (port is None or (isinstance(port, int) and not 1 <= port <= 65535)):
            problems.append(wrong(f"{where}.{name}.port", port or 0, "must be between 1 and 65535, inclusive"))
    for name in ("initialDelaySeconds", "timeoutSeconds", "periodSeconds", "failureThreshold"):
        if isinstance(probe.get(name), int) and probe[name] < 0:
            problems.append(wrong(f"{where}.{name}", probe[name], "must be greater than or equal to 0"))
    return problems
