"""The Pod Security Standards `baseline` and `restricted`: the checks that our templates can fail, in their words."""

from __future__ import annotations

from collections.abc import Iterator

from deploy.local.cluster.resources import Obj

MODES = ("enforce", "warn", "audit")
_CAPABILITIES = frozenset(
    [
        "AUDIT_WRITE",
        "CHOWN",
        "DAC_OVERRIDE",
        "FOWNER",
        "FSETID",
        "KILL",
        "MKNOD",
        "NET_BIND_SERVICE",
        "SETFCAP",
        "SETGID",
        "SETPCAP",
        "SETUID",
        "SYS_CHROOT",
    ]
)
_SYSCTLS = frozenset(
    (
        "kernel.shm_rmid_forced",
        "net.ipv4.ip_local_port_range",
        "net.ipv4.ip_unprivileged_port_start",
        "net.ipv4.tcp_syncookies",
        "net.ipv4.ping_group_range",
        "net.ipv4.ip_local_reserved_ports",
        "net.ipv4.tcp_keepalive_time",
        "net.ipv4.tcp_fin_timeout",
        "net.ipv4.tcp_keepalive_intvl",
        "net.ipv4.tcp_keepalive_probes",
    )
)
_VOLUMES = frozenset(
    [
        "configMap",
        "csi",
        "downwardAPI",
        "emptyDir",
        "ephemeral",
        "image",
        "persistentVolumeClaim",
        "projected",
        "secret",
        "name",
    ]
)


def levels(labels: dict[str, str]) -> Iterator[tuple[str, str, str]]:
    """(mode, level, version) that a namespace's labels ask for, `privileged` left out."""
    for mode in MODES:
        level = labels.get(f"pod-security.kubernetes.io/{mode}", "privileged")
        if level in ("baseline", "restricted"):
            yield mode, level, labels.get(f"pod-security.kubernetes.io/{mode}-version", "latest")


def violations(level: str, spec: Obj, meta: Obj) -> list[str]:
    """What the pod's spec breaks."""
    found = _baseline(spec)
    if level == "restricted":
        found += _restricted(spec)
        if any(text.startswith("unrestricted capabilities") for text in found):
            found = [text for text in found if not text.startswith("non-default capabilities")]
    return found


def _containers(spec: Obj) -> list[Obj]:
    return [
        *(spec.get("initContainers") or ()),
        *(spec.get("containers") or ()),
        *(spec.get("ephemeralContainers") or ()),
    ]


def _context(container: Obj) -> Obj:
    return container.get("securityContext") or {}


def _named(names: list[str], kind: str = "container") -> str:
    quoted = ", ".join(f'"{name}"' for name in names)
    return f"{kind}{'s' if len(names) > 1 else ''} {quoted}"


def _baseline(spec: Obj) -> list[str]:
    found: list[str] = []
    pod = spec.get("securityContext") or {}
    shared = [f"{name}=true" for name in ("hostNetwork", "hostPID", "hostIPC") if spec.get(name)]
    if shared:
        found.append(f"host namespaces ({', '.join(shared)})")
    privileged = [c["name"] for c in _containers(spec) if _context(c).get("privileged")]
    if privileged:
        found.append(f"privileged ({_named(privileged)} must not set securityContext.privileged=true)")
    greedy, asked = [], set()
    for container in _containers(spec):
        extra = {
            cap for cap in (_context(container).get("capabilities") or {}).get("add") or () if cap not in _CAPABILITIES
        }
        if extra:
            greedy.append(container["name"])
            asked |= extra
    if greedy:
        listed = ", ".join(f'"{cap}"' for cap in sorted(asked))
        found.append(
            f"non-default capabilities ({_named(greedy)} must not include {listed} in securityContext.capabilities.add)"
        )
    host_paths = [v["name"] for v in spec.get("volumes") or () if "hostPath" in v]
    if host_paths:
        found.append(f"hostPath volumes ({_named(host_paths, 'volume')})")
    ports: dict[str, list[str]] = {}
    for container in _containers(spec):
        used = [str(p["hostPort"]) for p in container.get("ports") or () if p.get("hostPort")]
        if used:
            ports[container["name"]] = used
    if ports:
        numbers = sorted({p for used in ports.values() for p in used})
        found.append(
            f"hostPort ({_named(list(ports))} use{'s' if len(ports) == 1 else ''} "
            f"hostPort{'s' if len(numbers) > 1 else ''} {', '.join(numbers)})"
        )
    if (pod.get("seccompProfile") or {}).get("type") == "Unconfined":
        found.append('seccompProfile (pod must not set securityContext.seccompProfile.type to "Unconfined")')
    loose = [
        c["name"] for c in _containers(spec) if (_context(c).get("seccompProfile") or {}).get("type") == "Unconfined"
    ]
    if loose:
        found.append(
            f'seccompProfile ({_named(loose)} must not set securityContext.seccompProfile.type to "Unconfined")'
        )
    unmasked = [c["name"] for c in _containers(spec) if _context(c).get("procMount", "Default") != "Default"]
    if unmasked:
        found.append(f'procMount ({_named(unmasked)} must not set securityContext.procMount to "Unmasked")')
    bad = [s["name"] for s in pod.get("sysctls") or () if s["name"] not in _SYSCTLS]
    if bad:
        found.append(f"forbidden sysctls ({', '.join(bad)})")
    return found


def _restricted(spec: Obj) -> list[str]:
    found: list[str] = []
    pod = spec.get("securityContext") or {}
    containers = _containers(spec)
    rising = [c["name"] for c in containers if _context(c).get("allowPrivilegeEscalation") is not False]
    if rising:
        found.append(
            f"allowPrivilegeEscalation != false ({_named(rising)} must set "
            "securityContext.allowPrivilegeEscalation=false)"
        )
    keeping, adding = [], []
    for container in containers:
        capabilities = _context(container).get("capabilities") or {}
        if "ALL" not in (capabilities.get("drop") or ()):
            keeping.append(container["name"])
        if any(cap != "NET_BIND_SERVICE" for cap in capabilities.get("add") or ()):
            adding.append(container["name"])
    if keeping or adding:
        parts = []
        if keeping:
            parts.append(f'{_named(keeping)} must set securityContext.capabilities.drop=["ALL"]')
        if adding:
            extra = sorted(
                {
                    cap
                    for c in containers
                    for cap in (_context(c).get("capabilities") or {}).get("add") or ()
                    if cap != "NET_BIND_SERVICE"
                }
            )
            listed = ", ".join(f'"{cap}"' for cap in extra)
            parts.append(f"{_named(adding)} must not include {listed} in securityContext.capabilities.add")
        found.append(f"unrestricted capabilities ({'; '.join(parts)})")
    volumes = [v["name"] for v in spec.get("volumes") or () if any(key not in _VOLUMES for key in v)]
    if volumes:
        kinds = sorted({key for v in spec["volumes"] for key in v if key not in _VOLUMES})
        listed = ", ".join(f'"{kind}"' for kind in kinds)
        found.append(
            f"restricted volume types ({_named(volumes, 'volume')} use{'s' if len(volumes) == 1 else ''} restricted "
            f"volume type{'s' if len(kinds) > 1 else ''} {listed})"
        )
    loud = [c["name"] for c in containers if _context(c).get("runAsNonRoot") is False]
    if loud:
        found.append(f"runAsNonRoot != true ({_named(loud)} must not set securityContext.runAsNonRoot=false)")
    elif pod.get("runAsNonRoot") is not True:
        silent = [c["name"] for c in containers if _context(c).get("runAsNonRoot") is None]
        if silent:
            found.append(f"runAsNonRoot != true (pod or {_named(silent)} must set securityContext.runAsNonRoot=true)")
    roots = [c["name"] for c in containers if _context(c).get("runAsUser") == 0]
    if pod.get("runAsUser") == 0:
        found.append("runAsUser=0 (pod must not set runAsUser=0)")
    elif roots:
        found.append(f"runAsUser=0 ({_named(roots)} must not set runAsUser=0)")
    if (pod.get("seccompProfile") or {}).get("type") not in ("RuntimeDefault", "Localhost"):
        silent = [
            c["name"]
            for c in containers
            if (_context(c).get("seccompProfile") or {}).get("type")
            not in ("RuntimeDefault", "Localhost", "Unconfined")
        ]
        if silent:
            found.append(
                f"seccompProfile (pod or {_named(silent)} must set securityContext.seccompProfile.type to "
                '"RuntimeDefault" or "Localhost")'
            )
    return found
