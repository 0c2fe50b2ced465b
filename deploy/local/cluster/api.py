"""The API over HTTP: reads a request, calls the verb, and answers as kube-apiserver does."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
import logging
from dataclasses import dataclass, field
from typing import Any

import orjson
import yaml
from aiohttp import web
from aiohttp.web_request import BaseRequest

from deploy.local.cluster import discovery, errors, fields, logs, selectors, watching
from deploy.local.cluster.errors import ApiError
from deploy.local.cluster.faults import BadFault, FaultInjector
from deploy.local.cluster.registry import APPLY_PATCH, MERGE_PATCH, STRATEGIC_MERGE_PATCH, Registry, WriteOptions
from deploy.local.cluster.resources import BY_PATH, PODS, Obj, Resource
from deploy.local.cluster.selectors import Match
from deploy.local.cluster.store import ObjectStore, StoredObject, copy_of
from deploy.local.cluster.watching import Watch

log = logging.getLogger(__name__)

DISCOVERY = ("/version", "/api", "/api/v1", "/apis", "/openapi/v3")


@dataclass(slots=True, kw_only=True)
class Request:
    """A parsed request. `namespace` is None for all namespaces, empty for kinds outside namespaces."""

    http: BaseRequest
    resource: Resource
    namespace: str | None
    name: str
    subresource: str

    @property
    def space(self) -> str:
        return self.namespace or ""

    @property
    def media(self) -> str:
        return self.http.headers.get("Content-Type", "").partition(";")[0].strip()


@dataclass(slots=True, kw_only=True)
class Api:
    """Handles requests over a store."""

    store: ObjectStore
    registry: Registry
    faults: FaultInjector
    token: str
    watches: set[Watch] = field(default_factory=set)

    async def handle(self, http: BaseRequest) -> web.StreamResponse:
        """Answer one HTTP request."""
        try:
            if http.path in ("/healthz", "/livez", "/readyz"):
                return web.Response(text="ok")
            if http.path == "/sandbox/faults":
                return await self._sandbox(http)
            if http.path != "/version":
                self._authenticate(http)
            if http.path.rstrip("/") in DISCOVERY or http.path.count("/") <= 3 or http.path.startswith("/openapi/"):
                document = discovery.document(http.path.rstrip("/"))
                if document is not None:
                    return _json(document)
            return await self._dispatch(_parse(http))
        except ApiError as exc:
            return _json(exc.status(), exc.code)
        except (ConnectionResetError, asyncio.CancelledError):
            raise
        except web.HTTPRequestEntityTooLarge:
            return _json(ApiError(413, "RequestEntityTooLarge", "Request entity too large").status(), 413)
        except Exception:
            log.exception("while answering %s %s", http.method, http.path)
            return _json(errors.internal("the simulated cluster failed; see its log").status(), 500)

    def _authenticate(self, http: BaseRequest) -> None:
        scheme, _, token = http.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(token.strip().encode(), self.token.encode()):
            raise errors.unauthorized()

    # ------------------------------------------------------------ verbs

    async def _dispatch(self, request: Request) -> web.StreamResponse:
        method, resource = request.http.method, request.resource
        if request.subresource:
            return await self._subresource(request)
        if method == "GET":
            if request.name:
                return _json(self.registry.get(resource, request.space, request.name).raw)
            if request.http.query.get("watch") in ("true", "1"):
                return await self._watch(request)
            return self._list(request)
        if method == "POST" and not request.name and request.namespace is not None:
            body = await _body(request)
            return _json(self.registry.create(resource, request.space, body, _options(request)), 201)
        if method == "PUT" and request.name:
            body = await _body(request)
            return _json(self.registry.replace(resource, request.space, request.name, body, _options(request)))
        if method == "PATCH" and request.name:
            return await self._patch(request)
        if method == "DELETE" and request.namespace is not None:
            return await self._delete(request)
        raise errors.method_not_allowed()

    async def _patch(self, request: Request) -> web.Response:
        if request.media not in (MERGE_PATCH, STRATEGIC_MERGE_PATCH, APPLY_PATCH):
            raise errors.unsupported_media(
                f"the simulated cluster takes {MERGE_PATCH}, {STRATEGIC_MERGE_PATCH} and {APPLY_PATCH}"
            )
        if request.media == APPLY_PATCH and not request.http.query.get("fieldManager"):
            message = (
                'PatchOptions.meta.k8s.io "" is invalid: fieldManager: Required value: is required for apply patch'
            )
            raise ApiError(422, "Invalid", message)
        body = await _body(request)
        obj, created = self.registry.patch(
            request.resource, request.space, request.name, body, request.media, _options(request)
        )
        return _json(obj, 201 if created else 200)

    async def _delete(self, request: Request) -> web.Response:
        resource, query = request.resource, request.http.query
        body = await _body(request, empty=True)
        if "propagationPolicy" in query:
            body["propagationPolicy"] = query["propagationPolicy"]
        if "gracePeriodSeconds" in query:
            body["gracePeriodSeconds"] = int(query["gracePeriodSeconds"])
        dry_run = query.get("dryRun") == "All" or body.get("dryRun") == ["All"]
        if not request.name:
            selected = self._select(request)
            for stored in selected:
                self.registry.delete(resource, stored.namespace, stored.name, dict(body), dry_run=dry_run)
            return self._page(request, selected, {})
        obj, gone = self.registry.delete(resource, request.space, request.name, body, dry_run=dry_run)
        if not gone:
            return _json(obj)
        details: Obj = {"name": request.name, "kind": resource.plural, "uid": obj["metadata"]["uid"]}
        if resource.group:
            details["group"] = resource.group
        return _json({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details})

    # ------------------------------------------------------------ reading

    def _select(self, request: Request) -> list[StoredObject]:
        match = _selector(request)
        selected = [r for r in self.store.every(request.resource, request.namespace) if match is None or match(r.obj)]
        return sorted(selected, key=lambda stored: (stored.namespace, stored.name))

    def _list(self, request: Request) -> web.Response:
        """LIST, in pages where `limit` asks for them."""
        query = request.http.query
        selected = self._select(request)
        if query.get("continue"):
            try:
                after = orjson.loads(base64.urlsafe_b64decode(query["continue"]))
            except (binascii.Error, orjson.JSONDecodeError):
                raise errors.bad_request("invalid continue token") from None
            selected = [stored for stored in selected if [stored.namespace, stored.name] > after]
        meta: Obj = {}
        limit = int(query.get("limit") or 0)
        if limit and len(selected) > limit:
            meta["remainingItemCount"] = len(selected) - limit
            selected = selected[:limit]
            meta["continue"] = base64.urlsafe_b64encode(
                orjson.dumps([selected[-1].namespace, selected[-1].name])
            ).decode()
        return self._page(request, selected, meta)

    def _page(self, request: Request, objects: list[StoredObject], meta: Obj) -> web.Response:
        resource = request.resource
        meta = {"resourceVersion": str(self.store.version), **meta}
        head = {"kind": f"{resource.kind}List", "apiVersion": resource.api_version, "metadata": meta}
        return _json(orjson.dumps(head)[:-1] + b',"items":[' + b",".join(stored.raw for stored in objects) + b"]}")

    async def _watch(self, request: Request) -> web.StreamResponse:
        version = request.http.query.get("resourceVersion") or "0"
        if not version.isdigit():
            raise errors.bad_request(f"invalid resource version: {version}")
        watch = Watch(self.store, request.resource, request.namespace, _selector(request))
        self.watches.add(watch)
        try:
            return await watching.stream(request.http, watch, int(version), lambda: self._select(request))
        finally:
            self.watches.discard(watch)

    # ------------------------------------------------------------ subresources

    async def _subresource(self, request: Request) -> web.StreamResponse:
        sub, method = request.subresource, request.http.method
        if sub not in request.resource.subresources:
            raise errors.no_such_path()
        if sub == "scale" and method in ("GET", "PUT", "PATCH"):
            return await self._scale(request)
        if method != "GET":
            raise errors.method_not_allowed()
        return self._log(request)

    async def _scale(self, request: Request) -> web.Response:
        # The body first: a controller may write the object while the body is still arriving.
        body = None if request.http.method == "GET" else await _body(request)
        live = self.registry.get(request.resource, request.space, request.name)
        if body is not None:
            obj = copy_of(live)
            replicas = fields.merge_patch({"spec": {"replicas": obj["spec"]["replicas"]}}, body)["spec"].get("replicas")
            if not isinstance(replicas, int) or replicas < 0:
                raise errors.invalid(request.resource, request.name, "spec.replicas", f"Invalid value: {replicas}")
            self.registry.patch(
                request.resource,
                request.space,
                request.name,
                {"spec": {"replicas": replicas}},
                MERGE_PATCH,
                _options(request),
                "scale",
            )
            live = self.registry.get(request.resource, request.space, request.name)
        meta = {k: live.obj["metadata"][k] for k in ("name", "namespace", "uid", "resourceVersion")}
        labels = (live.obj["spec"].get("selector") or {}).get("matchLabels") or {}
        status = {
            "replicas": live.obj.get("status", {}).get("replicas", 0),
            "selector": ",".join(f"{key}={value}" for key, value in sorted(labels.items())),
        }
        spec = {"replicas": live.obj["spec"]["replicas"]}
        return _json(
            {"kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": meta, "spec": spec, "status": status}
        )

    def _log(self, request: Request) -> web.Response:
        query = request.http.query
        pod = self.registry.get(PODS, request.space, request.name)
        lines = logs.lines(pod.obj, query.get("container", ""), previous=query.get("previous") == "true")
        if query.get("tailLines"):
            count = int(query["tailLines"])
            lines = lines[-count:] if count else []
        return web.Response(text="".join(f"{line}\n" for line in lines), content_type="text/plain")

    # ------------------------------------------------------------ sandbox

    async def _sandbox(self, http: BaseRequest) -> web.Response:
        """Faults of pods and nodes; the proxy checks and forwards them."""
        if http.method == "POST":
            try:
                return web.json_response(self.faults.add(orjson.loads(await http.read())).as_json(), status=201)
            except (BadFault, orjson.JSONDecodeError) as exc:
                return web.json_response({"error": str(exc)}, status=400)
        if http.method == "DELETE":
            self.faults.clear()
        return web.json_response({"faults": self.faults.listed()})


def _json(body: Any, status: int = 200) -> web.Response:
    data = body if isinstance(body, bytes) else orjson.dumps(body)
    return web.Response(body=data, status=status, content_type="application/json")


def _parse(http: BaseRequest) -> Request:
    """Parse the path `/api/v1/…` or `/apis/{group}/{version}/…`. Raises 404."""
    parts = [part for part in http.path.split("/") if part]
    if parts[:2] == ["api", "v1"]:
        group, version, path = "", "v1", parts[2:]
    elif parts[:1] == ["apis"] and len(parts) > 3:
        group, version, path = parts[1], parts[2], parts[3:]
    else:
        raise errors.no_such_path()
    namespace: str | None = None
    if len(path) >= 3 and path[0] == "namespaces":
        namespace, path = path[1], path[2:]
    resource = BY_PATH.get((group, version, path[0])) if path else None
    if resource is None or (resource.namespaced and namespace is None and len(path) > 1):
        raise errors.no_such_path()
    name, sub = [*path[1:], "", ""][:2]
    if not resource.namespaced:
        namespace = ""
    return Request(http=http, resource=resource, namespace=namespace, name=name, subresource=sub)


def _selector(request: Request) -> Match | None:
    """Return both selectors of a list or watch as one test."""
    by_label = selectors.labels(request.http.query.get("labelSelector", ""))
    by_field = selectors.fields(request.resource, request.http.query.get("fieldSelector", ""))
    if by_label and by_field:
        return lambda obj: by_label(obj) and by_field(obj)
    return by_label or by_field


def _options(request: Request) -> WriteOptions:
    query = request.http.query
    agent = request.http.headers.get("User-Agent", "unknown").partition("/")[0]
    return WriteOptions(
        manager=query.get("fieldManager") or agent,
        dry_run=query.get("dryRun") == "All",
        force=query.get("force") in ("true", "1"),
    )


async def _body(request: Request, *, empty: bool = False) -> Any:
    """Return the request's body, JSON or YAML. Raises 400, and 415 for protobuf."""
    if "protobuf" in request.media:
        raise errors.unsupported_media("the simulated cluster takes application/json and application/yaml")
    raw = await request.http.read()
    if not raw and empty:
        return {}
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError as exc:
        if "yaml" not in request.media:
            raise errors.bad_request(f"the object provided is unrecognized (must be valid JSON): {exc}") from None
    try:
        return yaml.safe_load(raw)
    except yaml.YAMLError as exc:
        raise errors.bad_request(f"error decoding YAML: {exc}") from None
