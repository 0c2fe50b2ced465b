"""Checks of the addresses of PostgreSQL and Temporal: well-formed, and encrypted where customers are real."""

from __future__ import annotations

import os
from itertools import zip_longest

import psycopg
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509 import load_pem_x509_certificates
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from pydantic import SecretStr, ValidationInfo
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from api.environment import is_deployed, is_loopback
from db.session import connect_arguments

LIBPQ_VARIABLES = {"host": "PGHOST", "hostaddr": "PGHOSTADDR", "service": "PGSERVICE", "sslmode": "PGSSLMODE"}
"""From these libpq takes what an address does not say."""


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
        # A repeated parameter is no text, except the hosts and their ports, which SQLAlchemy joins.
        arguments = connect_arguments(value)
        if not all(isinstance(argument, str | int) for argument in arguments.values()):
            raise ValueError
        make_conninfo(**arguments)
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
    inherited = {name: os.environ[variable] for name, variable in LIBPQ_VARIABLES.items() if os.environ.get(variable)}
    libpq = inherited | connect_arguments(value)
    addresses, names = (str(libpq.get(name) or "").split(",") for name in ("hostaddr", "host"))
    # For each of several hosts libpq connects to `hostaddr`, whatever `host` says.
    hosts = [(address or name).strip() for address, name in zip_longest(addresses, names, fillvalue="")]
    distant = [host for host in hosts if host and not host.startswith(("/", "@")) and not is_loopback(host)]
    if not distant and libpq.get("service"):
        distant = ["the host of a connection service"]
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


def check_certificates(value: str | None) -> str | None:
    """Require at least one certificate in PEM; None and empty text are unset. The error does not quote the value."""
    if not value:
        return value
    try:
        load_pem_x509_certificates(value.encode())
    except ValueError:
        raise ValueError(
            "is no certificate in PEM. Set the lines from -----BEGIN CERTIFICATE----- on, or …_FILE to their file"
        ) from None
    return value


def check_private_key(value: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
    """Require a private key in PEM without a password: that of ``temporal_certificate``. It is not quoted."""
    if value is None or not value.get_secret_value():
        return value
    try:
        key = load_pem_private_key(value.get_secret_value().encode(), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise ValueError(
            "is no private key in PEM, or needs a password. Set the lines from -----BEGIN PRIVATE KEY----- on,"
            " or …_FILE to their file"
        ) from None
    certificate = info.data.get("temporal_certificate")
    if certificate and load_pem_x509_certificates(certificate.encode())[0].public_key() != key.public_key():
        raise ValueError("is not the key of BERTH_TEMPORAL_CERTIFICATE. Set the key that it was issued for")
    return value


def check_temporal_tls(value: str, info: ValidationInfo) -> str:
    """Refuse clear text towards Temporal where customers are real, unless it runs on this machine.

    A client certificate is refused without its key, and it and the authority where the connection would not use them.
    """
    authority, certificate, key, api_key = (
        bool(info.data.get(f"temporal_{name}")) for name in ("ca", "certificate", "key", "api_key")
    )
    # A malformed one is missing here, and a fault already.
    if certificate != key and {"temporal_certificate", "temporal_key"} <= info.data.keys():
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
