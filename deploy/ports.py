"""Free ports, the same ones over restarts."""

from __future__ import annotations

import random
import socket
from itertools import islice

LOOPBACK = "127.0.0.1"
PORT_RANGE = range(15_000, 32_000)


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
    """Return `count` different ports that are free now, drawn at random.

    They lie below the range of ephemeral ports: a free port of that range can be the local end of a connection by the
    time the server listens on it.
    """
    candidates = random.SystemRandom().sample(PORT_RANGE, len(PORT_RANGE))
    ports = list(islice(filter(is_free, candidates), count))
    if len(ports) < count:
        raise OSError(f"no {count} free ports between {PORT_RANGE.start} and {PORT_RANGE.stop}")
    return ports


def allocate_ports(names: list[str], previous: dict[str, int]) -> dict[str, int]:
    """Return a port for each name: the previous one where it is still free, otherwise a new one."""
    ports = {name: previous[name] for name in names if name in previous and is_free(previous[name])}
    missing = [name for name in names if name not in ports]
    return ports | dict(zip(missing, free_ports(len(missing)), strict=True))
