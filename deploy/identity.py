"""The certificate, the token and the kubeconfig of one API server of the sandbox."""

from __future__ import annotations

import base64
import ipaddress
import os
import secrets
import ssl
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text[:64])])


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def issue(names: list[str], *, days: int, addresses: tuple[str, ...] = ()) -> tuple[bytes, bytes]:
    """Return a self-signed certificate for DNS names and addresses, and its key, both PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    present = datetime.now(UTC)
    subject = _name(names[0] if names else "localhost")
    alternatives: list[x509.GeneralName] = [x509.DNSName(name) for name in names]
    alternatives += [x509.IPAddress(ipaddress.ip_address(address)) for address in addresses]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(present - timedelta(minutes=5))
        .not_valid_after(present + timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    return certificate.public_bytes(serialization.Encoding.PEM), _pem(key)


def write_private(path: Path, data: bytes) -> None:
    """Write a file of mode 0600 atomically: readers see the old content or the new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        os.fchmod(descriptor, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def kubeconfig(server: str, *, token: str, authority: bytes | None = None) -> bytes:
    """Return a kubeconfig for `server`. `authority` is the PEM certificate that signs for it."""
    cluster = {"server": server}
    if authority is not None:
        cluster["certificate-authority-data"] = base64.b64encode(authority).decode()
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "berth-local",
        "clusters": [{"name": "berth-local", "cluster": cluster}],
        "users": [{"name": "berth", "user": {"token": token}}],
        "contexts": [{"name": "berth-local", "context": {"cluster": "berth-local", "user": "berth"}}],
    }
    return yaml.safe_dump(config, sort_keys=False).encode()


class Identity:
    """The certificate and the token of a server, kept under `directory` so that a kubeconfig outlives a restart."""

    def __init__(self, directory: Path, host: str) -> None:
        self._certificate, self._key, token = (directory / n for n in ("server.crt", "server.key", "token"))
        if not self._certificate.exists() or not self._key.exists():
            addresses = {"127.0.0.1", "::1"}
            try:
                addresses.add(str(ipaddress.ip_address(host)))
            except ValueError:
                pass
            certificate, key = issue(["localhost"], days=3650, addresses=tuple(sorted(addresses)))
            write_private(self._key, key)
            write_private(self._certificate, certificate)
        if not token.exists():
            write_private(token, secrets.token_urlsafe(32).encode())
        self.token = token.read_text().strip()

    def tls(self) -> ssl.SSLContext:
        """Return the TLS settings of the server."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(self._certificate, self._key)
        return context

    def kubeconfig(self, server: str) -> bytes:
        """Return a kubeconfig for `server` (https)."""
        return kubeconfig(server, token=self.token, authority=self._certificate.read_bytes())
