"""Services' endpoints, ingresses' addresses, and certificates as cert-manager would issue them."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

from deploy.local.cluster.controllers.base import Controller, Keys, World, condition, has_condition, own, reference
from deploy.local.cluster.controllers.workloads import PODS, is_ready
from deploy.local.cluster.identity import issue
from deploy.local.cluster.resources import BY_KEY, Obj
from deploy.local.cluster.store import Change, Record
from deploy.local.cluster.times import now

SERVICES, ENDPOINTS, SLICES = BY_KEY["/services"], BY_KEY["/endpoints"], BY_KEY["discovery.k8s.io/endpointslices"]
INGRESSES, CERTIFICATES, SECRETS = (
    BY_KEY["networking.k8s.io/ingresses"],
    BY_KEY["cert-manager.io/certificates"],
    BY_KEY["/secrets"],
)
ISSUERS = {"ClusterIssuer": BY_KEY["cert-manager.io/clusterissuers"], "Issuer": BY_KEY["cert-manager.io/issuers"]}
ISSUING = 0.2


class Endpoints(Controller):
    name = "endpoints"

    def watches(self) -> dict[str, Keys]:
        return {"/services": own, "/pods": self._by_pod}

    def _by_pod(self, change: Change) -> Iterable[tuple[str, str]]:
        old = change.old.obj if change.old else None
        if change.type != "ADDED" and old is not None and change.type != "DELETED":
            same = is_ready(old) == is_ready(change.new.obj) and old["status"].get("podIP") == change.new.obj[
                "status"
            ].get("podIP")
            if same and old["metadata"].get("labels") == change.new.obj["metadata"].get("labels"):
                return ()
        labels = change.new.obj["metadata"].get("labels") or {}
        return [
            (s.namespace, s.name)
            for s in self.store.every(SERVICES, change.new.namespace)
            if s.obj["spec"].get("selector") and s.obj["spec"]["selector"].items() <= labels.items()
        ]

    def reconcile(self, namespace: str, name: str) -> float | None:
        service = self.store.get(SERVICES, namespace, name)
        if service is None:
            gone = self.store.get(ENDPOINTS, namespace, name)
            if gone is not None:
                self.world.delete(ENDPOINTS, gone)
            return None
        spec = service.obj["spec"]
        if not spec.get("selector") or service.obj["metadata"].get("deletionTimestamp"):
            return None
        ready: list[Obj] = []
        unready: list[Obj] = []
        for pod in self.store.every(PODS, namespace):
            obj = pod.obj
            labels = obj["metadata"].get("labels") or {}
            if not spec["selector"].items() <= labels.items() or not obj["status"].get("podIP"):
                continue
            if obj["status"].get("phase") in ("Succeeded", "Failed") or obj["metadata"].get("deletionTimestamp"):
                continue
            address = {
                "ip": obj["status"]["podIP"],
                "nodeName": obj["spec"].get("nodeName", ""),
                "targetRef": {"kind": "Pod", "namespace": namespace, "name": pod.name, "uid": obj["metadata"]["uid"]},
            }
            (ready if is_ready(obj) or spec.get("publishNotReadyAddresses") else unready).append(address)
        ports = [
            {
                **({"name": p["name"]} if p.get("name") else {}),
                "port": p["targetPort"] if isinstance(p["targetPort"], int) else p["port"],
                "protocol": p["protocol"],
            }
            for p in spec.get("ports") or ()
        ]
        subset: Obj = {}
        if ready:
            subset["addresses"] = sorted(ready, key=lambda a: str(a["ip"]))
        if unready:
            subset["notReadyAddresses"] = sorted(unready, key=lambda a: str(a["ip"]))
        if subset and ports:
            subset["ports"] = ports
        self._put(service, [subset] if subset else [])
        self._slice(service, ready, unready, ports)
        return None

    def _put(self, service: Record, subsets: list[Obj]) -> None:
        live = self.store.get(ENDPOINTS, service.namespace, service.name)
        if live is None:
            meta = {
                "name": service.name,
                "namespace": service.namespace,
                "labels": service.obj["metadata"].get("labels") or {},
            }
            made: Obj = {"apiVersion": "v1", "kind": "Endpoints", "metadata": meta}
            if subsets:
                made["subsets"] = subsets
            self.world.create(ENDPOINTS, made)
            return

        def write(obj: Obj) -> None:
            if subsets:
                obj["subsets"] = subsets
            else:
                obj.pop("subsets", None)

        self.registry.modify(ENDPOINTS, live, write)

    def _slice(self, service: Record, ready: list[Obj], unready: list[Obj], ports: list[Obj]) -> None:
        endpoints = [
            {
                "addresses": [a["ip"]],
                "conditions": {"ready": good, "serving": good, "terminating": False},
                "nodeName": a["nodeName"],
                "targetRef": a["targetRef"],
            }
            for good, group in ((True, ready), (False, unready))
            for a in group
        ]
        name = f"{service.name}-{service.obj['metadata']['uid'][:5]}"
        live = self.store.get(SLICES, service.namespace, name)
        if live is None:
            self.world.create(
                SLICES,
                {
                    "apiVersion": "discovery.k8s.io/v1",
                    "kind": "EndpointSlice",
                    "metadata": {
                        "name": name,
                        "namespace": service.namespace,
                        "labels": {
                            "kubernetes.io/service-name": service.name,
                            "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
                        },
                        "ownerReferences": [reference(SERVICES, service.obj)],
                    },
                    "addressType": "IPv4",
                    "endpoints": endpoints,
                    "ports": ports,
                },
            )
            return

        def write(obj: Obj) -> None:
            obj["endpoints"] = endpoints
            obj["ports"] = ports

        self.registry.modify(SLICES, live, write)


class Ingresses(Controller):
    """An address for every ingress, and the certificate that its annotation asks cert-manager for."""

    name = "ingresses"

    def watches(self) -> dict[str, Keys]:
        return {"networking.k8s.io/ingresses": own}

    def reconcile(self, namespace: str, name: str) -> float | None:
        record = self.store.get(INGRESSES, namespace, name)
        if record is None or record.obj["metadata"].get("deletionTimestamp"):
            return None

        def write(obj: Obj) -> None:
            obj["status"] = {"loadBalancer": {"ingress": [{"ip": "127.0.0.1"}]}}

        self.registry.modify(INGRESSES, record, write)
        notes = record.obj["metadata"].get("annotations") or {}
        issuer = notes.get("cert-manager.io/cluster-issuer") or notes.get("cert-manager.io/issuer")
        if not issuer:
            return None
        kind = "ClusterIssuer" if "cert-manager.io/cluster-issuer" in notes else "Issuer"
        for entry in record.obj["spec"].get("tls") or ():
            secret = entry.get("secretName")
            if secret and self.store.get(CERTIFICATES, namespace, secret) is None:
                self.world.create(
                    CERTIFICATES,
                    {
                        "apiVersion": "cert-manager.io/v1",
                        "kind": "Certificate",
                        "metadata": {
                            "name": secret,
                            "namespace": namespace,
                            "ownerReferences": [reference(INGRESSES, record.obj)],
                        },
                        "spec": {
                            "secretName": secret,
                            "dnsNames": entry.get("hosts") or [],
                            "issuerRef": {"group": "cert-manager.io", "kind": kind, "name": issuer},
                        },
                    },
                )
        return None


class Issuers(Controller):
    name = "issuers"

    def watches(self) -> dict[str, Keys]:
        return {issuer.key: self._keys for issuer in ISSUERS.values()}

    def _keys(self, change: Change) -> Iterable[tuple[str, str]]:
        return ((change.resource.key, f"{change.new.namespace}/{change.new.name}"),)

    def reconcile(self, namespace: str, name: str) -> float | None:
        resource = BY_KEY[namespace]
        space, _, plain = name.partition("/")
        record = self.store.get(resource, space, plain)
        if record is not None:

            def write(obj: Obj) -> None:
                condition(
                    obj.setdefault("status", {}),
                    "Ready",
                    "True",
                    "ACMEAccountRegistered",
                    "The ACME account was registered with the ACME server",
                )

            self.registry.modify(resource, record, write)
        return None


class Certificates(Controller):
    name = "certificates"

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self._began: set[str] = set()

    def watches(self) -> dict[str, Keys]:
        return {
            "cert-manager.io/certificates": own,
            "cert-manager.io/clusterissuers": self._all,
            "cert-manager.io/issuers": self._all,
            "/secrets": self._by_secret,
        }

    def _all(self, change: Change) -> Iterable[tuple[str, str]]:
        return [(r.namespace, r.name) for r in self.store.every(CERTIFICATES) if not has_condition(r.obj, "Ready")]

    def _by_secret(self, change: Change) -> Iterable[tuple[str, str]]:
        if change.type != "DELETED" or change.new.obj.get("type") != "kubernetes.io/tls":
            return ()
        return [
            (r.namespace, r.name)
            for r in self.store.every(CERTIFICATES, change.new.namespace)
            if r.obj["spec"].get("secretName") == change.new.name
        ]

    def reconcile(self, namespace: str, name: str) -> float | None:
        record = self.store.get(CERTIFICATES, namespace, name)
        if record is None or record.obj["metadata"].get("deletionTimestamp"):
            return None
        obj = record.obj
        spec = obj["spec"]
        wanted = spec.get("issuerRef") or {}
        kind = ISSUERS.get(wanted.get("kind", "Issuer"), ISSUERS["Issuer"])
        issuer = self.store.get(kind, namespace if kind.namespaced else "", wanted.get("name", ""))
        if issuer is None:
            self._say(
                record,
                "False",
                "DoesNotExist",
                f'Issuing certificate as Secret does not exist; referenced issuer "{wanted.get("name", "")}" not found',
            )
            return None
        secret = self.store.get(SECRETS, namespace, spec["secretName"])
        done = obj.get("status", {}).get("observedGeneration") == obj["metadata"].get("generation") and has_condition(
            obj, "Ready"
        )
        if secret is not None and done:
            return None
        uid = obj["metadata"]["uid"]
        if uid not in self._began:
            self._began.add(uid)
            self._say(record, "False", "DoesNotExist", "Issuing certificate as Secret does not exist")
            return self.world.seconds(ISSUING)
        self._began.discard(uid)
        self._issue(record, wanted.get("name", ""))
        return None

    def _issue(self, record: Record, issuer: str) -> None:
        spec = record.obj["spec"]
        names = [*(spec.get("dnsNames") or ()), *([spec["commonName"]] if spec.get("commonName") else [])]
        certificate, key = issue(list(dict.fromkeys(names)), days=90)
        data = {"tls.crt": base64.b64encode(certificate).decode(), "tls.key": base64.b64encode(key).decode()}
        live = self.store.get(SECRETS, record.namespace, spec["secretName"])
        if live is None:
            meta = {
                "name": spec["secretName"],
                "namespace": record.namespace,
                "annotations": {
                    "cert-manager.io/certificate-name": record.name,
                    "cert-manager.io/issuer-name": issuer,
                    "cert-manager.io/alt-names": ",".join(names),
                },
                "labels": {"controller.cert-manager.io/fao": "true"},
            }
            self.world.create(
                SECRETS,
                {"apiVersion": "v1", "kind": "Secret", "metadata": meta, "type": "kubernetes.io/tls", "data": data},
            )
        else:
            self.registry.modify(SECRETS, live, lambda obj: obj.update(data=data))
        self._say(record, "True", "Ready", "Certificate is up to date and has not expired")

    def _say(self, record: Record, value: str, reason: str, message: str) -> None:
        def write(obj: Obj) -> None:
            status = obj.setdefault("status", {})
            generation = obj["metadata"].get("generation", 1)
            condition(status, "Ready", value, reason, message, observedGeneration=generation)
            if value == "True":
                end = datetime.now(UTC) + timedelta(days=90)
                status["observedGeneration"] = generation
                status["notBefore"] = now()
                status["notAfter"] = end.strftime("%Y-%m-%dT%H:%M:%SZ")
                status["renewalTime"] = (end - timedelta(days=30)).strftime("%Y-%m-%dT%H:%M:%SZ")
                status["revision"] = status.get("revision", 0) + 1

        live = self.store.get(CERTIFICATES, record.namespace, record.name)
        if live is not None:
            self.registry.modify(CERTIFICATES, live, write)
