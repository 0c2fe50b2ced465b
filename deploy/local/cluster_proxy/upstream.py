"""The API server behind the proxy: its address and the proxy's own credentials, from a kubeconfig."""

from __future__ import annotations

import base64
import ssl
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml


class BadKubeconfig(RuntimeError):
    """The kubeconfig has no usable current context."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Upstream:
    """Where requests are forwarded to. Clients' credentials end at the proxy; `headers` carry the proxy's."""

    url: str
    tls: ssl.SSLContext | None = field(repr=False)
    headers: dict[str, str] = field(repr=False)

    @classmethod
    def from_kubeconfig(cls, path: Path) -> Upstream:
        """Read the current context: bearer tokens and client certificates, in the file or in files it names."""
        try:
            config: Any = yaml.safe_load(path.read_text())
            context = _named(config["contexts"], config["current-context"])["context"]
            cluster = _named(config["clusters"], context["cluster"])["cluster"]
            user = _named(config["users"], context["user"])["user"]
            url = str(cluster["server"]).rstrip("/")
            tls = _tls(cluster, user, path.parent) if url.startswith("https:") else None
            token = user.get("token") or _data(user, "tokenFile", path.parent).decode().strip()
        except (OSError, KeyError, TypeError, ValueError, StopIteration, yaml.YAMLError, ssl.SSLError) as exc:
            raise BadKubeconfig(f"{path}: {exc!r}") from exc
        return cls(url=url, tls=tls, headers={"Authorization": f"Bearer {token}"} if token else {})


def _named(entries: list[Any], name: str) -> Any:
    return next(entry for entry in entries if entry["name"] == name)


def _data(section: dict[str, Any], key: str, folder: Path) -> bytes:
    """Return `<key>-data`, or the content of the file that `<key>` names; empty where neither is set."""
    if section.get(f"{key}-data"):
        return base64.b64decode(section[f"{key}-data"])
    return (folder / section[key]).read_bytes() if section.get(key) else b""


def _tls(cluster: dict[str, Any], user: dict[str, Any], folder: Path) -> ssl.SSLContext:
    authority = _data(cluster, "certificate-authority", folder).decode()
    context = ssl.create_default_context(cadata=authority or None)
    if cluster.get("insecure-skip-tls-verify"):
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    certificate = _data(user, "client-certificate", folder)
    if certificate:
        # The ssl module loads client certificates from files only.
        with tempfile.NamedTemporaryFile() as file:
            file.write(certificate + b"\n" + _data(user, "client-key", folder))
            file.flush()
            context.load_cert_chain(file.name)
    return context
