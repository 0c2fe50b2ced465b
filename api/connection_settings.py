"""Checks of the addresses of PostgreSQL and Temporal: well-formed, and encrypted where customers are real."""

from __future__ import annotations

import psycopg
from psycopg.conninfo import conninfo_to_dict
from pydantic import ValidationInfo
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from api.environment import is_deployed, is_loopback


def check_database_url(value: str) -> str:
    """Require an address of PostgreSQL as SQLAlchemy spells it. The error does not quote it: it may hold a password."""
    scheme, separator, _ = value.partition("://")
    try:
        if not separator or scheme not in ("postgresql", "postgresql+psycopg"):
            raise ValueError
        # Both read it. Not `urlsplit`, for which a password ends at "#" or "?"; for libpq it ends at "/".
        libpq = conninfo_to_dict(value.replace("+psycopg", "", 1))
        port = make_url(value).port
        if (port is not None and not 0 < port <= 65_535) or (port is None and "port" in libpq and "?" not in value):
            raise ValueError
    except (ValueError, ArgumentError, psycopg.ProgrammingError):
        raise ValueError(
            "is not an address of PostgreSQL. Set one such as postgresql+psycopg://role@host:5432/berth;"
            " in a password write / as %2F, @ as %40 and % as %25"
        ) from None
    return value


def check_database_tls(value: str, info: ValidationInfo) -> str:
    """Refuse clear text towards a distant database where customers are real. The error does not quote the address."""
    return require_database_tls(value) if is_deployed(info) else value


def require_database_tls(value: str) -> str:
    """Refuse clear text towards a database on another machine. The error does not quote the address."""
    libpq = conninfo_to_dict(value.replace("+psycopg", "", 1))
    hosts = str(libpq.get("hostaddr") or libpq.get("host") or "").split(",")
    distant = [host for host in hosts if host and not host.startswith(("/", "@")) and not is_loopback(host)]
    if distant and libpq.get("sslmode") not in ("require", "verify-ca", "verify-full"):
        raise ValueError(
            f"does not require TLS: customers' data would travel to {distant[0]} in clear text."
            " Add ?sslmode=verify-full (with sslrootcert=… for a private authority)"
        )
    return value


def check_host_and_port(value: str) -> str:
    """Require ``host:port``."""
    host, _, port = value.rpartition(":")
    if not host or "/" in host or not (port.isascii() and port.isdigit() and 0 < int(port) <= 65_535):
        raise ValueError("is not a host and a port. Set them as temporal.company.com:7233")
    return value


def check_temporal_tls(value: str, info: ValidationInfo) -> str:
    """Refuse clear text towards Temporal where customers are real, unless it runs on this machine.

    A client certificate is refused without its key, and it and the authority where the connection would not use them.
    """
    authority, certificate, key, api_key = (
        bool(info.data.get(f"temporal_{name}")) for name in ("ca", "certificate", "key", "api_key")
    )
    if certificate != key:
        raise ValueError("needs both BERTH_TEMPORAL_CERTIFICATE and BERTH_TEMPORAL_KEY, or neither")
    if certificate and value == "off" and not api_key:
        raise ValueError("is off, so that BERTH_TEMPORAL_CERTIFICATE would not be presented. Set it to on")
    if authority and value == "off" and not api_key:
        raise ValueError("is off, so that the server would not be verified with BERTH_TEMPORAL_CA. Set it to on")
    host = str(info.data.get("temporal_address", "")).rpartition(":")[0].strip("[]")
    if value == "off" and is_deployed(info) and not api_key and not is_loopback(host):
        raise ValueError(
            f"is off: commands to {host} would travel without encryption and anyone could send them. Set it to on"
        )
    return value
