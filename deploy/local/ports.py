"""Free ports, the same ones over restarts."""

from __future__ import annotations

import random
import socket
from itertools import islice

LOOPBACK = "127.0.0.1"
RANGE = range(15_000, 32_000)


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
    """`count` different ports that are free now, drawn at random.

    They lie below what systems give to outgoing connections: a port of that range that is free now can be somebody's
    end of a connection a moment later, when the server that it was chosen for wants to listen.
    """
    candidates = random.SystemRandom().sample(RANGE, len(RANGE))
    found = list(islice(filter(is_free, candidates), count))
    if len(found) < count:
        raise OSError(f"no {count} free ports between {RANGE.start} and {RANGE.stop}")
    return found


def settle(names: list[str], remembered: dict[str, int]) -> dict[str, int]:
    """A port for each name: the remembered one where it is still free, otherwise a new one."""
    kept = {name: remembered[name] for name in names if name in remembered and is_free(remembered[name])}
    missing = [name for name in names if name not in kept]
    return kept | dict(zip(missing, free_ports(len(missing)), strict=True))
