"""The API over HTTP: reads a request, finds the verb, answers as kube-apiserver does."""

from __future__ import annotations

import asyncio
import hmac
import logging
from dataclasses import dataclass, field
from typing import Any

import orjson
import yaml
from aiohttp import web
from aiohttp.web_request import BaseRequest

from deploy.local.cluster import discovery, errors, reading, subresources
from deploy.local.cluster.decoding import Call
from deploy.local.cluster.errors import ApiError
from deploy.local.cluster.faults import BadFault, Faults
from deploy.local.cluster.registry import APPLY, JSON, MERGE, STRATEGIC, Registry
from deploy.local.cluster.resources import BY_PATH, Obj, Resource
from deploy.local.cluster.store import Store
from deploy.local.cluster.watching import Watch

log = logging.getLogger(__name__)

WRITES = ("POST", "PUT", "PATCH", "DELETE")


@dataclass(slots=True, kw_only=True)
class Request:
    """A request to the API, taken apart. `namespace` is None for all namespaces."""

    http: BaseRequest
    method: str
    resource: Resource
    namespace: str | None
    name: str
    sub: str
    tail: str
    query: Any
    warnings: list[str] = field(default_factory=list)

    @property
    def where(self) -> str:
        return self.namespace or ""

    @property
    def scope(self) -> str:
        """The namespace that faults are matched against; a Namespace counts as inside itself."""
        return self.name if self.resource.key == "/namespaces" else self.where


@dataclass(slots=True, kw_only=True)
class Api:
    """What the handlers work on."""

    store: Store
    registry: Registry
    faults: Faults
    token: str
    watches: set[Watch] = field(default_factory=set)
    # Answers that the fault `server_error` has spoilt: 503 and 500 in turn.
    failures: int = 0

    # ------------------------------------------------------------ answering

    async def handle(self, http: BaseRequest) -> web.StreamResponse:
        """One HTTP request."""
        try:
            return await self._answer(http)
        except ApiError as exc:
            return refusal(exc)
        except (ConnectionResetError, asyncio.CancelledError):
            raise
        except web.HTTPNotFound as exc:
            return web.Response(status=404, text=exc.text)
        except web.HTTPRequestEntityTooLarge:
            return refusal(errors.ApiError(413, "RequestEntityTooLarge", "Request entity too large: limit is 1048576"))
        except Exception:
            log.exception("while answering %s %s", http.method, http.path)
            return refusal(errors.internal("the simulated cluster failed; its log has the reason"))

    async def _answer(self, http: BaseRequest) -> web.StreamResponse:
        path = http.path
        if path.startswith("/sandbox/"):
            return await self._sandbox(http)
        if path in ("/healthz", "/livez", "/readyz"):
            return web.Response(text="ok")
        if path == "/version":
            return reply(orjson.dumps(discovery.VERSION))
        self._authenticate(http)
        parts = [part for part in path.split("/") if part]
        found = self._static(http, path, parts)
        if found is not None:
            return found
        request = self._parsed(http, parts)
        if request is None:
            return await subresources.virtual(self, http, parts)
        self._faulted(request)
        response = await self._dispatch(request)
        if request.warnings:
            for text in request.warnings:
                response.headers.add("Warning", f'299 - "{_escaped(text)}"')
        if (
            request.method in WRITES
            and self.faults.any("lost_reply")
            and self.faults.strike("lost_reply", request.scope)
        ):
            drop(http)
        return response

    def _authenticate(self, http: BaseRequest) -> None:
        scheme, _, token = http.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(token.strip().encode(), self.token.encode()):
            raise errors.unauthorized()

    def _static(self, http: BaseRequest, path: str, parts: list[str]) -> web.Response | None:
        """Discovery and schemas."""
        accept = http.headers.get("Accept", "")
        if parts in (["api"], ["apis"]):
            for clause in accept.split(","):
                if "as=APIGroupDiscoveryList" in clause:
                    version = "v2beta1" if "v=v2beta1" in clause else "v2"
                    kind = f"application/json;g=apidiscovery.k8s.io;v={version};as=APIGroupDiscoveryList"
                    return reply(discovery.aggregated(parts == ["api"], version), kind=kind)
            return reply(discovery.api_versions() if parts == ["api"] else discovery.group_list())
        body: bytes | None = None
        if parts == ["api", "v1"]:
            body = discovery.resource_list("", "v1")
        elif len(parts) == 2 and parts[0] == "apis":
            body = discovery.one_group(parts[1])
        elif len(parts) == 3 and parts[0] == "apis":
            body = discovery.resource_list(parts[1], parts[2])
        elif parts == ["openapi", "v3"]:
            body = discovery.openapi_index()
        elif parts[:3] == ["openapi", "v3", "api"]:
            body = discovery.openapi("", parts[-1])
        elif parts[:3] == ["openapi", "v3", "apis"] and len(parts) == 5:
            body = discovery.openapi(parts[3], parts[4])
        elif not parts:
            body = orjson.dumps(
                {"paths": ["/api", "/apis", "/healthz", "/livez", "/openapi/v3", "/readyz", "/version"]}
            )
        else:
            return None
        if body is None:
            raise web.HTTPNotFound(text="404 page not found\n")
        return reply(body)

    def _parsed(self, http: BaseRequest, parts: list[str]) -> Request | None:
        if parts[:2] == ["api", "v1"]:
            group, version, rest = "", "v1", parts[2:]
        elif parts[0] == "apis" and len(parts) > 3:
            group, version, rest = parts[1], parts[2], parts[3:]
        else:
            raise errors.no_such_path()
        namespace: str | None = None
        if rest[0] == "namespaces" and len(rest) >= 3 and (group, version, rest[2]) in BY_PATH:
            candidate = BY_PATH[(group, version, rest[2])]
            if candidate.namespaced:
                namespace, rest = rest[1], rest[2:]
        resource = BY_PATH.get((group, version, rest[0]))
        if resource is None and group and discovery.resource_list(group, version) is None:
            raise web.HTTPNotFound(text="404 page not found\n")
        if resource is None:
            if any(plural == parts[-1] for _, _, _, plural in discovery.VIRTUAL):
                return None
            raise errors.no_such_path()
        name = rest[1] if len(rest) > 1 else ""
        if name and resource.namespaced and namespace is None:
            raise errors.no_such_path()
        sub = rest[2] if len(rest) > 2 else ""
        return Request(
            http=http,
            method=http.method,
            resource=resource,
            namespace=namespace if resource.namespaced else "",
            name=name,
            sub=sub,
            tail="/".join(rest[3:]),
            query=http.query,
        )

    def _faulted(self, request: Request) -> None:
        faults = self.faults
        faults.sweep()
        if not faults.active:
            return
        scope = request.scope
        if faults.strike("throttle", scope):
            raise errors.too_many()
        if faults.strike("server_error", scope):
            self.failures += 1
            if self.failures % 2 == 0:
                raise errors.internal("etcdserver: request timed out")
            raise errors.ApiError(503, "ServiceUnavailable", "the server is currently unable to handle the request")
        if request.method in WRITES and faults.strike("conflict", scope):
            raise errors.conflict(request.resource, request.name or "unknown", errors.MODIFIED)

    # ------------------------------------------------------------ verbs

    async def _dispatch(self, request: Request) -> web.StreamResponse:
        resource, method = request.resource, request.method
        if request.sub:
            if request.sub not in resource.subresources:
                raise errors.no_such_path()
            return await subresources.handle(self, request)
        if resource.group == "metrics.k8s.io":
            return subresources.metrics(self, request)
        if method == "GET":
            if not request.name:
                if request.query.get("watch") in ("true", "1"):
                    return await reading.watch(self, request)
                return reading.listed(self, request)
            return reading.one(self, request)
        if method == "POST" and not request.name:
            if resource.namespaced and request.namespace is None:
                raise errors.method_not_allowed()
            obj = await self.body(request)
            created = self.registry.create(resource, request.where, obj, self.call(request))
            return reading.rendered(request, created, status=201)
        if method == "PUT" and request.name:
            obj = await self.body(request)
            stored = self.registry.replace(resource, request.where, request.name, obj, self.call(request))
            return reading.rendered(request, stored)
        if method == "PATCH" and request.name:
            return await self.patched(request)
        if method == "DELETE":
            return await self._deleted(request)
        raise errors.method_not_allowed()

    async def patched(self, request: Request, subresource: str = "") -> web.StreamResponse:
        """PATCH of the object or of its status."""
        media = request.http.headers.get("Content-Type", "").partition(";")[0].strip()
        if media not in (MERGE, STRATEGIC, JSON, APPLY):
            raise errors.unsupported_patch()
        call = self.call(request)
        if media == APPLY:
            if not request.query.get("fieldManager"):
                raise errors.invalid_options(
                    "PatchOptions", [errors.required("fieldManager", "is required for apply patch")]
                )
        elif "force" in request.query:
            raise errors.invalid_options(
                "PatchOptions", [errors.not_allowed("force", "may not be specified for non-apply patch")]
            )
        body = await self.body(request)
        stored, created = self.registry.patch(
            request.resource, request.where, request.name, body, media, call, subresource
        )
        return reading.rendered(request, stored, status=201 if created else 200)

    async def _deleted(self, request: Request) -> web.StreamResponse:
        resource = request.resource
        options = await self.body(request, empty=True) or {}
        if not isinstance(options, dict):
            raise errors.bad_request("DeleteOptions: an object is wanted")
        for key in ("propagationPolicy", "gracePeriodSeconds", "orphanDependents"):
            if key in request.query:
                value: Any = request.query[key]
                options[key] = (
                    int(value)
                    if key == "gracePeriodSeconds"
                    else value == "true"
                    if key == "orphanDependents"
                    else value
                )
        dry_run = request.query.get("dryRun") == "All" or options.get("dryRun") == ["All"]
        if not request.name:
            if resource.namespaced and request.namespace is None:
                raise errors.method_not_allowed()
            return reading.deleted_all(self, request, options, dry_run=dry_run)
        obj, gone = self.registry.delete(resource, request.where, request.name, options, dry_run=dry_run)
        if resource.key == "batch/jobs" and "propagationPolicy" not in options:
            request.warnings.append(
                "child pods are preserved by default when jobs are deleted; set propagationPolicy=Background to "
                "remove them or set propagationPolicy=Orphan to suppress this warning"
            )
        if resource.returns_deleted or not gone:
            return reading.rendered(request, obj)
        details: Obj = {"name": request.name, "kind": resource.plural, "uid": obj["metadata"]["uid"]}
        if resource.group:
            details["group"] = resource.group
        return reply(
            orjson.dumps(
                {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details}
            )
        )

    # ------------------------------------------------------------ requests

    def call(self, request: Request) -> Call:
        """The write's options."""
        query = request.query
        dry_run = query.get("dryRun", "")
        if dry_run not in ("", "All"):
            options = {"POST": "CreateOptions", "PUT": "UpdateOptions"}.get(request.method, "PatchOptions")
            raise errors.invalid_options(options, [errors.unsupported("dryRun", [dry_run], ("All",))])
        agent = request.http.headers.get("User-Agent", "unknown").partition("/")[0]
        return Call(
            manager=query.get("fieldManager") or agent or "unknown",
            dry_run=dry_run == "All",
            force=query.get("force") in ("true", "1"),
            validation=query.get("fieldValidation") or "Warn",
            warnings=request.warnings,
        )

    async def body(self, request: Request, *, empty: bool = False) -> Any:
        """The request's body, JSON or YAML. 400 where it is neither, 413 where it is too large, 415 for protobuf."""
        media = request.http.headers.get("Content-Type", "").partition(";")[0].strip()
        if media and request.method != "PATCH" and not media.endswith(("json", "yaml")):
            raise errors.unsupported_media("application/json, application/yaml")
        if media.endswith("+json") and request.method == "POST":
            raise errors.unsupported_media("application/json, application/yaml")
        raw = await request.http.read()
        if not raw:
            if empty:
                return None
            raise errors.bad_request("the request has no body")
        try:
            return orjson.loads(raw)
        except orjson.JSONDecodeError as exc:
            if "yaml" not in media:
                raise errors.bad_request(f"the object provided is unrecognized (must be valid JSON): {exc}") from None
        try:
            return yaml.load(raw, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506  # both are safe loaders
        except yaml.YAMLError as exc:
            raise errors.bad_request(f"error decoding YAML: {exc}") from None

    # ------------------------------------------------------------ sandbox

    async def _sandbox(self, http: BaseRequest) -> web.Response:
        if http.path.rstrip("/") != "/sandbox/faults":
            return web.json_response({"error": "no such path"}, status=404)
        if http.method == "GET":
            return web.json_response({"faults": self.faults.listed()})
        if http.method == "DELETE":
            self.faults.clear()
            return web.json_response({"faults": []})
        if http.method != "POST":
            return web.json_response({"error": "GET, POST or DELETE"}, status=405)
        try:
            wanted = orjson.loads(await http.read())
            if not isinstance(wanted, dict):
                raise BadFault("a JSON object is wanted")
            fault = self.faults.add(wanted)
        except (BadFault, orjson.JSONDecodeError) as exc:
            return web.json_response({"error": str(exc)}, status=400)
        for watch in [
            w for w in self.watches if fault.kind in ("watch_close", "gone") and fault.covers(w.namespace or "")
        ]:
            if not self.faults.strike(fault.kind, watch.namespace or ""):
                break
            if fault.kind == "gone":
                watch.fail(errors.expired(watch.version, self.store.version))
            else:
                watch.close()
        if fault.kind == "gone":
            self.store.forget_history()
        return web.json_response(fault.shown(), status=201)


def reply(body: bytes, *, status: int = 200, kind: str = "application/json") -> web.Response:
    """A response of JSON bytes."""
    return web.Response(body=body, status=status, headers={"Content-Type": kind, "Cache-Control": "no-cache, private"})


def refusal(problem: ApiError) -> web.Response:
    """A refusal as the API sends it."""
    response = reply(orjson.dumps(problem.status()), status=problem.code)
    if problem.retry_after is not None:
        response.headers["Retry-After"] = str(problem.retry_after)
    return response


def drop(http: BaseRequest) -> None:
    """Cut the connection without an answer."""
    if http.transport is not None:
        http.transport.abort()
    raise ConnectionResetError("dropped by the fault lost_reply")


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", " ")
