"""Free ports, the same ones over restarts."""

from __future__ import annotations

import random
import socket
from itertools import islice
from pathlib import Path

LOOPBACK = "127.0.0.1"
EPHEMERAL_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
# The claims of this process, the oldest of which are given up: by then a server listens on the port.
MAX_CLAIMS = 256
MIN_PORTS = 1_000
_claims: dict[int, socket.socket] = {}


def port_range(ephemeral_range: Path = EPHEMERAL_RANGE) -> range:
    """Return the ports that may be drawn: 17,000, or 5,000 where the kernel's ephemeral ports begin early.

    They lie below the range of ephemeral ports: a free port of that range can be the local end of a connection by the
    time the server listens on it. Only where hardly any lie below it (``1024 65535``, as servers are often tuned) they
    are of that range.
    """
    try:
        first_ephemeral = int(ephemeral_range.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        first_ephemeral = 32_768
    end = min(first_ephemeral, 32_000)
    below = range(15_000, end) if end >= 25_000 else range(max(end - 5_000, 1_024), end)
    return below if len(below) >= MIN_PORTS else range(15_000, 32_000)


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


def _claim(port: int) -> bool:
    """Claim a port among the processes that draw ports: no other draws it until this process ends.

    Between drawing a port and listening on it lie seconds, in which a second process would find it free as well. The
    claim is the UDP port of the same number, which nothing here uses and which the kernel frees with the process.

    Returns:
        Whether the port was free and not claimed.
    """
    claim = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        claim.bind((LOOPBACK, port))
    except OSError:
        claim.close()
        return False
    if not is_free(port):
        claim.close()
        return False
    if len(_claims) == MAX_CLAIMS:
        _claims.pop(next(iter(_claims))).close()
    _claims[port] = claim
    return True


def _keep(port: int) -> bool:
    """Claim a port of an earlier start, unless this process has claimed it already. Return whether it can be used."""
    return is_free(port) if port in _claims else _claim(port)


def free_ports(count: int) -> list[int]:
    """Return `count` different ports that are free now, drawn at random, and that no other process draws meanwhile."""
    ports = port_range()
    candidates = random.SystemRandom().sample(ports, len(ports))
    drawn = list(islice(filter(_claim, candidates), count))
    if len(drawn) < count:
        raise OSError(f"no {count} free ports between {ports.start} and {ports.stop}")
    return drawn


def allocate_ports(names: list[str], previous: dict[str, int]) -> dict[str, int]:
    """Return a port for each name: the previous one where it is still free, otherwise a new one. Each is claimed."""
    ports = {name: previous[name] for name in names if name in previous and _keep(previous[name])}
    missing = [name for name in names if name not in ports]
    return ports | dict(zip(missing, free_ports(len(missing)), strict=True))
