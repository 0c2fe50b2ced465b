"""Addresses of ingresses, and certificates as cert-manager issues them."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

from deploy.identity import issue
from deploy.local.cluster.controllers.base import (
    Controller,
    ControlLoop,
    Key,
    Keys,
    has_condition,
    itself,
    owner_reference,
    set_condition,
)
from deploy.local.cluster.resources import CERTIFICATES, CLUSTER_ISSUERS, INGRESSES, ISSUERS, SECRETS, Obj
from deploy.local.cluster.store import Change, StoredObject
from deploy.local.cluster.times import now

ISSUING = 0.2
LIFETIME = timedelta(days=90)


class Ingresses(Controller):
    """Gives every ingress an address, and the certificate that its annotation asks for."""

    name = "ingresses"

    def watches(self) -> dict[str, Keys]:
        return {"networking.k8s.io/ingresses": itself}

    def reconcile(self, namespace: str, name: str) -> float | None:
        stored = self.store.get(INGRESSES, namespace, name)
        if stored is None or stored.obj["metadata"].get("deletionTimestamp"):
            return None
        status = {"loadBalancer": {"ingress": [{"ip": "127.0.0.1"}]}}
        self.registry.modify(INGRESSES, stored, lambda obj: obj.update(status=status))
        notes = stored.obj["metadata"].get("annotations") or {}
        for annotation, kind in (("cluster-issuer", "ClusterIssuer"), ("issuer", "Issuer")):
            issuer = notes.get(f"cert-manager.io/{annotation}")
            for entry in (stored.obj["spec"].get("tls") or ()) if issuer else ():
                secret = entry.get("secretName")
                if not secret or self.store.get(CERTIFICATES, namespace, secret) is not None:
                    continue
                owners = [owner_reference(INGRESSES, stored.obj)]
                certificate = {
                    "apiVersion": "cert-manager.io/v1",
                    "kind": "Certificate",
                    "metadata": {"name": secret, "namespace": namespace, "ownerReferences": owners},
                    "spec": {
                        "secretName": secret,
                        "dnsNames": entry.get("hosts") or [],
                        "issuerRef": {"group": "cert-manager.io", "kind": kind, "name": issuer},
                    },
                }
                self.loop.create(CERTIFICATES, certificate)
        return None


class Certificates(Controller):
    """Issues a self-signed certificate into the Secret that a Certificate names."""

    name = "certificates"

    def __init__(self, loop: ControlLoop) -> None:
        super().__init__(loop)
        self._issuing: set[str] = set()

    def watches(self) -> dict[str, Keys]:
        issuers = dict.fromkeys(("cert-manager.io/clusterissuers", "cert-manager.io/issuers"), self._not_ready)
        return {"cert-manager.io/certificates": itself, "/secrets": self._by_secret, **issuers}

    def _not_ready(self, change: Change) -> Iterable[Key]:
        return [(r.namespace, r.name) for r in self.store.every(CERTIFICATES) if not has_condition(r.obj, "Ready")]

    def _by_secret(self, change: Change) -> Iterable[Key]:
        """Re-issue into a Secret that was deleted."""
        if change.type != "DELETED" or change.new.obj.get("type") != "kubernetes.io/tls":
            return ()
        certificates = self.store.every(CERTIFICATES, change.new.namespace)
        return [(r.namespace, r.name) for r in certificates if r.obj["spec"]["secretName"] == change.new.name]

    def reconcile(self, namespace: str, name: str) -> float | None:
        stored = self.store.get(CERTIFICATES, namespace, name)
        if stored is None or stored.obj["metadata"].get("deletionTimestamp"):
            return None
        meta, spec = stored.obj["metadata"], stored.obj["spec"]
        issuer_ref = spec.get("issuerRef") or {}
        in_cluster = issuer_ref.get("kind") == "ClusterIssuer"
        kind, where = (CLUSTER_ISSUERS, "") if in_cluster else (ISSUERS, namespace)
        issuer = self.store.get(kind, where, issuer_ref.get("name", ""))
        if issuer is None:
            message = f'Issuing certificate: referenced issuer "{issuer_ref.get("name", "")}" not found'
            self._set_ready(stored, "False", "DoesNotExist", message)
            return None
        issued = stored.obj.get("status", {}).get("observedGeneration") == meta["generation"]
        if issued and has_condition(stored.obj, "Ready") and self.store.get(SECRETS, namespace, spec["secretName"]):
            return None
        if meta["uid"] not in self._issuing:
            self._issuing.add(meta["uid"])
            self._set_ready(stored, "False", "DoesNotExist", "Issuing certificate as Secret does not exist")
            return self.loop.seconds(ISSUING)
        self._issuing.discard(meta["uid"])
        self._issue(stored)
        self._set_ready(stored, "True", "Ready", "Certificate is up to date and has not expired")
        return None

    def _issue(self, stored: StoredObject) -> None:
        spec = stored.obj["spec"]
        names = list(dict.fromkeys([*(spec.get("dnsNames") or ()), *filter(None, [spec.get("commonName")])]))
        certificate, key = (base64.b64encode(part).decode() for part in issue(names, days=LIFETIME.days))
        data = {"tls.crt": certificate, "tls.key": key}
        live = self.store.get(SECRETS, stored.namespace, spec["secretName"])
        if live is not None:
            self.registry.modify(SECRETS, live, lambda obj: obj.update(data=data))
            return
        notes = {"cert-manager.io/certificate-name": stored.name, "cert-manager.io/alt-names": ",".join(names)}
        meta = {"name": spec["secretName"], "namespace": stored.namespace, "annotations": notes}
        secret = {"apiVersion": "v1", "kind": "Secret", "metadata": meta, "type": "kubernetes.io/tls", "data": data}
        self.loop.create(SECRETS, secret)

    def _set_ready(self, stored: StoredObject, value: str, reason: str, message: str) -> None:
        def write(obj: Obj) -> None:
            status = obj.setdefault("status", {})
            generation = obj["metadata"]["generation"]
            set_condition(status, "Ready", value, reason, message, observedGeneration=generation)
            if value == "True":
                end = datetime.now(UTC) + LIFETIME
                status |= {"observedGeneration": generation, "notBefore": now()}
                status |= {"notAfter": end.strftime("%Y-%m-%dT%H:%M:%SZ"), "revision": status.get("revision", 0) + 1}
                status["renewalTime"] = (end - LIFETIME / 3).strftime("%Y-%m-%dT%H:%M:%SZ")

        self.registry.modify(CERTIFICATES, stored, write)
