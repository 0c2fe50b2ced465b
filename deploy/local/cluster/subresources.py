"""What hangs below an object: status, scale, logs, eviction, binding, tokens, proxies; and the virtual kinds."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import orjson
from aiohttp import web
from aiohttp.web_request import BaseRequest

from deploy.local.cluster import errors, logs, quotas, reading
from deploy.local.cluster.quantities import text
from deploy.local.cluster.resources import BY_KEY, Obj, Resource
from deploy.local.cluster.selectors import matches
from deploy.local.cluster.store import Change, Record, thaw
from deploy.local.cluster.times import now

if TYPE_CHECKING:
    from deploy.local.cluster.server import Api, Request

SCALE = Resource(group="autoscaling", version="v1", kind="Scale", plural="scales")
PODS, ENDPOINTS, BUDGETS = BY_KEY["/pods"], BY_KEY["/endpoints"], BY_KEY["policy/poddisruptionbudgets"]


def _json(body: Any, status: int = 200) -> web.Response:
    return web.Response(body=orjson.dumps(body), status=status, headers={"Content-Type": "application/json"})


async def handle(api: Api, request: Request) -> web.StreamResponse:
    """One request to a subresource."""
    sub, method = request.sub, request.method
    if sub == "status":
        return await _status(api, request)
    if sub == "scale":
        return await _scale(api, request)
    if sub == "log" and method == "GET":
        return await _log(api, request)
    if sub == "eviction" and method == "POST":
        return await _evict(api, request)
    if sub == "binding" and method == "POST":
        return await _bind(api, request)
    if sub == "token" and method == "POST":
        return await _token(api, request)
    if sub == "finalize" and method == "PUT":
        return await _finalize(api, request)
    if sub == "proxy":
        return _proxy(api, request)
    raise errors.method_not_allowed()


async def _status(api: Api, request: Request) -> web.StreamResponse:
    if request.method == "GET":
        return reading.one(api, request)
    if request.method == "PATCH":
        return await api.patched(request, "status")
    if request.method == "PUT":
        obj = await api.body(request)
        call = api.call(request)
        stored = api.registry.replace(request.resource, request.where, request.name, obj, call, "status")
        return reading.rendered(request, stored)
    raise errors.method_not_allowed()


def _as_scale(record_obj: Obj) -> Obj:
    meta = {
        k: record_obj["metadata"][k]
        for k in ("name", "namespace", "uid", "resourceVersion", "creationTimestamp")
        if k in record_obj["metadata"]
    }
    labels = (record_obj["spec"].get("selector") or {}).get("matchLabels") or {}
    status: Obj = {"replicas": record_obj.get("status", {}).get("replicas", 0)}
    if labels:
        status["selector"] = ",".join(f"{k}={v}" for k, v in sorted(labels.items()))
    return {
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": meta,
        "spec": {"replicas": record_obj["spec"].get("replicas", 1)},
        "status": status,
    }


async def _scale(api: Api, request: Request) -> web.StreamResponse:
    from deploy.local.cluster import patches
    from deploy.local.cluster.registry import APPLY, JSON

    # The body first: a controller may write the object while it is still coming in, and a patch then goes upon that.
    body: Any = None if request.method == "GET" else await api.body(request)
    live = api.registry.get(request.resource, request.where, request.name)
    scale = _as_scale(live.obj)
    if request.method == "GET":
        return _json(scale)
    if request.method == "PUT":
        wanted = body
    elif request.method == "PATCH":
        media = request.http.headers.get("Content-Type", "").partition(";")[0].strip()
        if media == APPLY:
            wanted = patches.merge(scale, body)
        else:
            wanted = patches.json_patch(scale, body) if media == JSON else patches.merge(scale, body)
    else:
        raise errors.method_not_allowed()
    replicas = (wanted.get("spec") or {}).get("replicas", 0) if isinstance(wanted, dict) else None
    if not isinstance(replicas, int) or isinstance(replicas, bool):
        raise errors.bad_request("Scale: spec.replicas must be an integer")
    if replicas < 0:
        problem = errors.wrong("spec.replicas", replicas, "must be greater than or equal to 0")
        raise errors.invalid(SCALE, request.name, [problem])
    obj = thaw(live)
    obj["spec"]["replicas"] = replicas
    asked = (wanted.get("metadata") or {}).get("resourceVersion")
    obj["metadata"]["resourceVersion"] = asked or obj["metadata"]["resourceVersion"]
    stored = api.registry.replace(request.resource, request.where, request.name, obj, api.call(request), "scale")
    return _json(_as_scale(stored))


# ---------------------------------------------------------------- pods


def _container_of(pod: Record, asked: str) -> str:
    names = [c["name"] for key in ("initContainers", "containers") for c in pod.obj["spec"].get(key) or ()]
    plain = [c["name"] for c in pod.obj["spec"].get("containers") or ()]
    if asked:
        if asked not in names:
            raise errors.bad_request(f"container {asked} is not valid for pod {pod.name}")
        return asked
    if len(plain) > 1:
        notes = pod.obj["metadata"].get("annotations") or {}
        default = notes.get("kubectl.kubernetes.io/default-container")
        if default in plain:
            return str(default)
        raise errors.bad_request(
            f"a container name must be specified for pod {pod.name}, choose one of: [{' '.join(plain)}]"
        )
    return str(plain[0])


async def _log(api: Api, request: Request) -> web.StreamResponse:
    pod = api.registry.get(PODS, request.where, request.name)
    query = request.query
    container = _container_of(pod, query.get("container", ""))
    lines = logs.lines(
        pod.obj, container, previous=query.get("previous") == "true", timestamps=query.get("timestamps") == "true"
    )
    if query.get("tailLines", "").isdigit():
        count = int(query["tailLines"])
        lines = lines[-count:] if count else []
    data = "".join(f"{line}\n" for line in lines).encode()
    if query.get("limitBytes", "").isdigit():
        data = data[: int(query["limitBytes"])]
    if query.get("follow") != "true":
        return web.Response(body=data, headers={"Content-Type": "text/plain"})
    response = web.StreamResponse(headers={"Content-Type": "text/plain"})
    await response.prepare(request.http)
    await response.write(data)
    ended = asyncio.Event()

    def look(change: Change) -> None:
        mine = change.resource is PODS and (change.new.namespace, change.new.name) == (pod.namespace, pod.name)
        over = change.type == "DELETED" or change.new.obj.get("status", {}).get("phase") in ("Succeeded", "Failed")
        if mine and over:
            ended.set()

    stop = api.store.listen(look)
    try:
        if pod.obj.get("status", {}).get("phase") == "Running":
            await ended.wait()
        await response.write_eof()
    except ConnectionResetError:
        # The reader has left.
        pass
    finally:
        stop()
    return response


async def _evict(api: Api, request: Request) -> web.StreamResponse:
    # `kubectl drain` asks in protobuf; what it would say there are the defaults.
    plain = "protobuf" not in request.http.headers.get("Content-Type", "")
    body = (await api.body(request, empty=True) or {}) if plain else {}
    pod = api.registry.get(PODS, request.where, request.name)
    labels = pod.obj["metadata"].get("labels") or {}
    budgets = [
        b for b in api.store.every(BUDGETS, request.where) if matches(b.obj.get("spec", {}).get("selector"), labels)
    ]
    if len(budgets) > 1:
        raise errors.internal(
            "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support."
        )
    ready = any(
        c["type"] == "Ready" and c["status"] == "True" for c in pod.obj.get("status", {}).get("conditions") or ()
    )
    for budget in budgets:
        status = budget.obj.get("status") or {}
        if ready and status.get("disruptionsAllowed", 0) < 1:
            message = (
                f"The disruption budget {budget.name} needs {status.get('desiredHealthy', 0)} healthy pods and has "
                f"{status.get('currentHealthy', 0)} currently"
            )
            raise errors.ApiError(
                429,
                "TooManyRequests",
                "Cannot evict pod as it would violate the pod's disruption budget.",
                causes=[{"reason": "DisruptionBudget", "message": message}],
                retry_after=None,
            )
        if ready:

            def less(obj: Obj) -> None:
                obj["status"]["disruptionsAllowed"] = max(0, obj["status"].get("disruptionsAllowed", 0) - 1)

            api.registry.modify(BUDGETS, budget, less)
    options = body.get("deleteOptions") or {} if isinstance(body, dict) else {}
    api.registry.delete(PODS, request.where, request.name, options, dry_run=request.query.get("dryRun") == "All")
    return _json({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}, 201)


async def _bind(api: Api, request: Request) -> web.StreamResponse:
    body = await api.body(request)
    pod = api.registry.get(PODS, request.where, request.name)
    if pod.obj["spec"].get("nodeName"):
        raise errors.conflict(PODS, pod.name, f"pod {pod.name} is already assigned to node")
    node = (body.get("target") or {}).get("name", "") if isinstance(body, dict) else ""

    def bind(obj: Obj) -> None:
        obj["spec"]["nodeName"] = node

    api.registry.modify(PODS, pod, bind)
    return _json({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}, 201)


async def _token(api: Api, request: Request) -> web.StreamResponse:
    from deploy.local.cluster.naming import suffix

    api.registry.get(request.resource, request.where, request.name)
    body = await api.body(request, empty=True) or {}
    status = {"token": f"simulated.{request.where}.{request.name}.{suffix(24)}", "expirationTimestamp": now()}
    spec = body.get("spec") or {} if isinstance(body, dict) else {}
    meta = {"name": request.name, "namespace": request.where, "creationTimestamp": now()}
    return _json(
        {
            "kind": "TokenRequest",
            "apiVersion": "authentication.k8s.io/v1",
            "metadata": meta,
            "spec": spec,
            "status": status,
        },
        201,
    )


async def _finalize(api: Api, request: Request) -> web.StreamResponse:
    body = await api.body(request)
    record = api.registry.get(request.resource, request.where, request.name)
    wanted = (body.get("spec") or {}).get("finalizers") if isinstance(body, dict) else None

    def change(obj: Obj) -> None:
        if wanted:
            obj["spec"]["finalizers"] = wanted
        else:
            obj["spec"].pop("finalizers", None)

    return _json(api.registry.modify(request.resource, record, change).obj)


# ---------------------------------------------------------------- services


def _proxy(api: Api, request: Request) -> web.Response:
    """The smoke probe's way in: 200 from a service that has ready endpoints, 503 from one that has none."""
    name = request.name
    parts = name.split(":")
    name = parts[1] if len(parts) == 3 else parts[0]
    port = parts[2] if len(parts) == 3 else parts[1] if len(parts) == 2 else ""
    if request.resource.key == "/pods":
        pod = api.registry.get(PODS, request.where, name)
        if pod.obj.get("status", {}).get("phase") != "Running":
            raise errors.ApiError(
                503, "ServiceUnavailable", "error trying to reach service: dial tcp: connect: connection refused"
            )
        return _page(name, request.tail)
    service = api.registry.get(request.resource, request.where, name)
    ports = service.obj["spec"].get("ports") or []
    known = {str(p.get("port")) for p in ports} | {p.get("name", "") for p in ports}
    endpoints = api.store.get(ENDPOINTS, request.where, name)
    subsets = (endpoints.obj.get("subsets") or []) if endpoints else []
    if not any(subset.get("addresses") for subset in subsets):
        raise errors.ApiError(503, "ServiceUnavailable", f'no endpoints available for service "{name}"')
    if port and port not in known:
        raise errors.ApiError(503, "ServiceUnavailable", f'no service port "{port}" found for service "{name}"')
    return _page(name, request.tail)


def _page(name: str, path: str) -> web.Response:
    return web.json_response({"status": "ok", "service": name, "path": "/" + path})


# ---------------------------------------------------------------- metrics and reviews


def _sample(namespace: str, pod: Obj) -> Obj:
    """Usage that stays near a third of what was requested: enough to draw a chart."""
    containers = []
    for container in pod["spec"].get("containers") or ():
        wanted = quotas.requests({"containers": [container]})
        cpu = max(1, wanted.get("cpu", 100) // 3)
        memory = max(16 * 1024 * 1024, wanted.get("memory", 0) // 1000 // 3)
        containers.append({"name": container["name"], "usage": {"cpu": text(cpu), "memory": f"{memory // 1024}Ki"}})
    meta = {k: pod["metadata"][k] for k in ("name", "namespace", "labels", "creationTimestamp") if k in pod["metadata"]}
    return {
        "kind": "PodMetrics",
        "apiVersion": "metrics.k8s.io/v1beta1",
        "metadata": meta,
        "timestamp": now(),
        "window": "15s",
        "containers": containers,
    }


def metrics(api: Api, request: Request) -> web.Response:
    """`metrics.k8s.io`: usage of running pods and of nodes."""
    if request.method != "GET":
        raise errors.method_not_allowed()
    match = reading.selector(request)
    items: list[Obj] = []
    if request.resource.plural == "pods":
        for record in api.store.every(PODS, request.namespace):
            running = record.obj.get("status", {}).get("phase") == "Running"
            if running and (not request.name or record.name == request.name) and (match is None or match(record.obj)):
                items.append(_sample(record.namespace, record.obj))
    else:
        for record in api.store.every(BY_KEY["/nodes"]):
            if not request.name or record.name == request.name:
                usage = {"cpu": "850m", "memory": "4096Mi"}
                items.append(
                    {
                        "kind": "NodeMetrics",
                        "apiVersion": "metrics.k8s.io/v1beta1",
                        "metadata": {"name": record.name},
                        "timestamp": now(),
                        "window": "15s",
                        "usage": usage,
                    }
                )
    if request.name:
        if not items:
            raise errors.not_found(request.resource, request.name)
        return _json(items[0])
    return _json(
        {"kind": f"{request.resource.kind}List", "apiVersion": "metrics.k8s.io/v1beta1", "metadata": {}, "items": items}
    )


async def virtual(api: Api, http: BaseRequest, parts: list[str]) -> web.Response:
    """Reviews: who am I (`auth whoami`), may I (`auth can-i`: always)."""
    if http.method != "POST":
        raise errors.method_not_allowed()
    try:
        body = orjson.loads(await http.read() or b"{}")
    except orjson.JSONDecodeError:
        # kubectl asks in protobuf. What exactly it asks does not matter: the answer is always yes.
        body = {}
    who = {"username": "berth", "groups": ["system:masters", "system:authenticated"]}
    if parts[-1] == "selfsubjectreviews":
        answer: Obj = {
            "kind": "SelfSubjectReview",
            "apiVersion": "authentication.k8s.io/v1",
            "status": {"userInfo": who},
        }
    else:
        answer = {
            "kind": "SelfSubjectAccessReview",
            "apiVersion": "authorization.k8s.io/v1",
            "spec": body.get("spec") or {},
            "status": {"allowed": True},
        }
    answer["metadata"] = {"creationTimestamp": now()}
    return _json(answer, 201)
