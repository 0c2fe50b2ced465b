"""Free ports, the same ones over restarts."""

from __future__ import annotations

import socket

LOOPBACK = "127.0.0.1"


def is_free(port: int) -> bool:
    """Whether a server could listen on this port of the loopback interface now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # What servers do as well: connections of a former run that still linger do not count as taken.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def free_ports(count: int) -> list[int]:
    """`count` different ports that are free now."""
    probes = [socket.socket(socket.AF_INET, socket.SOCK_STREAM) for _ in range(count)]
    try:
        for probe in probes:
            probe.bind((LOOPBACK, 0))
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()


def settle(names: list[str], remembered: dict[str, int]) -> dict[str, int]:
    """A port for each name: the remembered one where it is still free, otherwise a new one."""
    kept = {name: remembered[name] for name in names if name in remembered and is_free(remembered[name])}
    missing = [name for name in names if name not in kept]
    return kept | dict(zip(missing, free_ports(len(missing)), strict=True))
